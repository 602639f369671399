"""Affinity-VAE: the loss, the schedules, the splats and the matrices against what is known; and what must be refused.
"""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from cellinterp.data.glyphs import render_glyphs
from cellinterp.factors.affinity import (
    SCHEDULES,
    AffinityVAE,
    affinity_loss,
    annealing,
    equivariance_loss,
    invariance_loss,
    on_group,
    pose_rotation,
)
from cellinterp.factors.affinity_matrices import (
    affinity_map,
    affinity_matrix,
    check_affinity,
    fourier_correlation,
    read_affinity,
    soap_affinity,
    spread_similarity,
)
from cellinterp.factors.splats import SplatDecoder, axis_points, render_splats
from cellinterp.training import load, save
from cellinterp.training.augment import random_turns, turned
from cellinterp.training.images import pad_to

SMALL = dict(
    n_factors=3, capacity=2, depth=3, hidden=8, n_splats=6, max_steps=4, batch_size=8, device="cpu", random_state=0
)


@pytest.fixture(scope="module")
def glyphs(): return render_glyphs("abe", 24, noise=.05, size=32)


@pytest.fixture(scope="module")
def affinity():
    return pd.DataFrame(
        [[1, 0.2, 0.8, -0.3], [0.2, 1, 0.4, 0], [0.8, 0.4, 1, 0.1], [-0.3, 0, 0.1, 1]],
        index=list("abez"),
        columns=list("abez"),
    )


# ---- the loss

@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 9), d=st.integers(1, 5), seed=st.integers(0, 10**6), missing=st.floats(0, .9))
def test_the_affinity_loss_is_that_of_a_double_loop(n, d, seed, missing):
    r = np.random.default_rng(seed)
    mu, A = r.normal(size=(n, d)), np.clip(r.normal(size=(4, 4)), -1, 1)
    A = (A + A.T) / 2
    np.fill_diagonal(A, 1)
    codes = np.where(r.random(n) < missing, -1, r.integers(0, 4, n))
    terms = [abs(mu[i] @ mu[j] / np.linalg.norm(mu[i]) / np.linalg.norm(mu[j]) - A[codes[i], codes[j]])
             for i in range(n) for j in range(i + 1, n) if codes[i] >= 0 and codes[j] >= 0]
    ours = affinity_loss(torch.tensor(mu), torch.tensor(codes), torch.tensor(A)).item()
    assert ours == pytest.approx(np.mean(terms) if terms else 0, abs=1e-9)


def test_gradients_of_the_affinity_loss_pull_two_images_of_a_class_together():
    mu = torch.tensor([[1., 0], [0, 1]], requires_grad=True)
    affinity_loss(mu, torch.tensor([0, 0]), torch.eye(2)).backward()
    moved = mu - .1 * mu.grad
    assert torch.cosine_similarity(moved[:1], moved[1:]) > 0 and torch.isfinite(mu.grad).all()
    mu = torch.zeros(3, 2, requires_grad=True)
    affinity_loss(mu, torch.tensor([0, 0, 1]), torch.eye(2)).backward()
    assert torch.isfinite(mu.grad).all()                                                     # codes of zero length


@given(
    kind=st.sampled_from(SCHEDULES),
    n=st.integers(1, 60),
    cycles=st.integers(1, 80),
    ratio=st.floats(0.01, 1),
    low=st.floats(0, 2),
    high=st.floats(0, 2),
)
def test_schedules_are_finite_and_stay_in_range(kind, n, cycles, ratio, low, high):
    w = annealing(kind, n, high, low, cycles, ratio)
    assert (
        w.shape == (n,)
        and np.isfinite(w).all()
        and w.min() >= min(low, high) - 1e-9
        and w.max() <= max(low, high) + 1e-9
    )


def test_cyclic_schedules_restart_and_hold():
    for kind in SCHEDULES[2:]:
        w = annealing(kind, 40, 2.0, 0.0, 4, .5)
        assert (
            np.allclose(w[::10], 0)
            and np.allclose(w[5:10], 2)
            and np.allclose(w[:10], w[30:])
            and (np.diff(w[:6]) > 0).all()
        )
    # slower starts
    assert (
        annealing("cyclic-sigmoid", 40, n_cycles=1, ratio=1)[10]
        < annealing("cyclic-cosine", 40, n_cycles=1, ratio=1)[10]
        < 0.25
    )


# ---- rotations and splats

def test_a_pose_of_unit_length_and_the_rotation_it_stands_for():
    torch.manual_seed(0)
    for k, n in ((2, 2), (3, 6)):
        raw = 5 * torch.randn(20, n)
        pose = on_group(raw, k)
        R = pose_rotation(pose, k)
        assert torch.allclose(R @ R.mT, torch.eye(k).expand(20, k, k), atol=1e-5) and torch.allclose(
            torch.linalg.det(R), torch.ones(20), atol=1e-5
        )
        assert torch.allclose(on_group(pose, k), pose, atol=1e-6) and torch.allclose(
            pose_rotation(raw, k), R, atol=1e-5
        )
    raw = torch.randn(4, 3)
    assert on_group(raw, 2) is raw


def test_turns_compose():
    "Turned by A and then by B is turned by B A; a smooth image, so that interpolation costs little."
    torch.manual_seed(1)
    for k in (2, 3):
        A, B = random_turns(3, k), random_turns(3, k)
        x = render_splats(.6 * torch.rand(3, 6, k) - .3, torch.rand(3, 6, 1), torch.full((3, 6), .15), (24,) * k)
        twice, once = turned(turned(x, A, "zeros"), B, "zeros"), turned(x, B @ A, "zeros")
        assert (twice - once).square().mean() < 2e-3 * x.var() < (twice - turned(x, A @ B.mT, "zeros")).square().mean()


@pytest.mark.parametrize("shape", [(24, 24), (20, 28), (20, 20, 20), (16, 20, 24)])
def test_turning_the_pose_turns_the_drawing(shape):
    torch.manual_seed(0)
    k = len(shape)
    decoder = SplatDecoder(3, 2, shape, n_splats=8, widths=(.18, .3))
    with torch.no_grad():
        bias = decoder.points[-1].bias.view(8, k + 3)
        bias[:, :k] *= 0.5
        bias[:, k:-1] = torch.rand(8, 2)
        z, R, T = torch.randn(4, 3), random_turns(4, k), random_turns(4, k)
        a, b = decoder(z, T @ R), turned(decoder(z, R), T, "zeros")
    inside = (
        torch.stack(torch.meshgrid(*[axis_points(s, max(shape)) for s in shape], indexing="ij")).square().sum(0)
        < (0.9 * min(shape) / max(shape)) ** 2
    )
    error, other = ((a - v).square()[..., inside].mean() / a.var() for v in (b, decoder(z, R).detach()))
    assert error < 3e-3 < .1 < other


def test_splats_against_their_definition_and_gradients():
    torch.manual_seed(0)
    for shape in ((5, 7), (4, 6, 5)):
        k = len(shape)
        c, w, s = (
            (torch.rand(2, 3, k).double() * 2 - 1),
            torch.randn(2, 3, 2).double(),
            0.1 + 0.3 * torch.rand(2, 3).double(),
        )
        grid = torch.stack(
            torch.meshgrid(*[axis_points(n, max(shape), dtype=torch.double) for n in shape], indexing="ij")[::-1], -1
        )
        d2 = (grid[None, None] - c.view(2, 3, *[1] * k, k)).square().sum(-1)
        slow = torch.einsum("bnc,bn...->bc...", w, torch.exp(-d2 / (2 * s.view(2, 3, *[1] * k) ** 2)))
        assert torch.allclose(render_splats(c, w, s, shape), slow, atol=1e-12)
        assert torch.autograd.gradcheck(lambda *a: render_splats(*a, shape), [v.requires_grad_() for v in (c, w, s)])


def test_gradients_reach_the_rotation_through_the_splats():
    torch.manual_seed(0)
    for k, n in ((2, 2), (2, 1), (3, 6), (3, 1)):
        decoder = SplatDecoder(2, 1, (6,) * k, n_splats=3, hidden=4, widths=(.2, .5)).double()
        z, pose = torch.randn(2, 2).double().requires_grad_(), torch.randn(2, n).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, p: decoder(z, pose_rotation(on_group(p, k), k)), (z, pose))


def test_the_equivariance_loss_knows_a_pose_that_follows():
    for k in (2, 3):
        frame, t = random_turns(5, k), random_turns(10, k)
        assert (
            equivariance_loss(t @ torch.cat([frame, frame]), t)
            < 1e-10
            < 0.2
            < equivariance_loss(t.mT @ torch.cat([frame, frame]), t)
        )


def test_the_invariance_loss_has_no_scale():
    a, b = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    both = invariance_loss(torch.cat([a, a + .1 * b]))
    assert (
        0 < both < 0.02
        and torch.allclose(invariance_loss(5 + 30 * torch.cat([a, a + 0.1 * b])), both, rtol=1e-3)
        and 0.8 < invariance_loss(torch.cat([a, b])) < 1.2
    )
    assert torch.isfinite(invariance_loss(torch.zeros(4, 2, requires_grad=True)))


# ---- the estimator

def test_the_loss_is_the_sum_of_its_weighted_parts(glyphs, affinity):
    m = AffinityVAE(affinity=affinity, beta=.2, gamma=.7, **SMALL).fit(glyphs.images, glyphs.labels)
    h = m.history_.iloc[0]
    assert h.loss == pytest.approx(h.reconstruction + .2 * h.kl + .7 * h.affinity, rel=1e-5)
    summed = (
        AffinityVAE(affinity=affinity, beta=0.2, gamma=0.7, kl="sum", **SMALL)
        .fit(glyphs.images, glyphs.labels)
        .history_.iloc[0]
    )
    # three factors, the same first step
    assert summed.kl == pytest.approx(3 * h.kl, rel=1e-4)


def test_schedules_reach_the_loss_by_epoch(glyphs, affinity):
    options = dict(SMALL, max_steps=None, n_epochs=4, learning_rate=1e-9)
    m = AffinityVAE(affinity=affinity, beta=0, gamma=[0, 1, 2, 4], **options).fit(glyphs.images, glyphs.labels)
    weight = (m.history_.loss - m.history_.reconstruction) / m.history_.affinity
    assert np.allclose(weight.to_numpy().reshape(4, 3), np.array([0, 1, 2, 4])[:, None], atol=1e-3)
    ramp = AffinityVAE(affinity=affinity, gamma=3.0, gamma_schedule="ramp", **options).fit(glyphs.images, glyphs.labels)
    assert np.allclose(ramp.gamma_, [0, 1, 2, 3]) and ramp.n_epochs_ == 4


def test_without_gamma_and_pose_it_is_a_beta_vae(glyphs, affinity):
    "Labels and affinity change nothing then."
    plain = AffinityVAE(n_pose=0, **SMALL).fit(glyphs.images)
    told = AffinityVAE(n_pose=0, affinity=affinity, gamma=0, **SMALL).fit(glyphs.images, glyphs.labels)
    assert np.array_equal(plain.transform(glyphs.images), told.transform(glyphs.images)) and plain.pose(
        glyphs.images
    ).shape == (24, 0)
    assert list(plain.history_.columns) == ["step", "loss", "reconstruction", "kl"]


def test_missing_labels_are_left_out_of_the_affinity_only(glyphs, affinity):
    some = np.where(np.arange(24) < 12, glyphs.labels, "")
    m = AffinityVAE(affinity=affinity, **SMALL).fit(glyphs.images, some)
    with_none = AffinityVAE(affinity=affinity, **SMALL).fit(glyphs.images, list(some[:12]) + [None] * 12)
    assert list(m.classes_) == ["a", "b", "e"] and np.array_equal(
        m.transform(glyphs.images), with_none.transform(glyphs.images)
    )


@pytest.mark.parametrize(
    "shape, options",
    [
        ((1, 32, 32), {}),
        ((3, 37, 32), dict(views="turned")),
        ((1, 32, 32), dict(decoder="splats", views="swapped")),
        ((2, 33, 41), dict(decoder="splats", n_pose=1, refine=True, views="swapped")),
        ((1, 32, 32), dict(n_pose=0, decoder="splats")),
        ((1, 32, 32), dict(n_pose=5)),
        ((1, 32, 32), dict(reconstruction="bce")),
        ((1, 32, 32, 32), dict(views="swapped")),
        ((2, 34, 32, 33), dict(decoder="splats", views="swapped")),
        ((1, 32, 32, 32), dict(decoder="splats", n_pose=1, views="turned")),
    ],
)
def test_images_and_volumes_of_any_size_go_in_and_come_back(shape, options, affinity, tmp_path):
    images = (np.random.default_rng(0).random((12, *shape)) * 4000).astype(np.uint16)
    model = AffinityVAE(affinity=affinity, **{**SMALL, "max_steps": 2, **options}).fit(images, ["a", "b", "e"] * 4)
    Z, pose = model.transform(images), model.pose(images)
    expected = options.get("n_pose", {3: 2, 4: 6}[len(shape)])
    assert Z.shape == (12, 3) and pose.shape == (12, expected) and Z.dtype == np.float32
    back = model.inverse_transform(Z, pose)
    assert (
        back.shape == images.shape
        and np.array_equal(back, model.reconstruct(images))
        and model.inverse_transform(Z[:2]).shape == (2, *shape)
    )
    assert np.allclose(
        np.square(back - images).reshape(12, shape[0], -1).sum(2)
        @ (1 / np.square(model.image_high_ - model.image_low_)),
        model.reconstruction_error(images),
        rtol=1e-2,
    )
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert (
        np.array_equal(again.transform(images), Z)
        and np.array_equal(again.pose(images), pose)
        and np.array_equal(again.inverse_transform(Z, pose), back)
    )
    assert (
        again.affinity_.equals(model.affinity_)
        and np.isfinite(model.score(images))
        and model.reconstruction_percentile(images).max() <= 100
    )


def test_a_drawing_is_cropped_where_the_image_was_padded(monkeypatch):
    "A decoder that answers the padded image itself: what comes back must be the image, to the pixel."
    images = np.random.default_rng(0).random((8, 1, 33, 45)).astype(np.float32)
    model = AffinityVAE(**{**SMALL, "max_steps": 1}).fit(images)
    padded = pad_to(model._scaled(torch.from_numpy(images)), 8)
    monkeypatch.setattr(model.module_, "draw", lambda z, pose: padded)
    assert (
        np.allclose(model.inverse_transform(np.zeros((8, 3))), images, atol=1e-5)
        and model.reconstruction_error(images).max() < 1e-6
        and model.score(images) > 0.9999
    )


def test_swapped_views_are_drawn_from_the_others_content(monkeypatch):
    model = AffinityVAE(**{**SMALL, "max_steps": 1}).fit(render_glyphs("ab", 8, size=32).images)
    net, x = model.module_.eval(), torch.rand(6, 1, 32, 32)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    with torch.no_grad():
        mu, _, pose = net.encode(x)
        other = torch.cat([mu[3:], mu[:3]])
        assert (
            torch.equal(net(x, True)[3], net.draw(other, pose))
            and torch.equal(net(x)[3], net.draw(mu, pose))
            and not torch.allclose(net.draw(other, pose), net.draw(mu, pose))
        )


def test_the_contract_of_an_estimator(glyphs, affinity, tmp_path):
    m = AffinityVAE(affinity=affinity, **SMALL)
    assert clone(m).get_params()["n_factors"] == 3 and list(m.get_feature_names_out()) == ["z0", "z1", "z2"]
    assert np.array_equal(
        m.fit(glyphs.images, glyphs.labels).transform(glyphs.images),
        clone(m).fit(glyphs.images, glyphs.labels).transform(glyphs.images),
    )
    other = clone(m).set_params(random_state=1).fit(glyphs.images, glyphs.labels)
    assert not np.allclose(m.transform(glyphs.images), other.transform(glyphs.images))
    assert make_pipeline(m, LogisticRegression()).fit(glyphs.images, glyphs.labels).predict(glyphs.images).shape == (
        24,
    )
    broken = clone(m).set_params(checkpoint=str(tmp_path / "c")).fit(glyphs.images, glyphs.labels)
    # nothing is left to do
    resumed = clone(m).set_params(checkpoint=str(tmp_path / "c")).fit(glyphs.images, glyphs.labels)
    assert np.array_equal(broken.transform(glyphs.images), resumed.transform(glyphs.images))


def test_content_learns_the_classes_and_pose_the_angle():
    """250 steps on three letters: classes told apart, cosines near the affinity, and the pose of the drawing turns with
    the image.
    """
    A = affinity_matrix(render_glyphs("ajk", 3, angle=0, size=32), n_rotations=36)
    train, test = render_glyphs("ajk", 600, noise=0.05, size=32, seed=0), render_glyphs(
        "ajk", 90, noise=0.05, size=32, seed=1
    )
    m = AffinityVAE(
        6,
        affinity=A,
        decoder="splats",
        n_splats=32,
        capacity=6,
        depth=3,
        hidden=64,
        views="swapped",
        beta=1e-4,
        max_steps=250,
        batch_size=48,
        random_state=0,
        device="cpu",
    ).fit(train.images, train.labels)
    Z, pose = m.transform(test.images), m.pose(test.images)
    means = np.stack([m.transform(train.images)[train.labels == c].mean(0) for c in m.classes_])
    nearest = m.classes_[np.square(Z[:, None] - means).sum(2).argmin(1)]
    assert (nearest == test.labels).mean() > .9                                              # chance is a third
    relative = np.exp(1j * np.deg2rad(test.factors.angle.to_numpy())) * (pose[:, 0] - 1j * pose[:, 1])
    # 0.2 or less for poses that know nothing
    assert min(abs(relative[test.labels == c].mean()) for c in m.classes_) > .8
    shuffled = m.draw(Z, pose[np.random.default_rng(0).permutation(90)])
    assert m.score(test.images) > .2 and np.square(shuffled - m.draw(Z, pose)).mean() > .5 * m.draw(Z, pose).var()


@pytest.mark.parametrize(
    "options, y, words",
    [
        (dict(gamma=1.0), "labels", "gamma=1.0 needs an affinity"),
        (dict(affinity="A"), None, "needs labels"),
        (dict(affinity="A"), "none", "every label is missing"),
        (dict(affinity="A without b"), "labels", "no row for class 'b'"),
        (dict(affinity="skew"), "labels", "the worst pair is 'a' and 'b'"),
        (dict(affinity="A", gamma=-1), "labels", "0 or more"),
        (dict(affinity="A", gamma=[1.0, 2, 3]), "labels", "expected one value an epoch"),
        (dict(beta="auto"), None, "beta must be a number"),
        (dict(beta=float("nan")), None, "finite"),
        (dict(beta_schedule="cosine"), None, "expected one of 'flat'"),
        (dict(decoder="magic"), None, "decoder must be one of"),
        (dict(views="many"), None, "views must be one of"),
        (dict(kl="max"), None, "kl must be"),
        (dict(depth=6), None, "expected at most depth=5"),
        (dict(depth=0), None, "depth must be at least 1"),
        (dict(n_pose=-1), None, "n_pose must be"),
        (dict(n_pose="two"), None, "n_pose must be"),
        (dict(n_pose=6, decoder="splats"), None, "takes 0, 1, 2"),
        (dict(n_pose=0, views="swapped"), None, "needs a pose"),
        (dict(decoder="splats", reconstruction="bce"), None, 'needs decoder="convolution"'),
        (dict(n_epochs=0, max_steps=None), None, "n_epochs must be"),
        (dict(affinity="A"), "short", "labels came for 24 images"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(options, y, words, glyphs, affinity):
    skew = affinity.copy()
    skew.loc["a", "b"] = 0.3
    known = {"A": affinity, "skew": skew, "A without b": affinity.drop("b").drop(columns="b")}
    if isinstance(options.get("affinity"), str):
        options = {**options, "affinity": known[options["affinity"]]}
    labels = {"labels": glyphs.labels, "none": [""] * 24, "short": glyphs.labels[:-1], None: None}[y]
    model = AffinityVAE(**{**SMALL, **options})
    with pytest.raises(ValueError, match=words):
        model.fit(glyphs.images, labels)
    assert not hasattr(model, "module_")


def test_images_for_volumes_and_other_shapes_are_refused(glyphs):
    flat = AffinityVAE(**SMALL).fit(glyphs.images)
    with pytest.raises(ValueError, match=r"\(N, 1, 32, 32\)"): flat.transform(np.zeros((2, 1, 32, 32, 32)))
    with pytest.raises(ValueError, match=r"factors: shape \(2, 4\); expected"): flat.inverse_transform(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="pose must have the shape"):
        flat.inverse_transform(np.zeros((2, 3)), np.zeros((3, 2)))
    solid = AffinityVAE(**{**SMALL, "max_steps": 1}).fit(np.random.default_rng(0).normal(size=(8, 1, 32, 32, 32)))
    with pytest.raises(ValueError, match=r"\(N, 1, 32, 32, 32\)"): solid.transform(glyphs.images)
    with pytest.raises(ValueError, match="NaN"): AffinityVAE(**SMALL).fit(np.full((4, 1, 32, 32), np.nan))


# ---- the matrices

def test_an_affinity_does_not_depend_on_the_pose_of_its_references():
    upright, anyhow = (
        affinity_matrix(render_glyphs("bdek", 4, angle=a, size=48, seed=5), n_rotations=48) for a in (0, (-180, 180))
    )
    order = sorted(upright.index)
    assert np.abs(upright.loc[order, order] - anyhow.loc[order, order]).to_numpy().max() < .06
    # mirror images are two shapes
    assert upright.loc["b", "d"] < .95


def test_the_search_for_a_rotation_finds_the_best_of_a_fine_brute_force():
    letters = render_glyphs("ek", 2, angle=0, size=32)
    ours = affinity_matrix(letters, method="ncc").iloc[0, 1]
    from cellinterp.factors.affinity_matrices import _ball, _centred, _unit
    x, mask = torch.tensor(_centred(letters.images, "ncc"))[:, None].float(), _ball(32, 2)
    angle = torch.deg2rad(torch.arange(0, 360, .5))
    R = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    # the second onto the first
    brute = float((_unit(turned(x[1].expand(720, 1, 32, 32), R, "zeros"), mask) @ _unit(x[:1], mask).T).max())
    assert brute - .002 < ours < brute + .005


def test_fourier_correlation_of_known_pairs():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(2, 24, 24, 24))
    assert fourier_correlation(x, 3 * x + 2) == pytest.approx(1) and fourier_correlation(x, -x) == pytest.approx(-1)
    assert abs(fourier_correlation(x, y)) < .12 and fourier_correlation(x, x + y) == pytest.approx(2**-.5, abs=.12)


def test_stretching_keeps_the_order_and_the_ones():
    shapes = render_glyphs("aekz", 4, angle=0, size=32)
    plain, wide = affinity_matrix(shapes, n_rotations=24), affinity_matrix(shapes, n_rotations=24, stretch_to=-1)
    off = np.triu_indices(4, 1)
    assert (
        wide.to_numpy().min() == pytest.approx(-1)
        and (np.argsort(plain.to_numpy()[off]) == np.argsort(wide.to_numpy()[off])).all()
        and (np.diag(wide) == 1).all()
    )


def test_matrices_are_checked(affinity):
    assert list(check_affinity(affinity.iloc[::-1], ["z", "a"]).index) == ["z", "a"]          # rows in any order
    for change, words in (
        (lambda A: A.rename(columns={"a": "b"}), "more than once"),
        (lambda A: A.rename(columns={"a": "q"}), "expected the same names"),
        (lambda A: A.iloc[:, :2], "square"),
        (lambda A: A.astype(object).where(A != 0.8, "x"), "text came"),
        (lambda A: A * 2 - np.eye(4), r"\[-1, 1\]"),
        (lambda A: A * 0.9, "the diagonal has 0.9"),
        (lambda A: A.replace(0.8, np.inf), "not a finite number"),
    ):
        with pytest.raises(ValueError, match=words):
            check_affinity(change(affinity))
    bent = affinity.copy()
    bent.iloc[0, 3] += 2e-6
    bent.iloc[1, 2] += 0.1
    with pytest.raises(ValueError, match="the worst pair is 'b' and 'e': 0.5 and 0.4"): check_affinity(bent)
    bent = affinity.copy()
    bent.iloc[0, 3] += 5e-7
    check_affinity(bent)  # within 1e-6


def test_the_authors_files(tmp_path):
    "Their glyph matrices are read as they are; the Fourier shell file is refused until its halves are averaged."
    import os
    from pathlib import Path
    if not os.environ.get("CELLINTERP_DATA"): pytest.skip("CELLINTERP_DATA is not set")
    folder = Path(os.environ["CELLINTERP_DATA"])
    for name in ("affinity_an.csv", "affinity_mnist.csv"):
        A = read_affinity(folder / "affinity_alphanum" / name)
        assert "0" in A.index and "9" in A.columns and (np.diag(A) == 1).all()
    A = read_affinity(folder / "affinity_alphanum" / "affinity_an.csv")
    # SOAP does not tell mirror images apart: kin, after itself
    for a, b in ("bd", "pq"): assert A.loc[a].rank(ascending=False)[b] <= 3
    with pytest.raises(ValueError, match="not symmetric"):
        read_affinity(folder / "affinity_subtomo" / "affinity_fsc_10.csv")
    assert read_affinity(folder / "affinity_subtomo" / "affinity_fsc_10.csv", symmetrize=True).shape == (53, 53)


def test_symmetrize_is_the_mean_whatever_the_order_of_rows(tmp_path):
    A = pd.DataFrame([[1, .2], [.4, 1]], index=["x", "y"], columns=["x", "y"])
    for frame, index in ((A, True), (A.loc[["y", "x"]], True), (A, False)):
        frame.to_csv(tmp_path / "a.csv", index=index)
        assert read_affinity(tmp_path / "a.csv", symmetrize=True).loc["x", "y"] == pytest.approx(.3)
    (tmp_path / "a.csv").write_text("x,y\n1,oops\n0,1\n")
    with pytest.raises(ValueError, match="oops"): read_affinity(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match="is empty"): read_affinity(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "references, names, options, words",
    [
        (np.ones((2, 32, 32)), ["a", "b"], {}, "constant"),
        (np.eye(32)[None].repeat(2, 0), ["a", "a"], {}, "came twice"),
        (np.eye(32)[None], None, {}, "names: none"),
        (np.eye(32)[None], ["a"], dict(method="cosine"), "expected 'ncc'"),
        (np.eye(32)[None], ["a"], dict(method="fsc"), "for volumes"),
        (np.full((1, 32, 32), np.nan), ["a"], {}, "NaN"),
        (np.eye(32)[None], ["a"], dict(resolution=0), "resolution: 0"),
        (np.eye(32)[None], ["a"], dict(r_cut=3), "not an option"),
        (np.eye(32), list(map(str, range(32))), {}, "references: an array of shape"),
    ],
)
def test_references_that_cannot_be_compared(references, names, options, words):
    with pytest.raises(ValueError, match=words):
        affinity_matrix(references, names, **options)


def test_soap_says_what_is_missing():
    import importlib.util
    assert np.allclose(spread_similarity([.9, .99]), [0, .5])
    if importlib.util.find_spec("dscribe"):
        assert np.diag(
            soap_affinity([np.random.default_rng(i).normal(size=(9, 3)) for i in range(2)], r_cut=4.0)
        ) == pytest.approx(1)
    else:
        with pytest.raises(ImportError, match="pip install dscribe"):
            affinity_matrix(np.eye(32)[None], ["a"], "soap")


def test_the_map_of_an_affinity_puts_kin_side_by_side(affinity):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig = affinity_map(affinity)
    shown = [t.get_text() for t in fig.axes[1].get_xticklabels()]
    assert abs(shown.index("a") - shown.index("e")) == 1
    plt.close(fig)
    assert [t.get_text() for t in affinity_map(affinity, cluster=False).axes[0].get_xticklabels()] == list("abez")
    plt.close("all")
