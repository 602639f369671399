"""Networks that learn from turned and scaled views must know images as they are recorded: pixels with the camera's
noise.
"""
import numpy as np
import pytest
import torch

from cellinterp.data import simulate_nuclei
from cellinterp.factors import VAE, Head
from cellinterp.laws import BlackBoxClassifier
from cellinterp.training.augment import random_turns, random_views, turned, turns

SMALL = dict(widths=(8, 16, 16, 32), device="cpu", random_state=0)
STATES = ["interphase", "metaphase", "apoptosis"]


def cells(noise, n=420): return simulate_nuclei(n, size=48, random_state=0, classes=STATES, noise=noise)


def half_a_pixel(x): return torch.nn.functional.avg_pool2d(x, 2, 1)[..., [*range(47), 46]][..., [*range(47), 46], :]


def slightly_resampled(model, images, function, n=4, view=None):
    "The mean of `function` over views that are turned, and hardly scaled or shifted: what interpolation alone does."
    torch.manual_seed(0)
    x = model._scaled(torch.as_tensor(images.astype(np.float32)))
    with torch.no_grad():
        views = [
            random_views(x, scale=0.02, shift=0.02, gain=0, exact=0) if view is None else view(x) for _ in range(n)
        ]
        return torch.stack([function(v) for v in views]).mean(0).numpy()


def agreement(model, images, on_pixels, function):
    "Share of the images that are decided alike on exact pixels and on resampled ones."
    return (on_pixels.argmax(1) == slightly_resampled(model, images, function).argmax(1)).mean()


@pytest.mark.parametrize("noise", [0, 12, 50])
def test_the_black_box_says_the_same_of_exact_and_of_resampled_pixels(noise):
    s = cells(noise)
    model = BlackBoxClassifier(max_steps=100, **SMALL).fit(s.images[:240], s.labels[:240])
    fresh, y = s.images[240:], s.labels[240:]
    raw = model.predict_proba(fresh)
    def logits(x):
        return model.module_(x).log_softmax(-1)
    resampled = slightly_resampled(model, fresh, logits, 8)
    raw_accuracy, accuracy = ((model.classes_[p.argmax(1)] == y).mean() for p in (raw, resampled))
    # 180 fresh cells: within two standard errors of the difference, which agreement bounds
    agree = agreement(model, fresh, raw, logits)
    assert agree > .9
    assert raw_accuracy > accuracy - .01 - 2 * np.sqrt((1 - agree) / len(y))
    assert raw_accuracy > .8


@pytest.mark.parametrize("frame", ["aligned", "image"])
def test_the_head_of_a_vae_says_the_same_of_exact_and_of_resampled_pixels(frame):
    s = cells(25)
    model = VAE(4, "beta", frame=frame, head=Head(1.0), hidden=32, max_steps=100, **SMALL).fit(s.images, s.labels)
    def factors(x):
        return model.module_.encode(x)[0]
    on_pixels = model.transform(s.images)
    # factors of an image as it lies turn with it: it is only shifted by half a pixel
    view = None if frame == "aligned" else half_a_pixel
    moved = np.linalg.norm(on_pixels - slightly_resampled(model, s.images, factors, view=view), axis=1)
    # what resampling moves is small beside what lies between two cells
    assert np.median(moved) < .5 * np.median(np.linalg.norm(on_pixels[1:] - on_pixels[:-1], axis=1))


def test_two_of_three_views_are_whole_pixels():
    torch.manual_seed(0)
    noise = torch.randn(400, 1, 24, 24)
    def kept(x, y):
        return min((x - t).abs().max() for t in turns(y[None])) < 1e-4
    found = np.mean([kept(x, y) for x, y in zip(random_views(noise, shift=0, gain=0), noise)])
    # 400 draws of two thirds
    assert abs(found - 2 / 3) < 4 * np.sqrt(2 / 9 / 400)
    shifted = random_views(noise, shift=.1, gain=0, exact=1)
    # shifts by whole pixels keep the noise, those between do not
    assert shifted.var().item() == pytest.approx(noise.var().item(), rel=.03)
    assert random_views(noise, shift=.1, gain=0, exact=0).var() < .7 * noise.var()


@pytest.mark.parametrize("n_axes", [2, 3])
def test_turns_of_the_grid_keep_every_number(n_axes):
    torch.manual_seed(0)
    box = torch.randn(6, 1, *[8] * n_axes)
    whole = turned(box, random_turns(6, n_axes, exact=1))
    torch.testing.assert_close(whole.flatten(1).sort(1).values, box.flatten(1).sort(1).values, atol=1e-4, rtol=0)
    assert turned(box, random_turns(6, n_axes)).var() < .8 * box.var()
