"""Sparse networks on the installed package: the path, resuming, the set of all good models, the diagram; and the inner
split that all laws share.
"""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellinterp.data.splits import inner_split
from cellinterp.laws import SparseClassifier, epsilon_set, plot_network, plot_path


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(300, 5)).astype(np.float32)
    return Z, np.where(Z[:, 1] + Z[:, 3] > 0, "on", "off")


@pytest.fixture(scope="module")
def model(data): return SparseClassifier(max_steps=60, random_state=0).fit(*data)


def test_path_says_what_each_network_uses(model, data):
    path = model.path_
    assert list(path.columns) == ["stage", "inputs", "weights", "balanced_accuracy", "fidelity", "columns", "chosen"]
    assert [len(c.split()) for c in path["columns"]] == list(path.inputs) and path["columns"][0] == "0 1 2 3 4"
    assert path.fidelity[0] == 1 and path.fidelity.between(0, 1).all() and path.chosen.sum() == 1
    # two networks that are right on shares a and b of the rows agree on at least a + b − 1 of them
    assert (path.fidelity >= path.balanced_accuracy + path.balanced_accuracy[0] - 1 - .1).all()


def test_a_broken_fit_resumes_to_the_same_network(data, tmp_path, monkeypatch):
    import cellinterp.laws.sparse_path as module
    def make(folder):
        return SparseClassifier(max_steps=40, random_state=0, checkpoint=folder)
    whole, folder = make(None).fit(*data), str(tmp_path / "c")
    real, calls = module.train, []
    def failing(*a, **k):
        calls.append(k["desc"])
        if len(calls) == 6: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr(module, "train", failing)
    with pytest.raises(KeyboardInterrupt): make(folder).fit(*data)
    monkeypatch.setattr(module, "train", real)
    seen = len(list((tmp_path / "c").iterdir()))
    assert seen == 5
    resumed = make(folder).fit(*data)
    pd.testing.assert_frame_equal(resumed.path_, whole.path_)
    for a, b in zip(resumed.module_.state_dict().values(), whole.module_.state_dict().values()):
        assert torch.equal(a, b)
    # and the finished stages were read, not trained again
    trained = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: trained.append(1))
    assert np.array_equal(make(folder).fit(*data).predict(data[0]), whole.predict(data[0])) and not trained


def fake(rows, kept, n=4, tolerance=.01):
    path = pd.DataFrame([dict(stage=s, balanced_accuracy=a, columns=c) for s, a, c in rows])
    return SimpleNamespace(
        path_=path,
        kept_=np.array(kept),
        n_features_in_=n,
        tolerance=tolerance,
        get_feature_names_out=lambda: [f"z{j}" for j in range(n)],
    )


def test_epsilon_set_by_hand():
    a = fake([("dense", .90, "0 1 2 3"), ("pruned", .90, "0 1"), ("pruned", .895, "0"), ("pruned", .5, "2")], [0])
    b = fake([("dense", .80, "0 1 2 3"), ("pruned", .85, "0 3"), ("pruned", .84, "3 0")], [0, 3])
    table = epsilon_set([a, b])
    assert table.index[0] == "z0" and table.share.to_dict() == {"z0": 1.0, "z3": .5, "z1": .25, "z2": 0.0}
    assert (
        table.loc["z3", ["lowest", "highest", "chosen", "of"]].tolist() == [0, 1, 1, 2]
        and table.loc["z0", "chosen"] == 2
    )
    # only the best; the dense one is not counted
    assert epsilon_set([a], tolerance=0.0).share.to_dict() == {"z0": 1.0, "z1": 1.0, "z2": 0.0, "z3": 0.0}
    assert epsilon_set([a], tolerance=1.0).loc["z2", "share"] == pytest.approx(1 / 3)


def test_epsilon_set_refuses():
    with pytest.raises(ValueError, match="at least one"): epsilon_set([])
    with pytest.raises(ValueError, match=r"different numbers of columns: \[4, 5\]"):
        epsilon_set([fake([], [0]), fake([], [0], n=5)])


def test_the_needed_columns_are_in_every_good_model():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(600, 5)).astype(np.float32)
    table = epsilon_set(
        [
            SparseClassifier(max_steps=120, tolerance=0.02, random_state=k).fit(
                Z, np.where(Z[:, 1] + Z[:, 3] > 0, "on", "off")
            )
            for k in (0, 1)
        ]
    )
    needed, rest = table.loc[["z1", "z3"]], table.drop(["z1", "z3"])
    assert (
        (needed.share == 1).all() and (needed.chosen == 2).all() and (rest.lowest < 1).all() and (rest.chosen < 2).all()
    )


def test_the_diagram_has_a_line_a_weight_and_a_dot_a_live_neuron(model):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    ax = plot_network(model, names=["a", "b", "c", "d", "e"])
    masks = [m.numpy() for m in model.module_.masks()]
    assert len(ax.lines) == sum(m.sum() for m in masks)
    dots = sum(len(c.get_offsets()) for c in ax.collections)
    assert dots == len(model.kept_) + sum((m.sum(1) > 0).sum() for m in masks[:-1]) + 2
    assert {t.get_text() for t in ax.texts} == {"abcde"[j] for j in model.kept_} | {"on", "off"}
    assert plot_path(model, against="inputs").get_xlabel() == "inputs"
    with pytest.raises(ValueError, match="'weights' or 'inputs'; got 'nodes'"): plot_path(model, against="nodes")
    plt.close("all")


# the inner split

@settings(max_examples=40, deadline=None)
@given(
    n_groups=st.integers(8, 20),
    size=st.integers(5, 12),
    K=st.integers(2, 4),
    seed=st.integers(0, 99),
    fraction=st.sampled_from([0.2, 0.25, 0.5]),
)
def test_inner_split_keeps_groups_and_classes(n_groups, size, K, seed, fraction):
    groups = np.repeat(np.arange(n_groups), size)
    y = np.resize(np.arange(K), len(groups))
    train, held = inner_split(y, groups, fraction=fraction, seed=seed)
    assert not set(groups[train]) & set(groups[held]) and sorted([*train, *held]) == list(range(len(y)))
    assert set(y[train]) == set(y[held]) == set(range(K)) and abs(len(held) / len(y) - fraction) <= 2 / n_groups
    again = inner_split(y, groups, fraction=fraction, seed=seed)
    assert np.array_equal(again[1], held)


def test_inner_split_of_numbers_and_of_too_few():
    y = np.linspace(0, 1, 100)
    train, held = inner_split(y, classes=False, fraction=.2)
    assert len(held) == 20 and not set(train) & set(held)
    for few in (
        dict(y=np.resize([0, 1], 39)),
        dict(y=np.r_[np.zeros(60, int), 1, 1, 1]),
        dict(y=np.resize([0, 1], 90), groups=np.resize([0, 1, 2], 90)),
    ):
        a, b = inner_split(**few)
        assert np.array_equal(a, b) and len(a) == len(few["y"])
    with pytest.raises(ValueError, match="3 entries for 2 rows"): inner_split([0, 1], [0, 1, 2])


def test_both_laws_choose_by_it(monkeypatch, data):
    import cellinterp.data.splits as splits
    import cellinterp.laws.symbolic as symbolic
    asked = []
    def spy(y, groups=None, **k):
        asked.append(k)
        return inner_split(y, groups, **k)
    monkeypatch.setattr(splits, "inner_split", spy)
    SparseClassifier(max_steps=3, validation_fraction=.5, random_state=0).fit(*data)
    symbolic.SymbolicClassifier(engine="operon", max_evaluations=50, n_edits=2, target="labels", random_state=0).fit(
        *data
    )
    assert [k.get("fraction") for k in asked] == [.5, None]


def test_where_the_narrow_network_is_too_narrow_the_wide_one_is_pruned():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(1200, 6))
    # four quadrants: one unit cannot tell them apart
    y = np.char.add(np.where(Z[:, 0] > 0, "a", "b"), np.where(Z[:, 1] > 0, "c", "d"))
    model = SparseClassifier(hidden=(24,), narrow=(1,), random_state=0).fit(Z[:800], y[:800])
    path = model.path_.set_index("stage")
    assert path.balanced_accuracy["narrow"] < path.balanced_accuracy["dense"] - .1
    gated = path.weights[path.index.str.startswith("gates")].min()
    assert model.n_weights_ < .8 * gated and set(model.kept_) == {0, 1}
    assert model.score(Z[800:], y[800:]) > path.balanced_accuracy["dense"] - .04
