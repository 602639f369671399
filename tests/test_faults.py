"""What happens when things break, and what hostile input can do: the page runs/safety promises what is tested here
and in test_stores.py, test_sweep.py, test_slurm.py and test_chaos.py.
"""
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from cellinterp.runs import facts, remote
from cellinterp.runs.cli import app
from cellinterp.runs.collect import collect, compare, gather
from cellinterp.runs.execute import execute
from cellinterp.runs.experiment import check_resources, expand_grid, read_experiment
from cellinterp.runs.folder import Busy, locked
from cellinterp.runs.guard import MARK, marked
from cellinterp.runs.kernel import RunFailed
from cellinterp.runs.notebooks import read_notebook
from cellinterp.runs.parameters import check_parameters, parse_parameters, parse_value, parse_yaml, read_parameters
from cellinterp.runs.process import RunProcess, worker_env
from cellinterp.runs.run import FOLDER, Run, read_result
from cellinterp.runs.sweep import plan, sweep
from cellinterp.runs.table import read_run

COMMAND = [sys.executable, "-c", "import cellinterp.runs.cli as c; c.main()"]
FINISH = "run.finish({'v': 1.0})"


def notebook(path, *body, parameters='seed = 0\nout = "x"', markdown="# T"):
    cells = [new_markdown_cell(markdown), new_code_cell(parameters, metadata={"tags": ["parameters"]}),
             new_code_cell("from cellinterp.runs.run import Run\nrun = Run.here('t')"), *map(new_code_cell, body)]
    nbformat.write(new_notebook(cells=cells), path)
    return str(path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(*args, **env):
    "What the command line answers: exit code, and the one line on stderr."
    done = CliRunner().invoke(app, [str(a) for a in args], env=env)
    assert "Traceback" not in done.output and not (done.exception and not isinstance(done.exception, SystemExit))
    return done.exit_code, done.stderr


# ---- what is not ours

def test_what_no_run_made_is_never_removed_or_replaced(capsys):
    out = Path("proj")
    for name in "checkpoint", "live":
        (out / name).mkdir(parents=True)
        (out / name / "weights.pt").write_text("two weeks")
    (out / "counts.csv").write_text("by hand")
    for _ in range(2):
        run = Run("t", dict(out=out))
        Path(run.checkpoint).mkdir(parents=True)
        result = run.finish({"v": 1}, {"counts": pd.DataFrame({"a": [1]})}, model=StandardScaler().fit(np.eye(3)))
    assert result["artifacts"] == ["counts_run.csv", "model/config.json", "model/model.safetensors"]
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint", "counts.csv", "counts_run.csv", "live", "model", "result.json"]
    assert (out / "counts.csv").read_text() == "by hand"
    assert (out / "checkpoint/weights.pt").read_text() == (out / "live/weights.pt").read_text() == "two weeks"


@pytest.mark.parametrize("name", ["model/", "tensorboard/", "result.json", "executed.ipynb", "report.html",
                                  "failed.ipynb", ".cellinterp/"])
def test_a_name_that_a_run_needs_and_that_is_taken_is_refused_before_work(name):
    path = Path("proj") / name.rstrip("/")
    path.parent.mkdir()
    if name.endswith("/"):
        path.mkdir()
        (path / "mine").write_text("two weeks")
    else: path.write_text("[1]")
    before = sorted((p, p.stat().st_mtime_ns) for p in Path("proj").rglob("*"))
    with pytest.raises(ValueError, match=name.strip("/")): Run("t", dict(out="proj"))
    code, text = said("run", notebook("t.ipynb", FINISH), "--out", "proj")
    assert code == 2 and name.strip("/") in text and text.count("\n") == 1
    assert sorted((p, p.stat().st_mtime_ns) for p in Path("proj").rglob("*")) == before


def test_planted_links_are_not_followed():
    notebook("t.ipynb", FINISH)
    Path("e.yaml").write_text("notebook: t.ipynb\ngrid: {seeds: 1}")
    run = Path("out") / plan(read_experiment("e.yaml"), "out")[0].name
    run.mkdir(parents=True)
    places = ["out/.lock", "out/sweep.json", run / "log.txt", run / "status.json", run / "executed.ipynb"]
    for i, place in enumerate(places):
        Path(f"victim{i}").write_text("precious")
        os.symlink(Path(f"victim{i}").resolve(), place)
    rows = sweep("e.yaml", "out", report=False, progress=False)
    assert rows[0]["state"] == "failed" and "executed.ipynb" in rows[0]["error"]       # the link is not ours
    os.unlink(run / "executed.ipynb")
    assert sweep("e.yaml", "out", report=False, progress=False)[0]["state"] == "done"
    assert {Path(f"victim{i}").read_text() for i in range(len(places))} == {"precious"}
    os.makedirs("elsewhere")
    os.makedirs("o2")
    os.symlink("../elsewhere", "o2/.cellinterp")
    with pytest.raises(ValueError, match="not made by cellinterp"): Run("t", dict(out="o2"))


def test_keys_of_a_bucket_stay_in_the_scratch_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLINTERP_SCRATCH", str(tmp_path / "scratch"))

    class Bucket:
        protocol = "s3"
        def __init__(self, *keys): self.keys = keys
        def exists(self, path): return True
        def find(self, root, detail=True): return {f"{root}/{k}": {"size": 1} for k in self.keys}
        def _strip_protocol(self, path): return path
        def get_file(self, path, target): Path(target).write_text("hostile")
    for key in "checkpoint/../../../../.bashrc", "a/../../x", "/etc/x/../../..", "..", "a\\..\\..\\x":
        monkeypatch.setattr(remote, "filesystem", lambda url, key=key: (Bucket("ok.txt", key), "lab/run"))
        with pytest.raises(ValueError, match="inside"): remote.pull("s3://lab/run")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"ok.txt"}
    for url in "s3://../../x", "memory://a/../../../y", "s3://a\0b", "x y://a", "s3://":
        with pytest.raises(ValueError, match="expected"): remote.local_folder(url)


# ---- a result is the whole run

def test_without_report_and_notebook_there_is_no_result(monkeypatch):
    notebook("t.ipynb", FINISH)
    Path("e.yaml").write_text("notebook: t.ipynb\ngrid: {seeds: 1}")
    run = plan(read_experiment("e.yaml"), "out")[0]
    run.folder.mkdir(parents=True)
    monkeypatch.setenv(FOLDER, str(run.folder.resolve()))                              # as under `cellinterp run`
    Run("t", run.params).finish({"v": 1})                                              # and killed here
    monkeypatch.delenv(FOLDER)
    assert not (run.folder / "result.json").exists()
    assert plan(read_experiment("e.yaml"), "out")[0].state == "new"
    assert sweep("e.yaml", "out", progress=False)[0]["state"] == "done"
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "executed.ipynb", "log.txt", "report.html", "result.json", "status.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"schema": 1}', '{"metrics": {"a": "1"}}', "\0" * 100])
def test_a_damaged_result_is_no_result_and_names_itself(text):
    notebook("t.ipynb", FINISH)
    Path("e.yaml").write_text("notebook: t.ipynb\ngrid: {seeds: 1}")
    run = plan(read_experiment("e.yaml"), "out")[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text(text)
    (run.folder / "status.json").write_text(text)
    assert plan(read_experiment("e.yaml"), "out")[0].state == "new"
    for command in "collect", "compare":
        code, line = said(command, "out")
        assert code == 2 and "1 damaged" in line and line.count("\n") == 1
    with pytest.raises(ValueError, match="result.json"): read_run(run.folder / "result.json")


def test_code_that_was_edited_while_it_ran_does_not_finish(monkeypatch):
    run, before = Run("t", dict(out="o")), facts.module_hashes()
    monkeypatch.setattr(facts, "module_hashes", lambda: {**before, "laws/extra.py": "0"})
    with pytest.raises(RuntimeError, match=r"edited while t ran \(laws/extra.py\)"): run.finish({"v": 1})
    assert not Path("o/result.json").exists()
    edit = "text = open('t.ipynb').read().replace(\"'v': 1.0\", \"'v': 2.0\")\nopen('t.ipynb', 'w').write(text);"
    path = notebook("t.ipynb", FINISH, edit)
    with pytest.raises(RunFailed, match="t.ipynb was edited while it ran"):
        execute(path, {}, "o2", progress=False, report=False)
    assert not Path("o2/result.json").exists()


def test_two_runs_in_one_folder():
    notebook("t.ipynb", FINISH)
    code = "from cellinterp.runs.folder import locked\nwith locked('o'): print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    Path("o").mkdir()
    other.stdout.readline()
    with pytest.raises(Busy, match=f"another run is at work in 'o' .process {other.pid} on"):
        execute("./t.ipynb", {}, "o", progress=False)
    assert said("run", "./t.ipynb", "--out", "o")[0] == 2
    with pytest.raises(Busy): Run("t", dict(out="o"))
    other.kill()
    other.wait()
    with locked("o"): pass


# ---- notebooks that do harm

ENDS = {
    "sys_exit": (["import sys; sys.exit(0)", FINISH], "ended itself by sys.exit in cell"),
    "exit_after": ([FINISH, "import sys; sys.exit(0)", "1"], "ended itself by sys.exit in cell"),
    "dead_after": ([FINISH, "import os; os._exit(0)"], "died"),
    "signal": (["import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", FINISH], "died"),
    "deleted": (["import shutil; shutil.rmtree(out)", FINISH], "o"),
    "wrong_after": ([FINISH, "assert False, 'the check says no'"], "the check says no"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_notebook_that_ends_otherwise_leaves_no_result_and_one_sentence(name):
    body, message = ENDS[name]
    command = [*COMMAND, "run", notebook("t.ipynb", *body), "-o", "o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not Path("o/result.json").exists() and len(done.stderr.strip().splitlines()) <= 2


def test_hostile_places_and_floods():
    "A long TMPDIR, a HOME that is read-only, a terminal that knows only ASCII, a flood of output, a child that hides."
    long = Path("t" * 100)
    long.mkdir()
    body = ["import subprocess\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\nprint('µ · ±')",
            "for _ in range(120): print('x' * 100_000)", FINISH]
    env = {**os.environ, "TMPDIR": str(long.resolve()), "HOME": "/proc", "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "run", notebook("t.ipynb", *body), "-o", "o"]
    done = subprocess.run(command, capture_output=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"\\xb5" in done.stdout and len(done.stdout) < 6e6 and Path("o/executed.ipynb").stat().st_size < 6e6
    assert b"this cell printed more" in done.stdout
    assert not list(long.iterdir()) and not [p for p in Path("/proc").glob("[0-9]*/cwd") if _below(p)]


def _below(link) -> bool:
    try: return os.readlink(link) == os.getcwd() and int(link.parent.name) != os.getpid()
    except OSError: return False


def test_a_report_that_cannot_be_made_does_not_undo_a_run(monkeypatch, capsys):
    import cellinterp.runs.report as report
    monkeypatch.setattr(report, "notebook_to_html", lambda *a: (_ for _ in ()).throw(IndexError("99")))
    assert execute(notebook("t.ipynb", FINISH), {}, "o")["metrics"] == {"v": 1.0}
    assert "its report could not be made: 99" in capsys.readouterr().out
    assert sorted(p.name for p in Path("o").iterdir()) == ["executed.ipynb", "result.json"]


def test_a_run_is_stopped_when_its_time_is_up():
    start = time.monotonic()
    with pytest.raises(RunFailed, match="stopped after 8 s"):
        execute(notebook("t.ipynb", "while True: pass", FINISH), {}, "o", progress=False, timeout=8)
    assert time.monotonic() - start < 60 and not Path("o/result.json").exists()
    for bad in -1, 0, math.nan:
        with pytest.raises(ValueError, match="timeout"): execute("./t.ipynb", {}, "o", timeout=bad)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_every_child_dies_with_the_command(how):
    if signal.getsignal(how) == signal.SIG_IGN: pytest.skip("started with nohup: hanging up is ignored, as asked")
    work = ("import subprocess, sys\nsubprocess.Popen(['setsid', 'sleep', '300'])\n"
            "from joblib import Parallel, delayed\ndef busy(k):\n    open(out + f'/began{k}', 'w').close()\n"
            "    while True: k += 1\nParallel(n_jobs=2)(delayed(busy)(k) for k in range(2))")
    command = [*COMMAND, "run", notebook("t.ipynb", work, FINISH), "-o", "o"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(lambda: len(list(Path("o").glob("began*"))) == 2, 120)
    process.send_signal(how)
    process.wait(60)
    wait(lambda: not [p for p in Path("/proc").glob("[0-9]*/cwd") if _below(p)], 20)


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_a_stopped_process_takes_everything_along():
    work = "import subprocess, time\nsubprocess.Popen(['setsid', 'sleep', '300'])\nopen(out + '/on', 'w')"
    path = notebook("t.ipynb", work, "time.sleep(300)")
    params = dict(out="o")
    task = RunProcess(dict(notebook=path, params=params, env=worker_env(1, None), seconds=300, report=False))
    wait(lambda: Path("o/on").exists(), 120)
    assert len(marked(task.mark)) >= 3
    task.kill()
    assert marked(task.mark) == [] and MARK not in os.environ


def test_a_full_disk_keeps_its_reason():
    with pytest.raises(RunFailed, match="No space left on device"):
        execute(notebook("t.ipynb", "open('/dev/full', 'w').write('x' * 10**6)", FINISH), {}, "o", progress=False)


# ---- bad input: one sentence, exit code 2

BAD = [
    ["run", "t.ipynb", "-p", "seed=1" + "0" * 400], ["run", "t.ipynb", "-p", "seed=nan"],
    ["run", "t.ipynb", "-p", "seed=.inf"],
    ["run", "empty.ipynb"], ["run", "cell.ipynb"], ["run", "null.ipynb"], ["run", "list.ipynb"],
    ["run", "deep.ipynb"],
    ["run", "noformat.ipynb"], ["list", "empty.ipynb"], ["list", "null.ipynb"], ["list", "cell.ipynb"], ["run", "\0"],
    ["run", "x" * 5000 + ".ipynb"], ["run", "t.ipynb", "-f", "date.yaml"], ["run", "t.ipynb", "-f", "bomb.yaml"],
    ["run", "t.ipynb", "-f", "binary.yaml"], ["run", "t.ipynb", "-f", "keys.yaml"],
    ["run", "t.ipynb", "-f", "pipe.yaml"],
    ["run", "t.ipynb", "-o", "s3://../x"], ["run", "t.ipynb", "-o", "\0"], ["run", "t.ipynb", "-o", "x" * 5000],
    ["run", "t.ipynb", "--timeout", "0"], ["run", "t.ipynb", "--timeout", "nan"], ["sweep", "grid.yaml", "-o", "s"],
    ["sweep", "twice.yaml", "-o", "s"], ["sweep", "zero.yaml", "-o", "s"], ["sweep", "good.yaml", "-o", "s", "-w", "0"],
    ["sweep", "good.yaml", "-o", "s", "--devices", "0;rm"], ["sweep", "good.yaml", "-o", "t.ipynb"],
    ["sweep", "good.yaml", "-o", "s", "--where", "slurm"], ["collect", "nowhere"], ["compare", "nowhere"],
    ["collect", "t.ipynb"], ["predict", "nowhere", "x", "-o", "t.csv"], ["predict", "x", "y", "-o", "good.csv"],
]


@pytest.mark.parametrize("args", BAD, ids=lambda a: " ".join(a)[:60])
def test_bad_input_is_one_sentence_and_exit_code_2(args, monkeypatch):
    notebook("t.ipynb", FINISH)
    cell = '{"cell_type": "code", "metadata": %s, "source": "a = 1", "outputs": []}'
    files = {
        "empty.ipynb": '{"cells": [{}]}', "cell.ipynb": '{"nbformat": 4, "cells": [3]}', "list.ipynb": "[]",
        "null.ipynb": '{"nbformat": 4, "cells": [%s]}' % (cell % "null"), "deep.ipynb": "[" * 100_000,
        "noformat.ipynb": '{"cells": [%s]}' % (cell % '{"tags": ["parameters"]}'), "date.yaml": "seed: 2024-13-45",
        "bomb.yaml": "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
        "keys.yaml": "1: 2", "good.yaml": "notebook: t.ipynb\ngrid: {seeds: 1}", "good.csv": "x",
        "grid.yaml": "notebook: t.ipynb\ngrid: {seeds: 1000000000}",
        "twice.yaml": "notebook: t.ipynb\ngrid: {zip: {seed: [1, 1]}}",
        "zero.yaml": "notebook: t.ipynb\ngrid: {seeds: 1}\nresources: {minutes: 0}",
    }
    for name, text in files.items(): Path(name).write_text(text)
    Path("binary.yaml").write_bytes(bytes(range(256)))
    os.mkfifo("pipe.yaml")
    monkeypatch.setenv("PATH", "/nowhere")                                             # no sbatch
    before, start = sorted(os.listdir()), time.monotonic()
    code, line = said(*args)
    assert code == 2 and line.startswith("cellinterp: ") and line.count("\n") == 1 and len(line) < 2500, (code, line)
    assert time.monotonic() - start < 20 and (sorted(os.listdir()) == before or args[-1] == "slurm")
    assert "month must be" not in line


def test_a_table_that_is_there_is_not_replaced(tmp_path):
    from cellinterp.runs.predict import predict
    Path("t.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"): predict("model", "data", "t.csv")
    assert Path("t.csv").read_text() == "mine"


def test_quick_runs_are_marked_everywhere(capsys):
    for quick in True, False:
        run = Run("t", dict(out=f"s/{quick}", quick=quick))
        run.finish({"m": 1.0}, model=StandardScaler().fit(np.eye(3)))
    shown = capsys.readouterr().out
    assert shown.count("quick run: little data") == 1
    assert read_result("s/True")["quick"] is True and read_result("s/False")["quick"] is False
    from cellinterp.runs.predict import is_quick
    assert is_quick("s/True/model") and not is_quick("s/False/model")
    assert collect("s").attrs["quick"] == ["True"]
    assert "1 of them quick runs" in compare("s").read_text()


def test_gather_joins_runs_and_the_table_that_was_kept():
    notebook("t.ipynb", FINISH)
    Path("e.yaml").write_text("notebook: t.ipynb\ngrid: {seeds: 3}")
    for seed in 0, 1: Run("t", dict(seed=seed, out=f"s/{seed}")).finish({"m": float(seed)})
    first = gather("e.yaml", "s", "kept.csv")
    assert sorted(first.m) == [0, 1] and list(first.attrs["missing"].seed) == [2]
    Run("t", dict(seed=2, out="s2/2")).finish({"m": 9.0})
    both = gather("e.yaml", "s2", "kept.csv")
    assert sorted(both.m) == [0, 1, 9] and len(both.attrs["missing"]) == 0
    assert sorted(gather("e.yaml", None, "kept.csv").m) == [0, 1, 9]
    with pytest.raises(FileNotFoundError): gather("e.yaml", "nowhere", "nothing.csv")


# ---- fuzzing: a value or an error of ours, soon

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), v, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from("product zip seeds minutes threads memory gpus slurm queue prologue".split())
SIGNS = st.text(st.sampled_from("a1 -:[]{}&*!#|>'\"\n\t,?%@.e+é\0"), max_size=60)


@given(SIGNS | st.text(max_size=60))
def test_fuzz_yaml(text):
    with contextlib.suppress(ValueError): parse_yaml(text)
    parse_value(text, None)


@given(PLAIN | st.dictionaries(KEYS, PLAIN, max_size=4))
def test_fuzz_grids_and_resources(value):
    for check in expand_grid, check_resources:
        with contextlib.suppress(ValueError): check(value)


@given(SIGNS | st.text(max_size=80) | st.lists(st.sampled_from("a=1\n[]()#:',")).map("".join))
def test_fuzz_parameter_cells(text):
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError): parse_parameters(text)
    Path("f.ipynb").write_text(json.dumps({"nbformat": 4, "cells": [
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": text}]}))
    try: declared = read_parameters("f.ipynb")
    except ValueError: return
    with contextlib.suppress(ValueError, TypeError): check_parameters(declared, {name: 1 for name in declared})


NOTEBOOKS = st.fixed_dictionaries({"nbformat": st.just(4), "cells": st.lists(PLAIN, max_size=3)})


@given(PLAIN | NOTEBOOKS | st.binary(max_size=50))
def test_fuzz_notebooks_and_results(value):
    for name, read in ("f.ipynb", read_notebook), ("result.json", read_run):
        text = value if isinstance(value, bytes) else json.dumps(value).encode("utf-8", "surrogatepass")
        Path(name).write_bytes(text)
        with contextlib.suppress(ValueError): read(name)
