"""Disentanglement scores on the installed package: answers known by hand, slow references, invariances, bad input."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellinterp.factors.metrics import (
    LEARNERS,
    active,
    beta_vae_score,
    dci,
    disentanglement,
    explicitness,
    factor_vae_score,
    gaussian_total_correlation,
    importances,
    in_bins,
    irs,
    mig,
    mig_sup,
    modularity,
    mutual_information,
    sap,
    udr,
)

N = 2000
V = np.random.default_rng(0).uniform(-1.7, 1.7, (N, 2))
TURNED = V @ np.array([[1, -1], [1, 1]]) / 2**.5
# of a plug-in estimate, as a share of H(v)
BIAS = 19**2 / (2 * N) / np.log(20)
GAPS = dict(
    mig=mig,
    mig_sup=mig_sup,
    sap=sap,
    modularity=modularity,
    disentanglement=lambda Z, V: dci(Z, V)["disentanglement"],
    completeness=lambda Z, V: dci(Z, V)["completeness"],
)
HELD = dict(beta=beta_vae_score, factor=factor_vae_score)


@pytest.mark.parametrize("name", GAPS)
def test_one_for_one_is_one_and_turned_by_45_degrees_is_nothing(name):
    assert GAPS[name](V, V) >= 1 - 1.5 * BIAS and GAPS[name](V, V) <= 1
    assert GAPS[name](TURNED, V) < 0.05


@pytest.mark.parametrize("name", HELD)
def test_holding_a_factor_fixed(name):
    assert HELD[name](V, V) == 1
    # chance between two factors, four standard errors
    assert abs(HELD[name](TURNED, V) - 0.5) < 4 * (0.25 / 300) ** .5


def test_columns_vote_in_units_of_their_own_variance():
    three = np.random.default_rng(1).uniform(-1.7, 1.7, (N, 3))
    for f in HELD.values(): assert f(three * [1, 30, .2], three) == 1


def test_mutual_information_of_counts():
    "Two bits that agree in 3 of 4 cases: I = ln 2 − H(1/4), by hand."
    v = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 10)
    z = np.tile([0, 0, 0, 1, 1, 1, 1, 0], 10)
    I, H = mutual_information(z[:, None].astype(float), v[:, None])
    assert H[0] == pytest.approx(np.log(2)) and I[0, 0] == pytest.approx(
        np.log(2) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75)
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_mutual_information_against_a_double_loop(seed):
    rng = np.random.default_rng(seed)
    v, z = rng.integers(0, 4, 200), rng.normal(size=200)
    b = in_bins(z)
    total = 0.0
    for i in set(b):
        for k in set(v):
            p = np.mean((b == i) & (v == k))
            if p: total += p * np.log(p / (np.mean(b == i) * np.mean(v == k)))
    assert mutual_information(z[:, None], v[:, None])[0][0, 0] == pytest.approx(total, abs=1e-9)


def test_a_repeated_column():
    "It costs the gaps between columns, and nothing that asks about one column at a time."
    all_twice = np.c_[V, V]
    assert mig(all_twice, V) == pytest.approx(0, abs=1e-9) and sap(all_twice, V) == pytest.approx(0, abs=1e-9)
    assert (
        modularity(all_twice, V) > 0.99
        and mig_sup(all_twice, V) > 1 - 1.5 * BIAS
        and dci(all_twice, V)["disentanglement"] > 0.95
    )
    assert gaussian_total_correlation(all_twice) > 10                                     # infinite but for rounding


def test_constant_columns_are_ignored():
    padded = np.c_[np.full(N, 3.0), V, 1e-3 * np.random.default_rng(1).normal(size=N)]
    assert active(padded).tolist() == [False, True, True, False]
    assert disentanglement(padded, V) == disentanglement(V, V)


@settings(max_examples=6, deadline=None)
@given(
    order=st.permutations(range(3)), signs=st.tuples(*3 * [st.sampled_from([-1, 1])]), factors=st.permutations(range(2))
)
def test_order_sign_and_scale_do_not_matter(order, signs, factors):
    Z = np.c_[TURNED + 0.3 * V, V[:, 0] * V[:, 1]][:800]
    other, W = (Z * signs * 3)[:, list(order)], V[:800][:, list(factors)]
    for f in (mig, mig_sup, modularity, sap):
        assert f(other, W) == pytest.approx(f(Z, V[:800]), abs=0.03)
    assert irs(other, W) == pytest.approx(irs(Z, V[:800]), abs=1e-6) and explicitness(other, W) == pytest.approx(
        explicitness(Z, V[:800]), abs=0.01
    )
    for f in HELD.values():
        assert f(other, W) == pytest.approx(f(Z, V[:800]), abs=0.12)  # other draws
    assert udr([Z, other]).min() == pytest.approx(udr([Z, Z]).min(), abs=1e-9)


def test_a_monotone_change_of_scale_does_not_move_the_information_scores():
    for f in (mig, mig_sup, modularity): assert f(np.exp(TURNED + V), V) == pytest.approx(f(TURNED + V, V), abs=1e-9)


def test_mig_by_hand():
    "Bits flipped with known probabilities: 0.1 and 0.3 for the first factor, 0.2 for the second."
    rng = np.random.default_rng(3)
    v = rng.integers(0, 2, (4000, 2))
    def flip(p, k):
        return np.where(rng.random(4000) < p, 1 - v[:, k], v[:, k])
    Z = np.stack([flip(.1, 0), flip(.3, 0), flip(.2, 1)], 1).astype(float)
    # information of a bit flipped with probability p
    def h(p):
        return np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    assert mig(Z, v) == pytest.approx(((h(.1) - h(.3)) + h(.2)) / 2 / np.log(2), abs=.03)
    assert mig_sup(Z, v) == pytest.approx((h(.1) + h(.3) + h(.2)) / 3 / np.log(2), abs=.03)


def test_modularity_by_hand():
    rng = np.random.default_rng(3)
    # the OR: knows equally much of both
    v = rng.integers(0, 2, (20000, 2))
    z = (v[:, 0] + 2 * v[:, 1] > 0).astype(float)
    assert modularity(z[:, None], v) == pytest.approx(0, abs=.02)
    three = np.c_[v, rng.integers(0, 2, 20000)]
    assert modularity(z[:, None], three) == pytest.approx(.5, abs=.02)                     # 1 − I² / (2 I²)


@pytest.mark.parametrize("learner", LEARNERS)
def test_importances_follow_a_known_mixture(learner):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(600, 3))
    truth = np.c_[Z[:, 0], 2 * Z[:, 1] + 1 * Z[:, 2]]
    R, score = importances(Z, truth, learner)
    assert (
        R.sum(0) == pytest.approx([1, 1])
        and R[0, 0] > 0.95
        and R[1, 1] > R[2, 1] > 0.1
        and R[0, 1] < 0.05
        and score.min() > 0.7
    )
    if learner == "lasso": assert R[1, 1] / R[2, 1] == pytest.approx(2, rel=.1)


def test_dci_by_hand(monkeypatch):
    from cellinterp.factors import metrics
    R = np.array([[.5, 0], [.5, .5], [0, .5]])
    monkeypatch.setattr(metrics, "importances", lambda *a: (R, np.array([.8, .6])))
    score = metrics.dci(None, None)
    assert (
        score["disentanglement"] == pytest.approx(0.25 * 1 + 0.5 * 0 + 0.25 * 1)
        and score["completeness"] == pytest.approx(1 - np.log(2) / np.log(3))
        and score["informativeness"] == pytest.approx(0.7)
    )


def test_classes_are_predicted_not_correlated():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 900)
    Z = np.c_[np.array([0, 5, -5])[kind] + rng.normal(size=900), rng.normal(size=900)]
    truth = pd.DataFrame({"kind": np.array(list("abc"))[kind], "size": Z[:, 1]})
    coin = rng.integers(0, 2, 9000)
    def flip(p):
        return np.where(rng.random(9000) < p, 1 - coin, coin).astype(float)
    bits = sap(np.stack([flip(.1), flip(.3)], 1), pd.DataFrame({"side": coin == 1}))
    # above always saying the commoner class
    assert bits == pytest.approx((.9 - .5) / .5 - (.7 - .5) / .5, abs=.04)
    assert sap(Z, truth) > .9 and dci(Z, truth)["informativeness"] > .9 and mig(Z, truth) > .7


def test_irs_within_a_bin():
    "Uniform columns: a twentieth of the range is left in a bin; turned by 45° half of it is the other factor's."
    assert irs(V, V) == pytest.approx(0.95, abs=0.01) and irs(TURNED, V) == pytest.approx(
        1 - 0.99 / (2 * (1 - 0.1)), abs=0.03
    )


def test_explicitness_bounds():
    # linear: what is there can be read off
    assert explicitness(TURNED, V) == pytest.approx(explicitness(V, V), abs=.01)
    assert abs(explicitness(np.random.default_rng(5).normal(size=(N, 4)), V) - .5) < .04


@pytest.mark.parametrize(
    "cov,nats",
    [
        ([[1, 0.8], [0.8, 1]], -0.5 * np.log(0.36)),
        ([[4, 0], [0, 1]], 0),
        ([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]], -0.5 * np.log(0.5)),
    ],
)
def test_gaussian_total_correlation(cov, nats):
    Z = np.random.default_rng(0).multivariate_normal(np.zeros(len(cov)), cov, 20000)
    assert gaussian_total_correlation(Z) == pytest.approx(nats, abs=0.02)


def test_udr_ranks_seeds_that_agree_above_those_that_do_not():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1500, 4))
    def spin():
        return np.linalg.qr(rng.normal(size=(4, 4)))[0]
    agree, differ = udr([truth, -truth[:, ::-1], truth[:, [1, 0, 3, 2]]]), udr([truth @ spin() for _ in range(3)])
    assert agree.shape == (3,) and agree.min() > .85 > .6 > differ.max()
    # collapsed columns take no part
    assert udr([truth, np.c_[truth, np.zeros((1500, 2))]]) == pytest.approx(udr([truth, truth]))
    # two columns, correlation r between the models' unmatched ones: by hand from eq. 3
    a = truth[:, :1]
    b = a + truth[:, 1:2]
    r = abs(pd.Series(a[:, 0]).corr(pd.Series(b[:, 0]), method="spearman"))
    assert udr([a, b]) == pytest.approx([r, r])                                             # r² / r on either side
    # one column against two: (1² / 1 + r² / r + 1² / (1 + r)) / 3
    both = np.c_[a, b]
    assert udr([a, both]) == pytest.approx([(1 + r + 1 / (1 + r)) / 3] * 2)


def test_nothing_active_scores_nothing():
    dead = np.zeros((N, 3))
    scores = disentanglement(dead, V)
    assert (
        scores["mig"] == scores["sap"] == scores["dci_disentanglement"] == scores["active_units"] == 0
        and scores["factor_vae"] == 0.5
        and np.isfinite(list(scores.values())).all()
    )


@pytest.mark.parametrize(
    "Z,truth,match",
    [
        (V[:, 0], V, r"\(N, d\)"),
        (V, V[:9], "as many rows"),
        (V[:9], V[:9], "at least 20"),
        (np.where(V > 1, np.nan, V), V, "finite"),
        (V, np.where(V > 1, np.nan, V), "finite"),
        (V, np.c_[V, np.ones(N)], "2 does not vary"),
    ],
)
@pytest.mark.parametrize(
    "score", [mig, sap, irs, dci, factor_vae_score, beta_vae_score, explicitness, modularity, mig_sup]
)
def test_bad_input(score, Z, truth, match):
    with pytest.raises(ValueError, match=match):
        score(Z, truth)


def test_udr_bad_input():
    with pytest.raises(ValueError, match="at least two models"): udr([V])
    with pytest.raises(ValueError, match="same images"): udr([V, V[:10]])
    with pytest.raises(ValueError, match="'forest', 'lasso', 'boosting'; got 'tree'"): dci(V, V, learner="tree")


def test_factors_as_people_keep_them():
    "Numbers among texts, a class of two rows, two columns of one name, an identifier a row."
    Z, r = V[:200], np.random.default_rng(0)
    mixed = np.array([["x" if a > 0 else "y", float(b)] for a, b in Z], dtype=object)
    named = pd.DataFrame({"0": np.where(Z[:, 0] > 0, "x", "y"), "1": Z[:, 1]})
    assert mig(Z, mixed) == mig(Z, named) and explicitness(Z, mixed) == explicitness(Z, named)
    assert mig(Z, pd.DataFrame(Z).astype(object)) == mig(Z, Z)
    for seed in range(5):
        rare = pd.DataFrame(dict(a=np.isin(np.arange(200), r.choice(200, 2, replace=False)), b=Z[:, 1]))
        assert np.isfinite([sap(Z, rare, seed), explicitness(Z, rare, random_state=seed)]).all()
        assert np.isfinite(importances(Z, rare, random_state=seed)[1]).all()
    with pytest.raises(ValueError, match="True of a occurs in one row"): sap(Z, named.assign(a=np.arange(200) == 7))
    with pytest.raises(ValueError, match="of id occurs in one row"):
        explicitness(Z, named.assign(id=list(map(str, range(200)))))
    with pytest.raises(ValueError, match="two columns are called q"): mig(Z, pd.DataFrame(Z, columns=["q", "q"]))
