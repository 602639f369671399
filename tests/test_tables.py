"""Tables of laws on the installed package: LaTeX that says what the law says, pairs, and stability over seeds against
hand counts.
"""
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier

from cellinterp.laws import SymbolicClassifier, SymbolicRegressor, regression
from cellinterp.laws.compile import compile_numpy
from cellinterp.laws.forms import power_law, ratio_law
from cellinterp.laws.searching import search_margin
from cellinterp.laws.tables import (
    factor_table,
    latex_table,
    law_table,
    margin_names,
    pairs_table,
    ratio_interval,
    stability,
)
from cellinterp.laws.tree import variables

QUICK = dict(engine="operon", target="labels", max_nodes=9, max_evaluations=1500, n_edits=15, random_state=0)


class Law:
    "A law written down instead of fitted."
    def __init__(self, texts, classes, names):
        from cellinterp.laws.text import complexity, parse
        self.expressions_, self.classes_, self.names_ = texts, np.array(classes), names
        self.parsed = [parse(t, names) for t in texts]
        self.complexity_ = np.array([complexity(e) for e in self.parsed])
        used = {v for e in self.parsed for v in variables(e)}
        self.used_ = [n for n in names if n in used]
    def sympy(self): return self.parsed
    def latex(self):
        from cellinterp.laws.sympy_form import to_latex
        return [to_latex(e) for e in self.parsed]
    def decision_function(self, X):
        F = np.stack([compile_numpy(t, self.names_)(np.asarray(X, float)) for t in self.expressions_], 1)
        return F[:, 0] if F.shape[1] == 1 else F
    def predict(self, X):
        F = self.decision_function(X)
        return self.classes_[(F > 0).astype(int) if F.ndim == 1 else F.argmax(1)]


NAMES = [f"z{j}" for j in range(12)]
X = np.random.default_rng(0).normal(size=(4000, 12))


def test_law_table():
    table = law_table(Law(["2*z10 + z9", "z3*z3", "0.5"], ["a", "b", "c"], NAMES))
    assert (
        table["class"].tolist() == ["a", "b", "c"]
        and table.factors.tolist() == ["z9, z10", "z3", ""]
        and table.nodes.tolist() == [5, 2, 1]
    )
    assert margin_names(Law(["z0"], ["no", "yes"], NAMES)) == ["yes"]


def test_weights_of_a_linear_law():
    "Shuffling w_j z_j moves the margin by w_j |z − z'|, mean 2 w_j / √π; in units of the margin's sd ‖w‖."
    table = factor_table(Law(["3*z0 - z1"], ["no", "yes"], NAMES), X, names=["size"] + [""] * 11)
    assert table.factor.tolist() == ["z0", "z1"] and table.name.tolist() == ["size", ""]
    assert table.weight.to_numpy() == pytest.approx(np.array([3, 1]) * 2 / np.pi**.5 / 10**.5, rel=.05)
    assert table.sd.to_numpy() == pytest.approx([1, 1], rel=.05)


def test_latex_compiles_in_outline_and_escapes_text():
    law = Law(["2*z10 + z9", "z3/z1", "0.5"], ["a_1 & b", "50 %", "c"], NAMES)
    source = latex_table(law, factor_table(law, X, names=["area_µm², r = −0.9"] * 12), caption="A_1", label="tab:law")
    for name in ("table", "tabular"): assert source.count(rf"\begin{{{name}}}") == source.count(rf"\end{{{name}}}") == 1
    rows = [r for r in source.splitlines() if r.endswith(r"\\")]
    assert len(rows) == 2 + 3 + 4 and all(len(re.findall(r"(?<!\\)&", r)) == 2 for r in rows)
    assert (
        r"a\_1 \& b" in source
        and r"50 \%" in source
        and r"area\_\textmu{}m$^2$, r = $-$0.9" in source
        and r"\caption{A\_1}" in source
        and r"\label{tab:law}" in source
    )
    assert source.count("{") == source.count("}") and source.count("$") % 2 == 0
    assert all(ord(c) < 128 for c in source)


def test_pairs_decide_as_they_say():
    y = np.array(["left", "right", "up"])[np.where(X[:400, 1] > .8, 2, (X[:400, 0] > 0).astype(int))]
    model = OneVsOneClassifier(SymbolicClassifier(**QUICK)).fit(X[:400, :3], y)
    table = pairs_table(model)
    for (_, row), law in zip(table.iterrows(), model.estimators_):
        both = np.isin(y, [row.positive, row.negative])
        value = compile_numpy(row.equation, ["z0", "z1", "z2"])(X[:400, :3][both])
        # the sides are named the right way round
        assert ((value > 0) == (y[both] == row.positive)).mean() > .9
    rest = pairs_table(OneVsRestClassifier(SymbolicClassifier(**QUICK)).fit(X[:400, :3], y))
    assert rest.positive.tolist() == ["left", "right", "up"] and set(rest.negative) == {"the rest"}


def test_pairs_refuse():
    y = np.resize([0, 1, 2], 60)
    with pytest.raises(TypeError, match="got LogisticRegression"): pairs_table(LogisticRegression())
    with pytest.raises(TypeError, match="parts must be SymbolicClassifiers; got LogisticRegression"):
        pairs_table(OneVsOneClassifier(LogisticRegression()).fit(X[:60], y))


def test_stability_by_hand():
    laws = [Law([t], ["no", "yes"], NAMES) for t in ("z0", "z0 + z1 - z1", "z2")]
    laws[1].used_ = ["z0", "z1"]
    y = np.where(X[:, 0] > 0, "yes", "no")
    by_law, by_factor = stability(laws, X, y)
    same = np.mean((X[:, 0] > 0) == (X[:, 2] > 0))
    assert by_law.agreement.tolist() == pytest.approx([(1 + same) / 2, (1 + same) / 2, same])
    assert by_law.jaccard.tolist() == pytest.approx([.25, .25, 0]) and by_law.balanced_accuracy.tolist()[:2] == [1, 1]
    assert by_factor.in_laws.to_dict() == pytest.approx({"z0": 2 / 3, "z1": 1 / 3, "z2": 1 / 3})
    assert "balanced_accuracy" not in stability(laws, X)[0]


def test_stability_refuses():
    a, b = Law(["z0"], ["no", "yes"], NAMES), Law(["z0"], ["no", "maybe"], NAMES)
    with pytest.raises(ValueError, match="at least two are needed; got 1"): stability([a], X)
    with pytest.raises(ValueError, match="same classes"): stability([a, b], X)


def decisions(n=400, seed=0):
    "Three wells in ten hold most cells; model a errs less than model b, and both more in some wells."
    r = np.random.default_rng(seed)
    wells, truth = r.choice(10, n, p=np.r_[[.2] * 3, [.4 / 7] * 7]), r.choice(list("pqr"), n, p=[.7, .2, .1])
    hard = r.random(10)[wells]
    return truth, *(np.where(r.random(n) < hard * rate, "p", truth) for rate in (.2, .5)), wells


def test_the_interval_of_a_ratio_against_drawing_the_rows():
    "The slow way: take the rows of the drawn wells, as often as they were drawn, and let scikit-learn score them."
    truth, a, b, wells = decisions()
    tables = np.arange(400) % 2
    of = [[np.flatnonzero((wells == w) & (tables == t)) for w in range(10)] for t in (0, 1)]
    def score(said, drawn):                                              # of classes that were drawn
        return np.mean(
            [
                recall_score(truth[rows], said[rows], labels=np.unique(truth[rows]), average="macro")
                for of_table in of
                for rows in [np.concatenate([np.repeat(r, k) for r, k in zip(of_table, drawn)])]
            ]
        )
    draws = np.random.default_rng(7).multinomial(10, np.full(10, .1), 60)
    slow = [score(a, d) / score(b, d) for d in draws]
    got = ratio_interval(truth, a, b, wells, tables=tables, level=.9, n_draws=60, random_state=7)
    assert got == pytest.approx((score(a, [1] * 10) / score(b, [1] * 10), *np.percentile(slow, [5, 95])))


def test_an_interval_covers_and_knows_what_is_paired():
    """Of a model and itself nothing is left to chance; repeats of the same decisions add nothing; 95 % intervals of
    draws from one population cover its ratio.
    """
    truth, a, b, wells = decisions()
    assert ratio_interval(truth, b, b, wells) == (1, 1, 1)
    twice = [np.tile(v, 2) for v in (truth, a, b, wells)]
    assert ratio_interval(*twice, tables=np.repeat([0, 1], 400)) == pytest.approx(ratio_interval(truth, a, b, wells))
    # 2 classes; a is right .9, b .8 of the time, on the same hard cells; wells of 10 alike
    def sample(seed, wells):
        r = np.random.default_rng(seed)
        n = 10 * wells
        truth, u = r.integers(0, 2, n), .5 * r.random(wells).repeat(10) + .5 * r.random(n)
        return (
            truth,
            np.where(u > np.quantile(REFERENCE, 0.1), truth, 1 - truth),
            np.where(u > np.quantile(REFERENCE, 0.2), truth, 1 - truth),
            np.arange(wells).repeat(10),
        )
    REFERENCE = .5 * np.random.default_rng(0).random(10**6) + .5 * np.random.default_rng(1).random(10**6)
    covered = [
        low <= 0.9 / 0.8 <= high
        for seed in range(200)
        for _, low, high in [ratio_interval(*sample(seed, 40), n_draws=400)]
    ]
    # four standard errors, and a hundredth for the percentile interval's bias
    assert np.mean(covered) > .95 - 4 * (.95 * .05 / 200) ** .5 - .01


def test_an_interval_refuses():
    truth, a, b, wells = decisions(40)
    with pytest.raises(ValueError, match="equally long"): ratio_interval(truth, a, b[:-1], wells)
    with pytest.raises(ValueError, match="groups"): ratio_interval(truth, a, b, wells * 0)
    with pytest.raises(ValueError, match="level"): ratio_interval(truth, a, b, wells, level=95)


# power laws

@pytest.mark.parametrize("a,b,k", [(1, -2, 0.0), (0.5, 1, -0.5), (3, -1, 0.2)])
def test_power_laws_are_found_without_a_search(a, b, k):
    P = np.random.default_rng(0).uniform(1, 4, (80, 3))
    def truth(P):
        return 1.7 * P[:, 0] ** a * P[:, 1] ** b * np.exp(k * P[:, 2] ** 2)
    law = power_law(P, truth(P), ["p", "q", "s"], 24, ("*", "/", "sqrt", "square", "exp"))
    wide = np.random.default_rng(1).uniform(.3, 5, (50, 3))
    np.testing.assert_allclose(compile_numpy(law, ["p", "q", "s"])(wide), truth(wide), rtol=1e-6)
    assert set(variables(law)) == ({"p", "q", "s"} if k else {"p", "q"})


def test_power_laws_keep_to_the_operators():
    P = np.random.default_rng(0).uniform(1, 4, (80, 2))
    names = ["p", "q"]
    assert (
        power_law(P, P[:, 0] ** 0.5, names, 9, ("*", "/")) is None
        and power_law(P, P[:, 0] ** 0.5, names, 9, ("*", "sqrt")) is not None
    )
    assert (
        power_law(P, 1 / P[:, 0], names, 9, ("*",)) is None
        and power_law(P, P[:, 0] ** 0.8, names, 9, ("*", "/", "sqrt")) is None
    )
    assert (
        power_law(P, P[:, 0] - 2, names, 9, ("*", "/")) is None
        and power_law(P, P[:, 0] ** 2 * P[:, 1] ** 2, names, 3, ("*", "/")) is None
    )


def test_an_outer_function_is_searched_from_within():
    "exp of something that is no power law: log y is easy, y is not."
    from cellinterp.laws import SymbolicRegressor
    P = np.random.default_rng(0).uniform(.5, 1.5, (120, 2))
    y = np.exp(P[:, 0] * P[:, 1] - P[:, 1] ** 2)
    model = SymbolicRegressor(
        engine="operon",
        operators=("+", "-", "*", "square", "exp"),
        max_nodes=12,
        max_evaluations=6000,
        n_edits=0,
        random_state=0,
    ).fit(P, y)
    wide = np.random.default_rng(1).uniform(.2, 2, (60, 2))
    np.testing.assert_allclose(model.predict(wide), np.exp(wide[:, 0] * wide[:, 1] - wide[:, 1] ** 2), rtol=1e-3)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_quotients_of_sums_are_found_without_a_search(seed):
    r = np.random.default_rng(seed)
    X, (a, b, c, d) = r.uniform(1, 5, (120, 4)), r.uniform(.3, 3, 4)
    def law(X):
        return (a * X[:, 0] * X[:, 2] + b * X[:, 1] * X[:, 3]) / (c * X[:, 0] + d * X[:, 1])
    found = compile_numpy(ratio_law(X, law(X), list("pqrs"), 25, ("+", "*", "/")), list("pqrs"))
    wide = r.uniform(1, 20, (200, 4))
    np.testing.assert_allclose(found(wide), law(wide), rtol=1e-6)
    assert (
        ratio_law(X, law(X), list("pqrs"), 25, ("+", "*")) is None
        and ratio_law(X, law(X), list("pqrs"), 5, ("+", "*", "/")) is None
    )


def test_a_quotient_bends_little_under_noise():
    r = np.random.default_rng(0)
    X = r.uniform(1, 5, (400, 4))
    mean = (X[:, 0] * X[:, 2] + X[:, 1] * X[:, 3]) / (X[:, 0] + X[:, 1])
    found = ratio_law(X, mean + .01 * r.standard_normal(400), list("pqrs"), 40, ("+", "*", "/"))
    error = compile_numpy(found, list("pqrs"))(X) - mean
    # nearer the truth than a row of data is
    assert np.sqrt(np.square(error).mean()) < .01 and set(variables(found)) == set("pqrs")


def test_a_regression_is_the_same_for_any_number_of_processes(monkeypatch):
    r = np.random.default_rng(0)
    X = r.uniform(1, 3, (90, 2))
    y = np.exp(X[:, 0] / X[:, 1])
    laws = []
    for n in (1, 2):
        monkeypatch.setattr(
            regression,
            "in_processes",
            lambda jobs, n_jobs: Parallel(n_jobs=n)(delayed(search_margin)(**j) for j in jobs),
        )
        laws.append(
            SymbolicRegressor(engine="operon", max_nodes=9, max_evaluations=3000, n_edits=20, random_state=0)
            .fit(X, y)
            .expressions_
        )
    assert laws[0] == laws[1]


def test_predict_gives_no_decision_outside_a_law_s_domain():
    "The logarithm of a negative factor is no class; the table says so in a column of its own."
    from sklearn.pipeline import make_pipeline

    from cellinterp.data import ImageSet
    from cellinterp.runs.predict import predict_table

    class Mean:
        "The brightness less one, as a factor."
        def fit(self, X, y=None): return self
        def transform(self, X): return X.mean((1, 2, 3))[:, None] - 1
        def get_params(self, deep=True): return {}

    law = SymbolicClassifier.from_expressions("log(z0)", ["dim", "bright"], ["z0"])
    model = make_pipeline(Mean(), law)
    images = np.stack([np.full((1, 4, 4), v, dtype=float) for v in (5.0, 1.5, 0.0)])
    table = predict_table(model, ImageSet(images))
    assert table.decision.tolist() == ["bright", "dim", ""]
    assert table.outside_domain.tolist() == [False, False, True] and np.isnan(table.p_bright[2])
    assert "outside_domain" not in predict_table(model, ImageSet(images[:2]))
