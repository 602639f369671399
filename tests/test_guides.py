"""Readings, guides, drawings and sentences, as installed: known answers, bad input, and what a short training must
reach.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from cellinterp.data.morphology import GRAIN, MORPHOLOGY, find_objects, measure
from cellinterp.data.reading import Reading, read_images
from cellinterp.data.simulate import simulate_nuclei
from cellinterp.explain.sentences import decision_shares, read_law
from cellinterp.factors.drawing import AlignedFrame
from cellinterp.factors.drawings import as_image, feature_loss, fixed_statistics
from cellinterp.factors.guide_checks import check_guides, leakage
from cellinterp.factors.guides import GuideScale, choose_guides, guide_loss, guide_table
from cellinterp.factors.vae import VAE
from cellinterp.training.images import ConvBlocks
from cellinterp.training.saving import load, save


@pytest.fixture(scope="module")
def cells(): return simulate_nuclei(240, size=48, random_state=0)


# --- readings

@pytest.mark.parametrize("change, sign", [(lambda x: x, 1), (lambda x: 255 - x, -1), (lambda x: 4000 - 7.0 * x, -1)])
def test_polarity_is_found_and_shape_does_not_depend_on_it(cells, change, sign):
    images = change(cells.images.astype(float))
    reading = read_images(images)
    assert reading.objects == "one" and reading.signs == (sign,)
    a, b = measure(cells.images), measure(images)
    for name in ("area", "eccentricity", "solidity", "lobes", "texture", "ring"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-3)


def test_stained_colour_is_one_stain_whatever_its_colour(cells):
    density = cells.images / 255.0
    for stain in ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)):
        images = 240 * 10 ** -(density * np.reshape(stain, (3, 1, 1)))
        reading = read_images(images)
        assert reading.white is not None and np.dot(reading.weights, stain) / np.linalg.norm(stain) > 0.98
        a, b = measure(cells.images).area, measure(images).area
        assert np.corrcoef(a, b)[0, 1] > 0.98


def test_channels_are_measured_over_the_shape_of_one(cells):
    x = cells.images[:, 0].astype(float)
    other = 3 * x + np.random.default_rng(0).normal(0, 5, x.shape)
    table = measure(np.stack([np.random.default_rng(1).normal(10, 1, x.shape), x, other], 1), channel=1)
    np.testing.assert_allclose(table.area, measure(x).area)
    np.testing.assert_allclose(table.intensity_channel_2 / table.intensity_channel_1, 3, rtol=0.1)
    assert (
        table.correlation_channel_1_channel_2.median()
        > 0.9
        > 0.3
        > table.correlation_channel_0_channel_1.abs().median()
    )


def test_a_texture_has_grain_and_no_shape():
    from scipy import ndimage
    rng = np.random.default_rng(0)
    fine, coarse = (ndimage.gaussian_filter(rng.normal(size=(12, 48, 48)), (0, s, s)) for s in (1, 3))
    images = np.concatenate([100 + 10 * v / v.std() for v in (fine, coarse)])
    table = measure(images)
    assert list(table) == GRAIN and "texture" in table.attrs["reading"] and find_objects(images).all()
    assert table.fine_grain[:12].median() > 2 * table.fine_grain[12:].median()


def test_turned_images_measure_alike(cells):
    a, b = measure(cells.images[:40]), measure(np.rot90(cells.images[:40], axes=(2, 3)))
    for name in set(MORPHOLOGY) - {"ecc_cos2", "ecc_sin2"}:
        np.testing.assert_allclose(a[name], b[name], rtol=0.03, atol=0.02)


def test_readings_survive_a_file_and_bad_words_do_not(cells):
    reading = read_images(cells)
    assert Reading.from_dict(reading.to_dict()) == reading
    with pytest.raises(ValueError, match="told: 'phase'"): read_images(cells, "phase")
    with pytest.raises(ValueError, match="channel: 3"): read_images(cells, channel=3)


# --- guides

def test_scale_is_monotone_and_comes_back():
    table = pd.DataFrame({"a": np.random.default_rng(0).lognormal(2, 1, 500), "n": np.repeat([1, 1, 1, 2, 5], 100)})
    scale = GuideScale.fit(table)
    z = scale.transform(table)
    back = scale.inverse(z)
    inner = table.a.between(*table.a.quantile([0.02, 0.98]))
    np.testing.assert_allclose(back.a[inner], table.a[inner], rtol=0.05)
    np.testing.assert_allclose(back.n, table.n, atol=0.01)
    assert (np.diff(z[table.a.argsort(), 0]) >= 0).all() and len(np.unique(z[:, 1])) == 3


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_choice_does_not_depend_on_units(scale):
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    table = (
        scale
        * pd.DataFrame({"a": a, "like_a": a + 0.05 * rng.normal(size=200), "b": rng.normal(size=200), "flat": 1.0})
        + 1e3 * scale
    )
    used, told = choose_guides(table, 200)
    assert list(used) == ["a", "b"] and told.why[1].startswith("goes with a") and told.why[3] == "constant"


def test_bad_guides_are_refused_or_said(cells):
    n = len(cells)
    with pytest.raises(ValueError, match="expected one for each"): choose_guides(pd.DataFrame({"a": [1.0, 2]}), n)
    with pytest.raises(ValueError, match="came twice"):
        choose_guides(pd.DataFrame(np.random.rand(n, 2), columns=["a", "a"]), n)
    with pytest.raises(ValueError, match="known of 0"): choose_guides(pd.DataFrame({"a": np.full(n, np.nan)}), n)
    with pytest.raises(ValueError, match="'aera'"): guide_table(["aera"], cells.images)
    with pytest.raises(ValueError, match="hardly an image"): guide_table(True, np.zeros((40, 1, 48, 48)))
    codes = pd.DataFrame({"secret": np.unique(cells.labels, return_inverse=True)[1].astype(float)})
    assert choose_guides(codes, n, cells.labels)[1].why[0].endswith("it knows the label")


def test_unknown_guides_pull_at_nothing():
    mu = torch.randn(32, 2, requires_grad=True)
    target = torch.randn(32, 2)
    target[:, 1] = float("nan")
    guide_loss(mu, target).backward()
    assert (mu.grad[:, 1] == 0).all() and (mu.grad[:, 0] != 0).all()


def test_guided_factors_mean_what_they_are_called(cells, tmp_path):
    small = dict(max_steps=150, batch_size=32, hidden=48, widths=(8, 8, 16, 16), random_state=0, device="cpu")
    rows = np.arange(180)
    own = measure(cells.images)[["area", "intensity"]].assign(side=np.nan)
    own["side"] = np.random.default_rng(0).normal(size=len(own))
    vae = VAE(5, "beta", frame="aligned", **small).fit(cells.images[rows], guides=own.iloc[rows])
    held = own.iloc[180:].reset_index(drop=True)
    checked = check_guides(vae, cells.images[180:], held).set_index("guide")
    assert (checked.r[["area", "intensity"]] > 0.7).all()
    assert checked.name["side"] == "unnamed"                          # nothing in the image says it
    save(vae, tmp_path / "m")
    again = load(tmp_path / "m")
    np.testing.assert_allclose(
        again.inverse_transform(vae.transform(cells.images[:4])), vae.inverse_transform(vae.transform(cells.images[:4]))
    )
    assert again.guide_scale().names == ["area", "intensity", "side"]
    with pytest.raises(ValueError, match="n_factors"): VAE(2, frame="aligned", **small).fit(cells.images, guides=own)


def test_dark_cells_are_drawn_dark(cells):
    dark = 255 - cells.images
    vae = VAE(
        4,
        "beta",
        frame="whole",
        max_steps=60,
        batch_size=32,
        hidden=48,
        widths=(8, 8, 16, 16),
        random_state=0,
        device="cpu",
    ).fit(dark)
    drawn = vae.inverse_transform(vae.transform(dark[:20]))
    middle, edge = drawn[:, 0, 20:28, 20:28].mean((1, 2)), drawn[:, 0, :3].mean((1, 2))
    assert drawn.shape == dark[:20].shape and (middle < edge - 10).mean() > 0.9
    perfect = vae.perfect_drawings(dark[:20])
    assert np.abs(perfect[:, 0, :2].mean() - 255 + np.percentile(cells.images, 25)) < 12


def test_features_move_the_drawing_and_nothing_else():
    torch.manual_seed(0)
    blocks = ConvBlocks(1, (4, 4)).train()
    x, d = torch.rand(8, 1, 32, 32), torch.rand(8, 1, 32, 32, requires_grad=True)
    state = {k: v.clone() for k, v in blocks.state_dict().items()}
    with fixed_statistics(blocks): feature_loss(blocks, d, x).backward()
    assert d.grad.abs().sum() > 0 and all(p.grad is None for p in blocks.parameters())
    assert all(torch.equal(v, state[k]) for k, v in blocks.state_dict().items())
    assert as_image(torch.zeros(1, 1, 8, 8), [-1], [0.7], (16, 16)).eq(0.7).all()


def test_a_critic_draws_and_does_not_learn(cells):
    """Its filters pull at the drawing: with it the same training ends elsewhere, and the critic is as it was."""
    from cellinterp.laws.blackbox import BlackBoxClassifier
    small = dict(widths=(4, 4, 8, 8), batch_size=16, random_state=0, device="cpu")
    critic = BlackBoxClassifier(max_steps=3, **small).fit(cells.images[:40], cells.labels[:40])
    before = {k: v.clone() for k, v in critic.module_.state_dict().items()}
    frame = AlignedFrame(size=None, span=1.0, sigma=0.6, features=0.3)
    drawn = [
        VAE(3, "beta", frame=frame, hidden=16, max_steps=4, **small).fit(cells.images[:40], critic=c).history_
        for c in (critic, None)
    ]
    assert drawn[0].features.iloc[0] != pytest.approx(drawn[1].features.iloc[0], rel=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in critic.module_.state_dict().items())
    with pytest.raises(ValueError, match="critic"):
        VAE(3, frame=frame, max_steps=1, **small).fit(cells.images[:40], critic=3)


def test_only_mild_views_keep_size_and_brightness():
    """Of discs in views of zoom 0.1 and gain 0.2, those marked mild stay within 0.03 and 0.05; the others do not."""
    r = np.hypot(*np.mgrid[-24:24, -24:24])
    x = torch.as_tensor((r < 12).astype(np.float32)).expand(400, 1, 48, 48).clone()
    mild = torch.arange(400) % 2 == 0
    torch.manual_seed(0)
    light = AlignedFrame().view(x, mild).amax((1, 2, 3))
    assert (light[mild] - 1).abs().max() < 0.0501 and (light[~mild] - 1).abs().max() > 0.15


def test_what_several_guides_say_together_is_left_out():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc"))
    table["sum"] = table.a + table.b + table.c                        # with none of them alone by more than about .6
    used, told = choose_guides(table, 300)
    assert list(used) == ["a", "b", "c"] and told.why[3].startswith("goes with a, b, c together")


def test_leakage_is_between_nothing_and_everything():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(300, 2))
    assert leakage(rng.normal(size=(300, 3)), t) < 0.05 and leakage(t @ rng.normal(size=(2, 2)), t) > 0.99


# --- sentences

def test_a_law_says_what_it_does():
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(600, 3))
    y = np.array(["small", "large", "bright"])[np.stack([-2 * Z[:, 0], 2 * Z[:, 0], 1.5 * Z[:, 1]], 1).argmax(1)]
    law, values = LogisticRegression().fit(Z, y), pd.DataFrame({"area": 100 + 10 * Z[:, 0]})
    read = read_law(law, Z, ["area, r = 1", "intensity", "unnamed"], values=values, units={"area": "µm²"})
    lines = read.lines()
    assert (
        lines["small"].startswith("smaller (area −")
        and "µm²" in lines["small"]
        and lines["bright"].startswith("brighter")
    )
    assert decision_shares(law, Z)[2] < 0.05 and read.named_share > 0.9
    assert read_law(law, Z, ["unnamed"] * 3).named_share == 0
    assert "<script" not in read_law(law, Z, ["<script>", "b", "c"])._repr_html_()
