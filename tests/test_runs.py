"""Runs: a result is whole or not there; a notebook is run with the parameters that were asked for, or not at all; the
command line says what is wrong in one sentence.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from cellinterp.data.images import ImageSet
from cellinterp.runs.execute import (
    RunFailed,
    check_parameters,
    execute,
    find_notebook,
    list_notebooks,
    parse_value,
    read_parameters,
    read_params_file,
)
from cellinterp.runs.predict import predict, predict_table
from cellinterp.runs.run import PER_FOLD, Run, code_hash, read_result
from cellinterp.training.saving import load, save

RUN = (
    'from cellinterp.runs.run import Run\nrun = Run("demo", params=dict(data=data, n=n, rate=rate, classes=classes,'
    " seed=seed, out=out, quick=quick))"
)
PARAMETERS = (
    'data = "simulated_nuclei"   # which images\nn = 100\nrate = 0.1\nclasses = None\nseed = 0\nout ='
    ' "runs/demo"\nquick = False'
)
WORK = ('print("working on", data, flush=True)\nif data == "broken": raise ValueError("the images\\nare broken")\n'
        'if data == "slow":\n    import time\n    time.sleep(60)\nif data == "dead":\n    import os\n    os._exit(1)')


def notebook(
    path,
    parameters=PARAMETERS,
    run=RUN,
    work=WORK,
    finish='run.finish({"score": n * 2, "rate": rate})',
    tags=("parameters",),
):
    cells = [
        new_markdown_cell("# Demo\n\n> a small run"),
        new_code_cell(parameters, metadata={"tags": list(tags)}),
        new_code_cell(run),
        new_markdown_cell("## The work {#sec-work}"),
        new_code_cell(work),
        new_code_cell(finish + ";"),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return notebook(tmp_path / "demo.ipynb")


def cli(*args, timeout=90, **env):
    "Run `cellinterp …` in a process of its own."
    done = subprocess.run([str(Path(sys.executable).with_name("cellinterp")), *map(str, args)],
                          capture_output=True, text=True, timeout=timeout, env={**os.environ, **env})
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    return done


def names(folder): return sorted(p.name for p in Path(folder).iterdir() if p.name != ".cellinterp")


# ---- Run

def test_result_has_every_key_and_plain_numbers(tmp_path):
    run = Run("demo", dict(data="x", n=np.int64(3), seed=1, classes=("a", "b"), out=tmp_path / "r"))
    per_fold = pd.DataFrame([["law", 0, 1, "accuracy", .5]], columns=PER_FOLD)
    run.finish(
        {"law_accuracy": np.float32(0.5), "n": np.int64(3), "bad": np.nan},
        tables={"metrics": per_fold, "named": per_fold.set_index("model")},
    )
    text = (tmp_path / "r/result.json").read_text()
    result = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert set(result) >= {
        "schema",
        "notebook",
        "parameters",
        "metrics",
        "versions",
        "code_hash",
        "engine",
        "device",
        "precision",
        "threads",
        "seed",
        "seconds",
        "peak_memory_mb",
        "artifacts",
    }
    assert (
        result["metrics"] == {"law_accuracy": 0.5, "n": 3, "bad": None}
        and result["seed"] == 1
        and result["parameters"]["classes"] == ["a", "b"]
    )
    assert (
        result["artifacts"] == ["metrics.csv", "named.csv"] == [n for n in names(tmp_path / "r") if n != "result.json"]
    )
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "r/metrics.csv"), per_fold)


def test_a_run_on_a_gpu_records_its_memory(tmp_path, monkeypatch):
    import torch
    assert "peak_gpu_memory_mb" not in Run("demo", dict(out=tmp_path / "a")).finish({})
    for name, value in dict(is_available=True, is_initialized=True, max_memory_allocated=2_500_000).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    result = Run("demo", dict(device="auto", out=tmp_path / "b")).finish({})
    assert result["peak_gpu_memory_mb"] == 2.5 and result["device"] == "cuda" and result["peak_memory_mb"] > 10


def test_the_model_is_saved_and_tells_its_engine(tmp_path):
    X, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    model = make_pipeline(LogisticRegression()).fit(X, y)
    model[0].engine_ = "operon"
    result = Run("demo", dict(out=tmp_path / "r")).finish({}, model=model)
    assert result["engine"] == "operon" and result["artifacts"] == ["model/config.json", "model/model.safetensors"]
    assert np.array_equal(load(tmp_path / "r/model").predict_proba(X), model.predict_proba(X))


def test_a_finished_result_stays_until_the_new_one_is_whole(tmp_path):
    run = Run("demo", dict(out=tmp_path))
    run.finish({"a": 1}, tables={"t": pd.DataFrame({"x": [1]})})
    for kwargs, message in [
        (dict(metrics={"a": "1"}), "a is a str"),
        (dict(metrics={"a": True}), "numbers"),
        (dict(metrics={}, tables={"../t": pd.DataFrame()}), "cannot name"),
        (dict(metrics={}, tables={"metrics": pd.DataFrame({"x": [1]})}), "columns"),
        (dict(metrics={}, tables={"t": pd.DataFrame({"x": [2]}), "u": 3}), "index"),
        (dict(metrics={}, model=object()), "estimator"),
    ]:
        with pytest.raises(Exception, match=message):
            Run("demo", dict(out=tmp_path)).finish(**kwargs)
        assert (
            names(tmp_path) == ["result.json", "t.csv"]
            and read_result(tmp_path)["metrics"] == {"a": 1}
            and pd.read_csv(tmp_path / "t.csv").x[0] == 1
        )


def test_a_crash_between_files_leaves_no_result(tmp_path, monkeypatch):
    import cellinterp.runs.run as module
    Run("demo", dict(out=tmp_path)).finish({"a": 1})
    monkeypatch.setattr(module, "write_atomically", lambda *a: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError):
        Run("demo", dict(out=tmp_path)).finish({"a": 2}, tables={"t": pd.DataFrame({"x": [1]})})
    with pytest.raises(FileNotFoundError, match="no finished run"): read_result(tmp_path)


def test_the_folder_is_tried_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made or written to"):
        Run("demo", dict(out=tmp_path / "file" / "below"))
    with pytest.raises(ValueError, match="out"): Run("demo", dict(data="x"))
    with pytest.raises(TypeError, match=r"params\['f'\] is a function"):
        Run("demo", dict(out=tmp_path / "new", f=lambda: 0))
    assert not (tmp_path / "new").exists()


def test_code_hash_follows_the_notebook(tmp_path):
    a, b = notebook(tmp_path / "a.ipynb"), notebook(tmp_path / "b.ipynb", work="print(1)")
    assert (
        len({code_hash(), code_hash(a), code_hash(b)}) == 3
        and code_hash(a) == code_hash(a)
        and code_hash("no such name") == code_hash()
    )


# ---- parameters

def test_parameters_are_parsed_not_run(tmp_path):
    p = read_parameters(
        notebook(
            tmp_path / "x.ipynb",
            parameters=(
                'a: int = 3  # how many # really\nb = [1,\n     2]\nc = open("/nowhere")  # text\nd["x"] = 1\ne = -1.5'
            ),
        )
    )
    assert [(x.name, x.default, x.literal, x.help) for x in p.values()] == [
        ("a", 3, True, "how many # really"),
        ("b", [1, 2], True, ""),
        ("c", "open('/nowhere')", False, "text"),
        ("e", -1.5, True, ""),
    ]


def test_notebooks_without_parameters_are_refused(tmp_path):
    for kwargs, message in [
        (dict(tags=()), "no cell tagged `parameters`"),
        (dict(parameters="# nothing"), "assigns nothing"),
        (dict(parameters="a = = 1"), "not plain Python"),
        (dict(parameters="a = 1"), "no parameter `out`"),
    ]:
        path = notebook(tmp_path / "x.ipynb", **kwargs)
        with pytest.raises(ValueError, match=message):
            execute(path, {}, None if "out" in message else tmp_path / "out")
    (tmp_path / "text.ipynb").write_text("no notebook")
    with pytest.raises(ValueError, match="not a notebook"): execute(tmp_path / "text.ipynb")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"nn": 1}, r"did you mean n"),
        ({"n": "many"}, "a whole number"),
        ({"n": 1.5}, "a whole number"),
        ({"n": True}, "a whole number"),
        ({"rate": "x"}, "a number"),
        ({"quick": "yes"}, "true or false"),
        ({"data": 3}, "text"),
        ({"data": ["a"]}, "text"),
    ],
)
def test_wrong_parameters_start_nothing(values, message, demo):
    with pytest.raises((ValueError, TypeError), match=message):
        execute(demo, values, "out")
    assert names(".") == ["demo.ipynb"]


def test_numbers_take_the_type_of_the_default(demo):
    checked = check_parameters(read_parameters(demo), {"n": 5.0, "rate": 1, "classes": ["a"], "seed": None})
    assert (
        checked == {"n": 5, "rate": 1.0, "classes": ["a"], "seed": None}
        and isinstance(checked["n"], int)
        and isinstance(checked["rate"], float)
    )
    assert check_parameters(read_parameters(demo), {"rate": "1e-3"}) == {"rate": .001}


def test_text_stays_text_where_the_default_is_text(demo):
    p = read_parameters(demo)
    assert (
        parse_value("1e5", p["data"]) == "1e5"
        and parse_value("null", p["data"]) == "null"
        and parse_value("1e5", p["n"]) == 1e5
        and parse_value("[a, b]", p["classes"]) == ["a", "b"]
    )
    assert parse_value("!!python/object/apply:os.system [echo]", p["classes"]).startswith("!!python")


def test_params_files(tmp_path):
    path = tmp_path / "p.yaml"
    for text, expected in [
        ("n: 3\ndata: x", (None, {"n": 3, "data": "x"})),
        ("notebook: demo\nparameters:\n  n: 3", ("demo", {"n": 3})),
        ("", (None, {})),
        ("notebook: demo\nparameters:", ("demo", {})),
    ]:
        path.write_text(text)
        assert read_params_file(path) == expected
    for text, message in [
        ("[1, 2]", "must hold"),
        ("a: [", "not YAML"),
        ("grid: {n: [1]}", "grid"),
        ("parameters: 3", "must hold"),
        ("parameters: {}\nother: 1", "unknown keys beside"),
        ("a: !!python/object/apply:os.system ['echo hacked']", "not YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_params_file(path)
    with pytest.raises(FileNotFoundError, match="no parameter file"): read_params_file("nowhere")


def test_packaged_notebooks_can_be_found():
    with pytest.raises(FileNotFoundError, match="packaged are"): find_notebook("no_such")
    for n in list_notebooks():
        if n["kind"] == "tutorials":
            shared = {"data", "classes", "groups", "n", "seed", "device", "out", "quick"}
            # particles come as lists whose own columns say class and tomogram
            if n["name"] == "particles": shared -= {"classes", "groups"}
            assert find_notebook(n["name"]) == n["path"] and shared <= set(read_parameters(n["path"])), n["name"]


# ---- execute

def test_execute_keeps_everything_and_a_failure_leaves_it(demo, capsys):
    result = execute(demo, {"n": 7, "data": "it's"}, "out", report=False)
    assert (
        result["metrics"] == {"score": 14, "rate": 0.1}
        and result["parameters"]["data"] == "it's"
        and names("out") == ["executed.ipynb", "result.json"]
    )
    shown = capsys.readouterr().out
    assert "The work\n" in shown and "working on it's\n" in shown and "#sec" not in shown
    with pytest.raises(RunFailed, match=r"demo failed in cell \d+: ValueError: the images are broken") as error:
        execute(demo, {"data": "broken"}, "out", report=False)
    assert error.value.notebook == Path("out/failed.ipynb") and "the images" in Path("out/failed.ipynb").read_text()
    assert (
        names("out") == ["executed.ipynb", "failed.ipynb", "result.json"]
        and read_result("out")["metrics"]["score"] == 14
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(finish="1"), "wrote no result.json"),
        (dict(finish="n = 3; run.params['n'] = 3; run.finish({})"), "given n=7 but recorded n=3"),
        (
            dict(
                run='from cellinterp.runs.run import Run\nrun = Run("demo", params=dict(out=out))',
                finish="run.finish({})",
            ),
            "did not record parameter n",
        ),
        (dict(work="import os; os._exit(1)"), "died"),
        (dict(finish="run.finish({}); 1/0"), "ZeroDivisionError"),
    ],
)
def test_a_run_that_is_not_what_was_asked_for_has_no_result(kwargs, message, tmp_path):
    path = notebook(tmp_path / "x.ipynb", **kwargs)
    with pytest.raises(RunFailed, match=message):
        execute(path, {"n": 7}, tmp_path / "out", progress=False, report=False)
    assert names(tmp_path / "out") == ["failed.ipynb"]


def test_plain_papermill_works(demo):
    import papermill
    papermill.execute_notebook(
        str(demo),
        "out.ipynb",
        parameters={"n": 4, "out": "plain"},
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )
    assert read_result("plain")["metrics"]["score"] == 8


# ---- the command line

def test_run_on_the_command_line(demo):
    Path("p.yaml").write_text("parameters:\n  n: 5\n  rate: 1")
    done = cli("run", "./demo.ipynb", "-f", "p.yaml", "-p", "n=6", "-p", "classes=a,b", "--quick", "--out", "o")
    assert done.returncode == 0, done.stderr
    assert "working on simulated_nuclei" in done.stdout and done.stdout.rstrip().endswith("report: o/report.html")
    result = read_result("o")
    assert result["parameters"] == dict(
        data="simulated_nuclei", n=6, rate=1.0, classes="a,b", seed=0, out="o", quick=True
    )
    assert (
        names("o") == ["executed.ipynb", "report.html", "result.json"]
        and "working on" in Path("o/report.html").read_text()
    )
    failed = cli("run", "./demo.ipynb", "-p", "data=broken", "--out", "o")
    assert (
        failed.returncode == 1
        and "ValueError: the images are broken" in failed.stderr
        and "o/failed.ipynb" in failed.stderr
    )
    assert read_result("o") == result


@pytest.mark.parametrize(
    "args, message",
    [
        (["run"], "which notebook"),
        (["run", "nothing"], "no packaged notebook"),
        (["run", "./nothing.ipynb"], "no notebook"),
        (["run", "./demo.ipynb", "-p", "m=1"], "no parameter 'm'"),
        (["run", "./demo.ipynb", "-p", "n"], "name=value"),
        (["run", "./demo.ipynb", "-p", "n=x"], "whole number"),
        (["run", "./demo.ipynb", "-f", "no.yaml"], "no parameter file"),
        (["run", "./demo.ipynb", "--out", "demo.ipynb"], "cannot be made"),
        (["predict", "nowhere", "images", "--out", "t.csv"], "no saved model"),
        (["predict", "x", "y", "--out", "t.doc"], "must end in"),
        (["list", "nothing"], "no packaged notebook"),
    ],
)
def test_mistakes_end_with_one_sentence(args, message, demo):
    from typer.testing import CliRunner

    from cellinterp.runs.cli import app

    done = CliRunner().invoke(app, args)
    assert (
        done.exit_code == 2
        and message in done.stderr
        and done.stderr.startswith("cellinterp: ")
        and done.stderr.count("\n") == 1
        and not done.stdout
    )
    assert names(".") == ["demo.ipynb"]


def test_help_is_quick_and_imports_nothing_heavy():
    start = time.perf_counter()
    assert "predict" in cli("--help").stdout
    assert time.perf_counter() - start < 5            # about 0.2 s alone; the margin is for a loaded machine
    code = (
        "import sys, cellinterp.runs.cli; heavy = {'torch', 'pandas', 'papermill', 'sklearn', 'matplotlib', 'sympy'} &"
        " set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_data_doctor_and_list(tmp_path):
    from typer.testing import CliRunner

    from cellinterp.runs.cli import app
    shown = CliRunner().invoke(app, ["data"], env={"CELLINTERP_DATA": str(tmp_path)})
    assert (
        shown.exit_code == 0
        and "mitocheck_cells  (not on this machine)" in shown.output
        and "licence: CC BY 4.0" in shown.output
    )
    facts = CliRunner().invoke(app, ["doctor"], env={"CELLINTERP_DATA": str(tmp_path)})
    assert facts.exit_code == 0, facts.output
    for name in "torch", "cores", "OMP_WAIT_POLICY", "Julia", "Quarto", "mitocheck_cells": assert name in facts.output
    if list_notebooks():
        listed = CliRunner().invoke(app, ["list"])
        assert listed.exit_code == 0 and list_notebooks()[0]["name"] in listed.output


def test_doctor_says_what_is_missing(monkeypatch):
    from typer.testing import CliRunner

    from cellinterp.runs import cli, doctor
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert done.exit_code == 1 and "! no-such-package" in done.output
    monkeypatch.setattr(doctor, "install_julia", lambda: (_ for _ in ()).throw(RuntimeError("no network")))
    done = CliRunner().invoke(cli.app, ["doctor", "--install-julia"])
    assert done.exit_code == 2 and "cellinterp: no network" in done.stderr


# ---- predict

class Mean(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.image_shape_ = tuple(X.shape[1:])
        return self
    def transform(self, X): return X.mean((2, 3))
    def reconstruction_percentile(self, X): return np.where(X.max((1, 2, 3)) > 200, 99.5, 99.0)


@pytest.fixture
def plate():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[np.arange(12) % 3]
    images = (rng.random((12, 2, 32, 32)) * 40 + 50 * (np.arange(12) % 3)[:, None, None, None]).astype(np.uint8)
    return ImageSet(
        images,
        y,
        groups=np.repeat(["w1", "w2"], 6),
        metadata=pd.DataFrame({"x": np.arange(12.0) * 2, "decision": "old"}),
    )


def test_predict_writes_one_row_a_cell(plate, tmp_path):
    model = make_pipeline(Mean(), LogisticRegression()).fit(plate.images, plate.labels)
    save(model, tmp_path / "model", classes=[Mean])
    plate.images[3, 0, 0, 0] = 255
    table = predict(tmp_path, plate, tmp_path / "t.parquet", model_classes=[Mean])
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "t.parquet"))
    assert list(table.columns) == [
        "row",
        "x",
        "decision_given",
        "label",
        "group",
        "z0",
        "z1",
        "margin_a",
        "margin_b",
        "margin_c",
        "p_a",
        "p_b",
        "p_c",
        "decision",
        "reconstruction_percentile",
        "unlike_training",
    ]
    assert np.array_equal(table[["p_a", "p_b", "p_c"]], model.predict_proba(plate.images)) and np.array_equal(
        table["z1"], plate.images.mean((2, 3))[:, 1]
    )
    assert (
        list(np.flatnonzero(table.unlike_training)) == [3]
        and list(table.decision) == list(model.predict(plate.images))
        and list(table.x) == list(plate.metadata.x)
    )
    assert names(tmp_path) == ["model", "t.parquet"]
    predict(tmp_path, plate, tmp_path / "t.csv", model_classes=[Mean])
    assert pd.read_csv(tmp_path / "t.csv").shape == table.shape


def test_two_classes_have_one_margin(plate):
    two = plate.subset(np.isin(plate.labels, ["a", "b"]))
    table = predict_table(make_pipeline(Mean(), LogisticRegression()).fit(two.images, two.labels), two)
    assert [c for c in table if c.startswith("margin")] == ["margin_b"] and (
        (table.margin_b > 0) == (table.decision == "b")
    ).all()


def test_images_that_do_not_fit_write_nothing(plate, tmp_path):
    model = make_pipeline(Mean(), LogisticRegression()).fit(plate.images, plate.labels)
    save(model, tmp_path / "model", classes=[Mean])
    for images, message in [
        (plate.images[:, :1], "2 channel"),
        (np.pad(plate.images, [(0, 0), (0, 0), (0, 8), (0, 8)]), "32 x 32 pixels; these have 40 x 40"),
        (plate.images[:, :, None], "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict(tmp_path, ImageSet(images), tmp_path / "t.csv", model_classes=[Mean])
    for bad in LogisticRegression(), make_pipeline(Mean()), make_pipeline(Mean(), "passthrough"):
        with pytest.raises(ValueError, match="pipeline from images to a classifier"): predict_table(bad, plate)
    assert names(tmp_path) == ["model"]


@pytest.mark.filterwarnings("ignore")
def test_the_real_pipeline_from_images_to_table(tmp_path):
    vae, sparse, symbolic = (
        pytest.importorskip(f"cellinterp.{m}") for m in ("factors.vae", "laws.sparse", "laws.symbolic")
    )
    from cellinterp.data.simulate import simulate_nuclei
    cells = simulate_nuclei(60, size=32, random_state=0)
    two = cells.select(["interphase", "metaphase"])
    model = make_pipeline(
        vae.VAE(n_factors=4, max_steps=5, batch_size=16, random_state=0),
        sparse.SparseClassifier(max_steps=50, random_state=0),
        symbolic.SymbolicClassifier(engine="operon", max_evaluations=2000, n_restarts=1, n_edits=20, random_state=0),
    ).fit(two.images, two.labels)
    save(model, tmp_path / "model")
    np.savez(tmp_path / "plate.npz", images=cells.images[:10])
    done = cli("predict", tmp_path / "model", tmp_path / "plate.npz", "--out", tmp_path / "t.parquet")
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert np.array_equal(table[["p_interphase", "p_metaphase"]], model.predict_proba(cells.images[:10]))
    assert (
        np.array_equal(table[[f"z{j}" for j in range(4)]], model[0].transform(cells.images[:10]))
        and table.reconstruction_percentile.between(0, 100).all()
    )
    with pytest.raises(ValueError): predict(tmp_path, tmp_path / "plate.npz", tmp_path / "u.csv", axes="NYXC")
    config, mark = (tmp_path / "model/config.json").read_text(), tmp_path / "executed"
    laws = set(model[-1].laws_["equation"])
    assert all(json.dumps(law, ensure_ascii=False) in config for law in laws)
    for law in laws:
        config = config.replace(
            json.dumps(law, ensure_ascii=False), json.dumps(f"__import__('os').system('touch {mark}')")
        )
    (tmp_path / "model/config.json").write_text(config)
    with pytest.raises(ValueError): predict(tmp_path, tmp_path / "plate.npz", tmp_path / "u.csv")
    assert not mark.exists() and not (tmp_path / "u.csv").exists()
