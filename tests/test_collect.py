"""Collecting: a tidy table of whatever runs there are, the same in Parquet and CSV; figures and a page that needs
nothing but a browser.
"""
import contextlib
import json
import re

import numpy as np
import pandas as pd
import pytest

from cellinterp.laws.blackbox import BlackBoxClassifier
from cellinterp.runs.collect import collect, compare, lower_is_better, missing, pareto, pick, summary
from cellinterp.runs.run import PER_FOLD, Run


def finished(folder, metrics, tables=None, **params):
    with contextlib.redirect_stdout(None):
        return Run("demo", dict(params, out=str(folder))).finish(metrics, tables=tables)


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    for beta in 1, 4:
        for objective in "a", "b":
            for seed in range(3):
                per_fold = pd.DataFrame(
                    [["law", f, seed, "accuracy", rng.random()] for f in range(2)], columns=PER_FOLD
                )
                finished(
                    tmp_path / f"{beta}{objective}{seed}",
                    {
                        "law_balanced_accuracy": 1 / beta + 0.01 * seed,
                        "law_nodes_total": 10 * beta + seed,
                        "error": float("nan") if seed else 1.0,
                    },
                    {"metrics": per_fold},
                    beta=beta,
                    objective=objective,
                    seed=seed,
                    classes=["x", "y"],
                    n=5,
                    device="auto",
                )
    return tmp_path


def test_the_table_is_tidy_and_the_same_in_both_files(runs):
    table = collect(runs)
    assert (
        len(table) == 12
        and table.attrs["varying"] == ["beta", "objective", "seed"]
        and table.attrs["metrics"] == ["law_balanced_accuracy", "law_nodes_total", "error"]
    )
    assert (
        list(table.columns[:2]) == ["run", "notebook"]
        and "out" not in table
        and (table.classes == '["x", "y"]').all()
        and (table.device == "cpu").all()
    )
    assert (
        table.error.isna().sum() == 8
        and table.code_hash.nunique() == 1
        and (table.seconds >= 0).all()
        and (table.peak_memory_mb > 10).all()
        and {"precision", "threads"} <= set(table)
    )
    pd.testing.assert_frame_equal(pd.read_parquet(runs / "table.parquet"), table)
    pd.testing.assert_frame_equal(
        pd.read_csv(runs / "table.csv"), table.fillna(np.nan).infer_objects(), check_dtype=False
    )
    folds = pd.read_parquet(runs / "folds.parquet")
    assert len(folds) == 24 and {"run", "beta", "objective", *PER_FOLD} == set(folds) and not list(runs.glob(".*"))


def test_runs_of_different_notebooks_and_mixed_types_stand_side_by_side(tmp_path):
    finished(tmp_path / "a/deep", {"score": 1}, n=5, classes="all")
    finished(tmp_path / "b", {"other": 2, "n": 3}, classes=["x"], limit=None)
    table = collect(tmp_path).set_index("run")
    assert (
        list(table.index) == ["a/deep", "b"]
        and table.loc["b", "metric_n"] == 3
        and np.isnan(table.loc["b", "score"])
        and list(table.classes) == ["all", '["x"]']
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c/result.json").write_text("{")  # half a file is no result
    assert len(collect(tmp_path, write=False)) == 2
    with pytest.raises(FileNotFoundError, match="no finished run"): collect(tmp_path / "c")


def test_summary_against_a_slow_reference(runs):
    table = collect(runs, write=False)
    settings = summary(table, ["law_nodes_total", "law_balanced_accuracy"])
    for _, s in settings.iterrows():
        part = [r for _, r in table.iterrows() if r.beta == s.beta and r.objective == s.objective]
        values = np.array([r.law_balanced_accuracy for r in part])
        assert (
            s.n == 3
            and np.isclose(s.law_balanced_accuracy, values.mean())
            and np.isclose(s.law_balanced_accuracy_spread, np.sqrt(((values - values.mean()) ** 2).sum() / 2))
        )
        assert s.best == min(part, key=lambda r: r.law_nodes_total).run       # fewer nodes are better
    assert summary(table, ["law_balanced_accuracy"]).best[0] == "1a2"


def test_pareto_against_a_slow_reference():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(dict(a=rng.integers(0, 6, 60) / 5, c=rng.integers(0, 6, 60).astype(float)))
    table.loc[0, "a"] = np.nan
    def beats(p, q):
        return p.a >= q.a and p.c <= q.c and (p.a > q.a or p.c < q.c)
    slow = [not np.isnan(q.a) and not any(beats(p, q) for p in table.itertuples()) for q in table.itertuples()]
    assert list(pareto(table, "a", "c")) == slow and sum(slow) >= 2
    assert (
        pick(["x_accuracy_sd", "x_accuracy", "law_nodes_max"], ("accuracy",)) == "x_accuracy"
        and lower_is_better("fvu")
        and not lower_is_better("law_balanced_accuracy")
    )


def test_the_page_needs_nothing_but_a_browser(runs):
    (runs / "1a2/report.html").write_text("x")
    (runs / "dead").mkdir()
    (runs / "dead/status.json").write_text(json.dumps(dict(state="failed", error="no <cells>")))
    (runs / "dead/failed.ipynb").write_text("{}")
    page = compare(runs)
    text = page.read_text()
    assert (
        page == runs / "index.html"
        and 'href="./1a2/report.html"' in text
        and "no &lt;cells&gt;" in text
        and 'href="./dead/failed.ipynb"' in text
    )
    assert "1.01 ± 0.01" in text and text.count("<img") == 2 and "12 finished runs, 1 failed" in text
    for link in re.findall(r'href="(?!#|data:)([^"]+)"', text): assert (runs / link).exists(), link
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert {"metric.png", "metric.svg", "pareto.png", "pareto.svg", "settings.csv", "table.csv", "table.parquet"} <= {
        p.name for p in runs.iterdir()
    }
    for kwargs, message in [
        (dict(metric="law_nods_total"), "did you mean law_nodes_total"),
        (dict(x="bta"), "did you mean beta"),
        (dict(complexity="size"), "no metric 'size'"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(runs, **kwargs)


@pytest.mark.browser
def test_the_page_in_a_browser(runs):
    selenium = pytest.importorskip("selenium.webdriver")
    import shutil
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None or not shutil.which("chromedriver"): pytest.skip("needs Chromium and its driver")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which(browser)
    for a in "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage": options.add_argument(a)
    with selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver"))) as driver:
        driver.set_window_size(1000, 900)
        driver.get(compare(runs).as_uri())
        assert len(driver.find_elements("css selector", "table tr")) == 2 + 4 + 12
        assert all(
            driver.execute_script("return arguments[0].naturalWidth", i) > 0
            for i in driver.find_elements("tag name", "img")
        )
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth") and not [
            m for m in driver.get_log("browser") if m["level"] == "SEVERE"
        ]


@pytest.mark.parametrize("params", [dict(), dict(objective="a"), dict(beta=2)])
def test_one_run_or_one_setting_is_a_page_too(tmp_path, params):
    finished(tmp_path / "a", {"score": 1.0}, seed=0, **params)
    finished(tmp_path / "b", {"score": 2.0}, seed=1, **params)
    assert "1.5 ± 0.71" in compare(tmp_path).read_text()


def test_on_the_command_line(runs):
    from typer.testing import CliRunner

    from cellinterp.runs.cli import app
    done = CliRunner().invoke(app, ["collect", str(runs)])
    assert done.exit_code == 0 and "12 runs; varying: beta, objective, seed" in done.output
    done = CliRunner().invoke(app, ["compare", str(runs), "--metric", "error", "--x", "objective"])
    assert done.exit_code == 0 and f"page: {runs / 'index.html'}" in done.output
    done = CliRunner().invoke(app, ["collect", str(runs / "1a0/none")])
    assert done.exit_code == 2 and done.stderr.startswith("cellinterp: there is no finished run")


def test_tensorboard_event_files_as_an_option(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.5], "validation": [np.nan, .5], "note": ["a", "b"]})
    finished(tmp_path / "without", {"a": 1.0}, {"history": history})
    assert not (tmp_path / "without/tensorboard").exists()
    monkeypatch.setenv("CELLINTERP_TENSORBOARD", "1")
    from tensorboard.util.tensor_util import make_ndarray

    def scalars(folder):
        events = accumulator.EventAccumulator(str(folder)).Reload()
        return {
            re.sub(r"^BlackBoxClassifier \d+", "net", tag): [
                (e.step, round(float(make_ndarray(e.tensor_proto)), 4)) for e in events.Tensors(tag)
            ]
            for tag in events.Tags()["tensors"]
        }

    run = Run("demo", dict(out=str(tmp_path / "with")))
    images = np.random.default_rng(0).integers(0, 255, (12, 1, 32, 32)).astype(np.uint8)
    net = BlackBoxClassifier(widths=(4, 4, 4, 4), max_steps=2, device="cpu", random_state=0).fit(images, ["a", "b"] * 6)
    losses = [(int(step), round(loss, 4)) for step, loss in net.history_[["step", "loss"]].to_numpy()]
    # while the run goes
    assert scalars(tmp_path / "with/.cellinterp/live")["net/loss"] == losses and len(losses) == 2
    with contextlib.redirect_stdout(None):
        result = run.finish({"a": 1.0, "none": float("nan")}, {"history": history, "other": pd.DataFrame({"x": [1]})})
    assert (
        any(a.startswith("tensorboard/") for a in result["artifacts"])
        and not (tmp_path / "with/.cellinterp/live").exists()
    )
    found = scalars(tmp_path / "with/tensorboard")
    assert {k: v for k, v in found.items() if not k.startswith("net/")} == {
        "history/loss": [(10, 2.0), (20, 1.5)],
        "history/validation": [(20, 0.5)],
        "metrics/a": [(0, 1.0)],
    } and found["net/loss"] == losses
    # nobody listens any more
    BlackBoxClassifier(widths=(4, 4, 4, 4), max_steps=1, device="cpu").fit(images, ["a", "b"] * 6)
    import cellinterp.runs.scalars as module
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    # at once, not at the end
    with pytest.raises(ImportError, match="pip install"): Run("demo", dict(out=str(tmp_path / "never")))
    assert not (tmp_path / "never").exists()


def test_what_of_a_grid_is_missing(tmp_path):
    "Whole numbers, fractions, text, truth and nothing, as they come from a CSV file."
    import nbformat
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_code_cell(
                    'rate = 0.1\nkind = "a"\nwhite = False\nbeta = None\nseed = 0\nout = "runs/x"',
                    metadata={"tags": ["parameters"]},
                )
            ]
        ),
        tmp_path / "steps.ipynb",
    )
    (tmp_path / "grid.yaml").write_text(
        "notebook: steps.ipynb\ngrid:\n  product: {rate: [1, 0.5], white: [true, false], beta: [null, 2]}\n  zip:"
        " {kind: [a, b]}\n  seeds: [3]"
    )
    rows = [
        dict(rate=r, white=w, beta=b, kind=k, seed=3)
        for r in (1.0, 0.5)
        for w in (True, False)
        for b in (None, 2.0)
        for k in "ab"
    ]
    (tmp_path / "t.csv").write_text(
        pd.DataFrame([r for i, r in enumerate(rows) if i not in (2, 13)]).to_csv(index=False)
    )
    lost = missing(tmp_path / "grid.yaml", pd.read_csv(tmp_path / "t.csv"))
    assert lost.attrs["planned"] == 16 and sorted(map(tuple, lost[["rate", "white", "kind"]].to_numpy())) == sorted(
        [(1.0, True, "a"), (0.5, False, "b")]
    )
    assert (
        len(missing(tmp_path / "grid.yaml", pd.DataFrame(rows))) == 0
        and len(missing(tmp_path / "grid.yaml", pd.DataFrame(columns=["rate"]))) == 16
    )
