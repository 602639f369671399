"""Saved models: predictions to the bit, whole or not there, and files that execute nothing whatever they say."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from cellinterp.training.saving import SKLEARN, SaveError, find_class, load, read_info, save

X, y = load_iris(return_X_y=True)
STATES = np.array(["interphase", "metaphase", "anaphase"])[y]


class Holder(BaseEstimator):
    "Keeps whatever it is given."
    def __init__(self, argument=None): self.argument = argument


class Net(TransformerMixin, BaseEstimator):
    def __init__(self, width=3, bfloat16=False): self.width, self.bfloat16 = width, bfloat16

    def _build(self):
        import torch
        return torch.nn.Sequential(
            torch.nn.Linear(self.n_features_in_, self.width),
            torch.nn.BatchNorm1d(self.width),
            torch.nn.Linear(self.width, 2),
        )

    def fit(self, X, y=None):
        import torch
        self.n_features_in_ = X.shape[1]
        self.module_ = self._build()
        for _ in range(3): self.module_(torch.as_tensor(X, dtype=torch.float32))      # moves the running statistics
        if self.bfloat16: self.module_ = self.module_.bfloat16()
        self.module_.eval()
        return self

    def transform(self, X):
        import torch
        p = next(self.module_.parameters())
        with torch.no_grad(): return self.module_(torch.as_tensor(X).to(p.dtype)).float().numpy()


def round_trip(value, tmp_path):
    est = Holder()
    est.value_ = value
    return load(save(est, tmp_path / "m", classes=[Holder]), classes=[Holder]).value_


@pytest.fixture
def model(tmp_path):
    "A saved pipeline and its folder."
    est = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, STATES)
    return est, save(est, tmp_path / "model")


def tamper(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ---- round trips

@pytest.mark.parametrize(
    "est",
    [
        make_pipeline(StandardScaler(), PCA(2), LogisticRegression()),
        make_pipeline(MinMaxScaler(), MLPClassifier((7,), max_iter=15, tol=1.0, random_state=0)),
        make_pipeline("passthrough", LogisticRegression(C=1e-3)),
    ],
    ids=lambda e: e.steps[-1][0] + e.steps[0][0],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_predictions_are_the_same_to_the_bit(est, order, tmp_path):
    est = clone(est).fit(np.asarray(X, order=order), STATES)
    again = load(save(est, tmp_path / "m"))
    assert np.array_equal(est.predict_proba(X), again.predict_proba(X))
    assert np.array_equal(est.predict(X), again.predict(X)) and est.predict(X).dtype == again.predict(X).dtype
    assert isinstance(clone(again).fit(X, STATES), Pipeline)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_network_comes_back_to_the_bit(bfloat16, tmp_path):
    est = Net(5, bfloat16).fit(X)
    again = load(save(est, tmp_path / "m", classes=[Net]), classes=[Net])
    assert np.array_equal(est.transform(X), again.transform(X))
    assert not again.module_.training and again.module_[1].num_batches_tracked == 3


def test_layout_is_kept_since_sums_depend_on_it(tmp_path):
    a = round_trip(np.asfortranarray(np.arange(6.).reshape(2, 3)), tmp_path)
    assert a.flags.f_contiguous and not a.flags.c_contiguous


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.bool_, np.int8, np.uint8, np.int64, np.uint64, np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_any_array_comes_back(tmp_path_factory, a):
    b = round_trip(a, tmp_path_factory.mktemp("a"))
    assert b.dtype == a.dtype and b.shape == a.shape and a.tobytes() == b.tobytes()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3)
    | st.tuples(v, v)
    | st.dictionaries(st.text(max_size=3) | st.integers(), v, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_any_plain_value_comes_back(tmp_path_factory, value):
    again = round_trip(value, tmp_path_factory.mktemp("v"))
    assert again == value and repr(again) == repr(value)      # repr tells 1 from True and 1.0, and -0.0 from 0.0


def test_text_tables_sparse_and_tensors(tmp_path):
    import torch
    from scipy import sparse
    frame = pd.DataFrame(
        {"class": ["a", "b"], "loss": [0.1, np.nan], "n": [1, 2], "selected": [True, False]}, index=[3, 7]
    )
    pd.testing.assert_frame_equal(round_trip(frame, tmp_path), frame)
    pd.testing.assert_series_equal(round_trip(frame["loss"], tmp_path), frame["loss"])
    text = np.array([["a", "bcd"], ["", "é"]], dtype="<U9")
    assert (round_trip(text, tmp_path) == text).all() and round_trip(text, tmp_path).dtype == text.dtype
    assert list(round_trip(np.array(["x", None, 3], dtype=object), tmp_path)) == ["x", None, 3]
    codes = sparse.csr_array(np.eye(3, dtype=np.float32))
    again = round_trip(codes, tmp_path)
    assert isinstance(again, sparse.csr_array) and (again != codes).nnz == 0 and again.dtype == np.float32
    t = torch.arange(4, dtype=torch.bfloat16)
    assert torch.equal(round_trip(t, tmp_path), t) and round_trip(t, tmp_path).dtype == torch.bfloat16
    assert np.isnan(round_trip(float("nan"), tmp_path)) and type(round_trip(np.float32(.1), tmp_path)) is np.float32


def test_nested_estimators_in_arguments_and_attributes(tmp_path):
    est = Holder(argument=LogisticRegression(C=0.5))
    est.inner_ = {"a": [StandardScaler().fit(X)]}
    again = load(save(est, tmp_path / "m", classes=[Holder]), classes=[Holder])
    assert again.argument.C == .5 and np.array_equal(again.inner_["a"][0].transform(X), est.inner_["a"][0].transform(X))


def test_info_and_versions(model):
    _, folder = model
    info = read_info(folder)
    assert info["class"] == "sklearn.pipeline.Pipeline" and info["steps"][1].endswith("LogisticRegression")
    assert {"python", "numpy", "cellinterp", "scikit-learn"} <= set(info["versions"])


def test_every_whitelisted_class_exists():
    for name in SKLEARN: assert find_class(name)


def test_only_estimators_defined_there_count():
    # imported there; not an estimator
    for name in "cellinterp.laws.law.BaseEstimator", "cellinterp.laws.law.Lambda":
        with pytest.raises(SaveError, match="not an estimator defined there"): find_class(name)


def test_a_learnt_attribute_cannot_hide_a_method(tmp_path):
    class Own(Holder):
        def reset_(self): pass
    folder = save(Own(), tmp_path / "m", classes=[Own])
    tamper(folder, lambda c: c["model"]["state"].update(reset_="x"))
    with pytest.raises(SaveError, match="not a learnt attribute"): load(folder, classes=[Own])


# ---- whole or not there

def test_what_cannot_be_saved_leaves_the_old_model(model):
    est, folder = model
    before = (folder / "config.json").read_bytes()
    bad = Holder(argument=lambda: 0)
    for broken, message in [
        (make_pipeline(FunctionTransformer(np.log1p)), "FunctionTransformer"),
        (LogisticRegression(C=print), r"model\.C"),
        (Holder(), "classes="),
        ("text", "estimator"),
    ]:
        with pytest.raises(SaveError, match=message):
            save(broken, folder)
    with pytest.raises(SaveError, match="model.argument is a builtins.function"): save(bad, folder, classes=[Holder])
    loop = Holder()
    loop.self_ = [loop]
    with pytest.raises(SaveError, match="refers back"): save(loop, folder, classes=[Holder])
    assert (folder / "config.json").read_bytes() == before and [p.name for p in folder.parent.iterdir()] == ["model"]
    assert np.array_equal(load(folder).predict_proba(X), est.predict_proba(X))


def test_a_crash_while_writing_leaves_the_old_model(model, monkeypatch):
    est, folder = model
    from pathlib import Path
    monkeypatch.setattr(Path, "write_bytes", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): save(StandardScaler().fit(X), folder)
    monkeypatch.undo()
    assert [p.name for p in folder.parent.iterdir()] == ["model"] and isinstance(load(folder), Pipeline)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SaveError, match="something other than a model"): save(StandardScaler().fit(X), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_files_that_are_not_there_or_not_whole(model, tmp_path):
    _, folder = model
    with pytest.raises(FileNotFoundError, match="no saved model"): load(tmp_path / "nowhere")
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[:-3])
    with pytest.raises(SaveError, match="cannot be read"): load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not whole"): load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SaveError, match="not JSON"): load(folder)


# ---- hostile files

HOSTILE_CLASSES = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "pickle.loads",
    "cellinterp.training.saving.os",
    "cellinterp.training.saving.SaveError",
    "cellinterp.training.saving.Path",
    "cellinterp..os.System",
    "cellinterp.training.saving.save.__globals__",
    "cellinterp.runs.cli.App",
    "cellinterp.nothing.Here",
    "../../evil.Evil",
    "sklearn.pipeline.os",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.utils.Bunch",
    "evil.Evil",
    "",
    None,
    7,
    ["os.system"],
    {"a": 1},
]


@pytest.mark.parametrize("name", HOSTILE_CLASSES, ids=str)
def test_a_hostile_class_is_refused(name, model, tmp_path, monkeypatch):
    est, folder = model
    mark = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(
        f"open({str(mark)!r}, 'w'); from sklearn.base import BaseEstimator\nclass Evil(BaseEstimator): pass"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("model", "step"):
        def change(c):
            node = c["model"] if place == "model" else c["model"]["params"]["steps"][0]["items"][1]
            node["class"], node["params"] = name, {"command": f"touch {mark}"}
        tamper(save(est, folder), change)
        with pytest.raises(SaveError): load(folder)
    assert not mark.exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    "attribute",
    [
        "__class__",
        "__dict__",
        "__init__",
        "_sk_visual_block_",
        "predict",
        "transform",
        "coef",
        "__reduce__",
        "x.y_",
        "",
        "coef_\n",
    ],
)
def test_a_hostile_attribute_is_refused(attribute, model):
    _, folder = model
    tamper(folder, lambda c: c["model"]["params"]["steps"][1]["items"][1]["state"].update({attribute: "x"}))
    with pytest.raises(SaveError, match="not a learnt attribute"):
        load(folder)


def node_of(c): return c["model"]["params"]["steps"][1]["items"][1]["state"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: node_of(c)["coef_"].update(key="../../../etc/passwd"),
        lambda c: node_of(c)["coef_"].update(shape=[1, 1]),
        lambda c: node_of(c)["coef_"].update(dtype="object"),
        lambda c: node_of(c)["coef_"].pop("key"),
        lambda c: node_of(c).update(coef_={"$": "strings", "items": [1], "shape": [1], "width": 1}),
        lambda c: node_of(c).update(coef_={"$": "strings", "items": ["a"], "shape": [5], "width": 1}),
        lambda c: node_of(c).update(coef_={"$": "__init__"}),
        lambda c: node_of(c).update(coef_={"$": "pickle", "value": "gASV"}),
        lambda c: node_of(c).update(coef_={"$": ["array"]}),
        lambda c: node_of(c).update(coef_={"$": "float", "value": "__import__('os')"}),
        lambda c: node_of(c).update(
            coef_={"$": "sparse", "class": "load_npz", "shape": [1, 1], "data": 0, "indices": 0, "indptr": 0}
        ),
        lambda c: node_of(c).update(coef_={"$": "tensor", "dtype": "load", "value": node_of(c)["coef_"]}),
        lambda c: node_of(c).update(module_={"$": "module", "key": "x", "names": [], "bfloat16": []}),
        lambda c: c["model"]["params"].update(steps=[1]),
        lambda c: c["model"]["params"].update(steps="os"),
        lambda c: c["model"]["params"].update(__class__="os.system"),
        lambda c: c["model"].update(state=[1]),
        lambda c: c["model"].pop("class"),
        lambda c: c.update(model=None),
        lambda c: c.update(model=[1]),
        lambda c: c.update(schema=99),
        lambda c: c.update(format="pickle"),
        lambda c: c["model"]["params"].update(steps=[{"$": "tuple", "items": ["a", {"$": "dict", "items": []}]}]),
    ],
    ids=range(23),
)
def test_a_malformed_file_raises_one_kind_of_error(change, model):
    _, folder = model
    tamper(folder, change)
    with pytest.raises(SaveError):
        load(folder)


def test_depth_cannot_crash_the_reader(model):
    _, folder = model
    (folder / "config.json").write_text(
        '{"format": "cellinterp-model", "schema": 1, "model": ' + "[" * 100_000 + "]" * 100_000 + "}"
    )
    with pytest.raises(SaveError): load(folder)


def test_a_cache_of_pickles_is_neither_saved_nor_believed(tmp_path):
    est = Pipeline([("a", StandardScaler()), ("b", LogisticRegression())], memory=str(tmp_path / "cache")).fit(X, y)
    folder = save(est, tmp_path / "m")
    assert "memory" not in json.loads((folder / "config.json").read_text())["model"]["params"]
    def believe(config):
        config["model"]["params"].update(memory=str(tmp_path / "cache"))
        # as older models have none
        del config["checksum"]
    tamper(folder, believe)
    assert load(folder).memory is None


def test_torch_is_not_imported_unless_needed(model):
    _, folder = model
    code = (
        f"import sys; from cellinterp.training.saving import load; load({str(folder)!r}); assert 'torch' not in"
        " sys.modules, 'torch was imported'"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_a_flipped_bit_is_found_wherever_it_is(model):
    "Each of sixteen places in both files; the message names the model's folder."
    _, folder = model
    load(folder)
    for name in ("config.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for at in np.linspace(0, len(whole) - 1, 16).astype(int):
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            # white space of JSON says nothing
            if whole[at:at + 1].isspace(): continue
            with pytest.raises((SaveError, FileNotFoundError), match="model"): load(folder)
        (folder / name).write_bytes(whole)
    load(folder)
