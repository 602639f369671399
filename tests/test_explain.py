"""Attacks, counterfactuals and attributions on the installed package: closed forms, brute force, bad input, peers on
unwrapped modules.
"""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellinterp.data import simulate_nuclei
from cellinterp.explain.attacks import attack, attack_curves, differentiable, half_turned
from cellinterp.explain.counterfactuals import agreement, counterfactuals, measured_change, plot_counterfactuals
from cellinterp.factors import VAE, Head
from cellinterp.laws import BlackBoxClassifier, SparseClassifier, SymbolicClassifier

SMALL = dict(widths=(4, 4, 8, 8), device="cpu", random_state=0)


class Law:
    "A law written down instead of fitted."
    def __init__(self, *texts, d=2):
        self.texts, self.d, self.classes_ = (
            texts,
            d,
            np.array(["no", "yes"] if len(texts) == 1 else list("abcdefg")[: len(texts)]),
        )
    def to_torch(self):
        from cellinterp.laws.torch_form import to_torch
        return to_torch(list(self.texts), [f"z{j}" for j in range(self.d)])


@pytest.fixture(scope="module")
def cells(): return simulate_nuclei(120, size=32, classes=["interphase", "metaphase"], random_state=0)


@pytest.fixture(scope="module")
def black(cells): return BlackBoxClassifier(max_steps=80, **SMALL).fit(cells.images, cells.labels)


@pytest.fixture(scope="module")
def vae(cells):
    return VAE(3, "beta", frame="aligned", head=Head(0.5), hidden=32, max_steps=50, **SMALL).fit(
        cells.images, cells.labels
    )


@pytest.fixture(scope="module")
def Z(cells, vae): return vae.transform(cells.images)


# one differentiable decision

def last_steps():
    quick = dict(engine="operon", max_nodes=7, max_evaluations=500, n_edits=10, target="labels", random_state=0)
    return {
        "law": SymbolicClassifier(**quick),
        "sparse": SparseClassifier(max_steps=30, random_state=0),
        "logistic": LogisticRegression(),
        "sparse then law": make_pipeline(SparseClassifier(max_steps=30, random_state=0), SymbolicClassifier(**quick)),
        "scaled logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    }


@pytest.mark.parametrize("name", last_steps())
@pytest.mark.parametrize("K", [2, 3])
def test_the_function_is_the_model(name, K):
    rng = np.random.default_rng(K)
    X = rng.normal(size=(90, 3)).astype(np.float32)
    y = np.array(list("abc"))[np.digitize(X[:, 0] + X[:, 1] ** 2, [0.4, 1.5] if K == 3 else [0.4])]
    model = last_steps()[name].fit(X, y)
    with torch.no_grad(): P = differentiable(model)(torch.as_tensor(X)).softmax(1).numpy()
    np.testing.assert_allclose(P, model.predict_proba(X), atol=1e-4)


def test_the_function_is_the_model_from_pixels(cells, black, vae):
    x = torch.as_tensor(cells.images[:20].astype(np.float32))
    pipe = make_pipeline(vae, LogisticRegression()).fit(cells.images, cells.labels)
    for model in (black, pipe):
        with torch.no_grad(): P = differentiable(model)(x).softmax(1).numpy()
        np.testing.assert_allclose(P, model.predict_proba(cells.images[:20]), atol=1e-4)
    np.testing.assert_allclose(differentiable(vae)(x).detach().numpy(), vae.transform(cells.images[:20]), atol=1e-5)
    with pytest.raises(TypeError, match="StandardScaler"): differentiable(object())


# attacks

def linear(w, b=0.0): return lambda x: torch.stack([torch.zeros(len(x)), (x * w).flatten(1).sum(1) + b], 1)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    norm=st.sampled_from(["linf", "l2"]),
    steps=st.sampled_from([1, 10]),
    scale=st.sampled_from([1.0, 4.0]),
)
def test_a_plane_is_crossed_at_its_distance(seed, norm, steps, scale):
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(1, 3, 4, generator=g), torch.randn(40, 1, 3, 4, generator=g)
    x = torch.cat([x, torch.tensor([-99.0, 99.0]).view(2, 1, 1, 1).expand(2, 1, 3, 4)])  # the range of the pixels
    radius = ((x * w).flatten(1).sum(1).abs() / (w.abs().sum() if norm == "linf" else w.norm()) / scale)[:40].numpy()
    f = linear(w)
    for eps in (0.03, 0.1):
        new = torch.as_tensor(attack(f, x.numpy(), eps, norm=norm, steps=steps, scale=scale))[:40]
        turned, sure = (f(new).argmax(1) != f(x[:40]).argmax(1)).numpy(), np.abs(radius - eps) > 0.05 * eps
        assert np.array_equal(turned[sure], (radius < eps)[sure])
        moved = ((new - x[:40]) / scale).flatten(1)
        assert (moved.abs().max() if norm == "linf" else moved.norm(dim=1).max()) <= eps * 1.001 + 1e-5


def test_an_attack_keeps_to_the_values_that_pixels_have(cells, black):
    new = attack(differentiable(black), cells.images[:10], .5, scale=black.image_high_ - black.image_low_, steps=5)
    assert new.min() >= cells.images[:10].min() and new.max() <= cells.images[:10].max() and new.dtype == np.float32
    assert np.array_equal(
        attack(differentiable(black), cells.images[:10], 0.5, steps=5),
        attack(differentiable(black), cells.images[:10], 0.5, steps=5),
    )


def test_pgd_is_no_weaker_than_fgsm_and_either_beats_noise(cells, black):
    curves = attack_curves(
        {"black box": differentiable(black)},
        cells.images[:30],
        [0.02, 0.08, 0.3],
        scale=black.image_high_ - black.image_low_,
        steps=8,
    )
    t = curves.pivot(index="epsilon", columns="attack", values="turned")
    assert (t.pgd >= t.fgsm - .04).all() and t.pgd.iloc[-1] > t.noise.iloc[-1] and t.iloc[0].eq(0).all()


def test_pgd_goes_round_a_corner():
    "One step along the first gradient leads away from the boundary; many small ones find it."
    def f(x):
        return torch.stack([torch.zeros(len(x)), 3 * x[:, 0, 0, 0] - 10 * (x[:, 0, 0, 0] * x[:, 0, 0, 1]) - .5], 1)
    x = np.zeros((3, 1, 1, 2), np.float32)
    x[0, 0, 0] = 0.0, 0.29
    x[1], x[2] = -9, 9
    def decide(x):
        return f(torch.as_tensor(x)).argmax(1)[0].item()
    assert decide(x) == decide(attack(f, x, .25, steps=1)) == 0 and decide(attack(f, x, .25, steps=40)) == 1


@pytest.mark.parametrize(
    "turned,half",
    [
        ([0, 0.25, 0.75, 1], 0.15),
        ([0, 0.5, 0.6, 0.7], 0.1),
        ([0, 0.1, 0.2, 0.4], np.inf),
        ([0, 0.6, 0.4, 0.4], 0.1 * 0.5 / 0.6),
    ],
)
def test_half_turned_by_hand(turned, half):
    curve = pd.DataFrame(dict(model="m", attack="pgd", norm="l2", epsilon=[0, 0.1, 0.2, 0.3], turned=turned))
    assert half_turned(curve)["m", "pgd", "l2"] == pytest.approx(half)


@pytest.mark.parametrize(
    "change,match",
    [
        (dict(norm="l1"), "'linf' or 'l2'; got 'l1'"),
        (dict(epsilon=-1.0), "epsilon must be 0 or more"),
        (dict(steps=0), "steps at least 1"),
    ],
)
def test_attack_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        attack(linear(torch.ones(1, 3, 4)), np.zeros((2, 1, 3, 4)), **{**dict(epsilon=0.1), **change})


def test_attack_curves_refuse(): 
    with pytest.raises(ValueError, match="gauss"): attack_curves({}, np.zeros((2, 1, 3, 4)), [.1], attacks=("gauss",))


# counterfactuals

@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_nearest_point_of_a_plane(seed):
    rng = np.random.default_rng(seed)
    w, s, Z = rng.normal(size=3), rng.uniform(.3, 3, 3), rng.normal(size=(40, 3)) * 2
    value = Z @ w
    if min((value > 0).sum(), (value < 0).sum()) == 0: return
    moves = counterfactuals(Law(f"{w[0]}*z0 + {w[1]}*z1 + {w[2]}*z2", d=3), Z, scale=s)
    np.testing.assert_allclose(moves.distance, np.abs(value) / np.linalg.norm(w * s), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moves.after, Z - np.outer(value, w * s**2) / (w @ (w * s**2)), atol=1e-4)


@pytest.mark.parametrize("law", ["4 - z0**2 - z1**2", "z1 - z0**2 + 1/2", "exp(z0) - z1 - 1", "z0*z1 - 1"])
def test_the_nearest_point_against_a_grid(law):
    rng = np.random.default_rng(0)
    Z = rng.uniform(-2.5, 2.5, (25, 2))
    moves = counterfactuals(Law(law), Z, scale=np.ones(2), others=rng.uniform(-3, 3, (400, 2)))
    # 0.01 apart
    axis = np.linspace(-4, 4, 801)
    G = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    inside = eval(law, dict(z0=G[:, 0], z1=G[:, 1], exp=np.exp)) > 0
    for z, d, own in zip(Z, moves.distance, moves.own):
        nearest = np.linalg.norm(G[inside != (own == "yes")] - z, axis=1).min()
        assert nearest - .02 <= d <= nearest * 1.02 + .02
    assert (
        differentiable(Law(law))(torch.as_tensor(moves.at(1.001))).argmax(1).numpy() != (moves.own == "yes")
    ).mean() > 0.95


def test_the_nearest_of_several_classes():
    """The boundary to the class that is asked, here a corner (class c begins at z1 = 2 + |z0|), or to the nearest of
    all.
    """
    law, Z = Law("z0", "-z0", "z1 - 2"), np.array([[1.0, 0.0], [.2, 3.0]])
    others = np.array([[3.0, 0], [-3, 0], [0, 5]])
    to_b, to_c, any_ = (counterfactuals(law, Z[:1], a, scale=np.ones(2), others=others) for a in ("b", "c", None))
    assert (
        to_b.distance[0] == pytest.approx(1)
        and to_c.distance[0] == pytest.approx(5**0.5, rel=1e-3)
        and any_.asked[0] == "b"
        and any_.distance[0] == pytest.approx(1)
    )
    stays = counterfactuals(law, Z[1:], "c", scale=np.ones(2), others=others)
    assert stays.distance[0] == 0 and np.array_equal(stays.after, stays.before)


def test_counterfactuals_refuse():
    law = Law("z0")
    with pytest.raises(ValueError, match="unknown class 'maybe'; the law knows 'no', 'yes'"):
        counterfactuals(law, np.ones((3, 2)), "maybe")
    with pytest.raises(ValueError, match="none of the cells"): counterfactuals(law, np.ones((3, 2)), "no")
    alone = counterfactuals(law, np.ones((3, 2)))
    assert np.isinf(alone.distance).all() and np.array_equal(alone.after, alone.before)


def test_drawn_measured_and_judged(cells, vae, Z, black):
    import matplotlib

    matplotlib.use("agg")
    law = LogisticRegression().fit(Z, cells.labels)
    moves = counterfactuals(law, Z[:30], others=Z)
    table = measured_change(vae, moves)
    from cellinterp.data.morphology import measure
    np.testing.assert_allclose(
        table.area_change,
        measure(vae.inverse_transform(moves.after)).area / measure(vae.inverse_transform(moves.before)).area - 1,
    )
    said = agreement(black, vae, moves, shares=(0, 2))
    assert said.asked[0] == pytest.approx((black.predict(vae.inverse_transform(moves.before)) == moves.asked).mean())
    assert np.allclose(said[["own", "asked", "neither"]].sum(axis=1), 1)
    assert len(plot_counterfactuals(vae, moves, [0, 1], images=cells.images).axes) == 2 * 6
    alike = Z[law.predict(Z) == "interphase"]                             # nowhere to go to from here
    with pytest.raises(ValueError, match="no counterfactual"):
        agreement(black, vae, counterfactuals(law, alike[:3], scale=np.ones(3), others=alike[:1]))


# peers on our modules, unwrapped

def test_captum_takes_the_black_box_as_it_is(cells, black):
    captum = pytest.importorskip("captum.attr")
    x = black._scaled(torch.as_tensor(cells.images[:4].astype(np.float32)))
    base = torch.zeros_like(x)
    A = captum.IntegratedGradients(black.module_).attribute(x, baselines=base, target=1, n_steps=64)
    with torch.no_grad(): gap = black.module_(x)[:, 1] - black.module_(base)[:, 1]
    assert A.shape == x.shape
    # completeness
    torch.testing.assert_close(A.sum((1, 2, 3)).float(), gap, atol=.15, rtol=.1)


def test_captum_takes_a_law_as_it_is():
    "On a·z0 + b the integrated gradient is a·z0, and nothing for the rest."
    captum = pytest.importorskip("captum.attr")
    module, z = Law("2*z0 + z1**2", d=3).to_torch(), torch.tensor([[1.0, 3.0, 5.0]])
    A = captum.IntegratedGradients(module).attribute(z, target=0, n_steps=100)
    torch.testing.assert_close(A.float(), torch.tensor([[2.0, 9.0, 0.0]]), atol=.02, rtol=0)


def test_shap_takes_a_sparse_network_and_a_law_as_they_are():
    shap = pytest.importorskip("shap")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    net = SparseClassifier(max_steps=60, random_state=0).fit(X, y)
    background = torch.as_tensor(X[:50])
    values = np.asarray(
        shap.GradientExplainer(net.module_, background).shap_values(torch.as_tensor(X[:10]), nsamples=100, rseed=0)
    )
    # the third column decides nothing
    assert values.shape == (10, 3, 2) and np.abs(values[:, 2]).max() < .2 * np.abs(values[:, 0]).max()
    law = Law("3*z0 - z1", d=3)
    module = law.to_torch()
    def f(A):
        return module(torch.as_tensor(A)).detach().numpy()[:, 0]
    exact = shap.ExactExplainer(f, X[:50].astype(float))(X[:10].astype(float)).values
    # linear: known
    np.testing.assert_allclose(exact, (X[:10] - X[:50].mean(0)) * [3, -1, 0], atol=1e-4)
