"""Results at an address: the same runs, sweeps and tables on file://, memory:// and a local S3 server."""
import json
import os

import fsspec
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cellinterp.runs.collect import collect, compare
from cellinterp.runs.execute import RunFailed, execute
from cellinterp.runs.remote import filesystem, local_folder, pull
from cellinterp.runs.run import Run, read_result
from cellinterp.runs.sweep import sweep

WORK = """
from pathlib import Path
at = Path(run.checkpoint) / "state"
begun = int(at.read_text()) if at.exists() else 0
at.parent.mkdir(parents=True, exist_ok=True); at.write_text("3")
if seed == 1 and not begun: raise ValueError("once")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLINTERP_SCRATCH", str(tmp_path / "scratch"))
    cells = [
        new_code_cell('seed = 0\nrate = 1.0\nout = "x"', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from cellinterp.runs.run import Run\nrun = Run('far', params=dict(seed=seed, rate=rate, out=out))"
        ),
        new_code_cell(WORK),
        new_code_cell(
            "import pandas as pd\nrun.finish({'begun': begun, 'score': seed * rate}, tables={'t': pd.DataFrame({'x':"
            " [1]})});"
        ),
    ]
    nbformat.write(
        new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
        ),
        "far.ipynb",
    )
    (tmp_path / "far.yaml").write_text("notebook: far.ipynb\ngrid: {product: {rate: [2]}, seeds: [0, 1]}")


@pytest.fixture(scope="module")
def s3():
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{server._server.server_port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("lab")
    yield "s3://lab"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


def files(out):
    fs, root = filesystem(out)
    return sorted(p.strip("/")[len(fs._strip_protocol(root).strip("/")):].strip("/") for p in fs.find(root))


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_run_at_an_address(place, tmp_path):
    out = f"file://{tmp_path}/there" if place == "file" else "memory://there"
    run = Run("far", dict(seed=2, out=out))
    run.finish({"a": 1}, tables={"t": pd.DataFrame({"x": [1]})})
    assert (
        files(out) == ["result.json", "t.csv"]
        and read_result(out)["metrics"] == {"a": 1}
        and read_result(out)["parameters"]["out"] == out
    )
    assert run.folder == local_folder(out) and str(run.folder).startswith(str(tmp_path / "scratch"))
    with pytest.raises(ValueError, match="no address"): Run("far", dict(out="nowhere://x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made or written to"):
        Run("far", dict(out=f"file://{tmp_path}/file/below"))


def test_execute_to_an_address_and_resume_elsewhere(tmp_path, monkeypatch):
    out = f"file://{tmp_path}/there"
    with pytest.raises(RunFailed, match="once"): execute("./far.ipynb", {"seed": 1}, out, progress=False, report=False)
    assert any(f.startswith(".cellinterp/checkpoint/") for f in files(out)) and "failed.ipynb" in files(out)
    monkeypatch.setenv("CELLINTERP_SCRATCH", str(tmp_path / "another machine"))
    assert execute("./far.ipynb", {"seed": 1}, out, progress=False, report=False)["metrics"]["begun"] == 3
    assert {"executed.ipynb", "result.json", "t.csv"} <= set(files(out))


def test_a_sweep_on_s3_is_the_sweep_on_disk(s3, tmp_path, monkeypatch):
    rows = [sweep("far.yaml", out, workers=2, report=out != "here", progress=False) for out in ("here", f"{s3}/sweep")]
    assert [r["state"] for r in rows[1]] == ["done", "failed"]
    # which knows nothing but what is on the server
    monkeypatch.setenv("CELLINTERP_SCRATCH", str(tmp_path / "another machine"))
    assert [r["state"] for r in sweep("far.yaml", f"{s3}/sweep", dry_run=True)] == ["finished", "failed"]
    again = sweep("far.yaml", f"{s3}/sweep", workers=2, report=False, progress=False)
    assert [r["state"] for r in again] == ["finished", "done"]
    sweep("far.yaml", "here", workers=2, report=False, progress=False)
    drop = ["seconds", "peak_memory_mb"]
    there, disk = collect(f"{s3}/sweep").drop(columns=drop), collect("here").drop(columns=drop)
    pd.testing.assert_frame_equal(there, disk)
    # the failed ones went on from the checkpoint that had been copied
    assert list(there.begun) == [0, 3]
    compare(f"{s3}/sweep")
    names = {f.rpartition("/")[2] for f in files(f"{s3}/sweep")}
    assert {
        "result.json",
        "executed.ipynb",
        "report.html",
        "t.csv",
        "index.html",
        "table.parquet",
        "metric.svg",
        "sweep.json",
    } <= names and not any("checkpoint" in f for f in files(f"{s3}/sweep") if "result" in f)


def test_plain_papermill_writes_to_s3_too(s3):
    "papermill's own handler takes the notebook, Run the results."
    import papermill
    papermill.execute_notebook(
        "far.ipynb",
        f"{s3}/plain/executed.ipynb",
        parameters=dict(rate=3.0, out=f"{s3}/plain"),
        kernel_name="python3",
        progress_bar=False,
    )
    assert (
        files(f"{s3}/plain") == ["executed.ipynb", "result.json", "t.csv"]
        and read_result(f"{s3}/plain")["parameters"]["rate"] == 3
    )
    pull(f"{s3}/plain")
    assert json.loads((local_folder(f"{s3}/plain") / "executed.ipynb").read_text())["cells"][0]


def test_an_address_that_does_not_answer_starts_nothing(s3):
    with pytest.raises(OSError, match="NoSuchBucket|cannot be made or written to"):
        execute("./far.ipynb", {}, "s3://no-such-bucket-here/x", progress=False)
    with pytest.raises(OSError, match="cannot be"): sweep("far.yaml", "s3://no-such-bucket-here/x", progress=False)
