"""A real SLURM of one node on this machine: nothing finished is lost or repeated, whatever happens to jobs and node.

Skipped where SLURM cannot be set up here (it needs root, and Debian's slurm-wlm and munge); CELLINTERP_SLURM=1,
which CI sets, makes that a failure. CELLINTERP_SLURM_RUNS is the size of the sweep: 24 in CI.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.slurm
RUNS = int(os.environ.get("CELLINTERP_SLURM_RUNS", "3"))
SCRIPT = Path(__file__).with_name("slurm_node.sh")
WORK = """
import json, os, time
from pathlib import Path
at = Path(run.checkpoint) / "state.json"
state = json.loads(at.read_text()) if at.exists() else {"step": 0, "value": float(seed)}
with open(out + "/steps.txt", "a") as f: f.write(f"{state['step']}\\n")
while state["step"] < steps:
    time.sleep(pause)
    state = {"step": state["step"] + 1, "value": (state["value"] * 1.7 + 0.1) % 1}
    at.parent.mkdir(parents=True, exist_ok=True)
    at.with_suffix(".part").write_text(json.dumps(state)); os.replace(at.with_suffix(".part"), at)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=120)
    if done.returncode:
        said = done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-200:]
        if os.environ.get("CELLINTERP_SLURM"): pytest.fail(said)
        pytest.skip(said)
    before = dict(os.environ)
    os.environ.update(SLURM_CONF=str(folder / "slurm.conf"), PATH=os.environ["PATH"] + ":/usr/sbin")
    yield folder
    subprocess.run(["scancel", "-u", "root"], capture_output=True)
    subprocess.run([SCRIPT, "stop", folder], capture_output=True, timeout=60)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [
        new_code_cell('steps = 4\npause = 0.2\nseed = 0\nout = "x"', metadata={"tags": ["parameters"]}),
        new_code_cell("from cellinterp.runs.run import Run\nrun = Run.here('steps')"),
        new_code_cell(WORK),
        new_code_cell('run.finish({"value": state["value"]});'),
    ]
    nbformat.write(new_notebook(cells=cells), "steps.ipynb")


def begin(runs, minutes=30, **parameters):
    Path("e.yaml").write_text(json.dumps(dict(
        notebook="steps.ipynb", parameters=parameters, grid=dict(seeds=runs),
        resources=dict(minutes=minutes, threads=1, memory=1, slurm=dict(queue="main", interface="lo")))))
    command = [sys.executable, "-c", "import cellinterp.runs.cli as c; c.main()", "sweep", "e.yaml", "--out", "out",
               "--where", "slurm", "--workers", "1", "--no-report"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def jobs(state="R"):
    done = subprocess.run(["squeue", "-h", "-t", state, "-o", "%i"], capture_output=True, text=True)
    return done.stdout.split()


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def expected(seed, steps):
    value = float(seed)
    for _ in range(steps): value = (value * 1.7 + 0.1) % 1
    return value


def finished(): return {p.parent.name: json.loads(p.read_text()) for p in Path("out").glob("*/result.json")}


def check(process, runs, steps=4):
    shown, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, shown
    values = {r["seed"]: r["metrics"]["value"] for r in finished().values()}
    assert values == {seed: expected(seed, steps) for seed in range(runs)}
    until(lambda: not jobs("R,PD,CG"), 60)


def test_a_sweep_and_a_job_that_is_cancelled_from_outside(slurm):
    process = begin(RUNS)
    until(lambda: finished())
    before = finished()
    until(jobs)
    subprocess.run(["scancel", *jobs()], check=True)
    check(process, RUNS)
    after = finished()
    assert {name: after[name] for name in before} == before                              # not even the seconds differ


def test_a_node_that_is_drained_and_resumed(slurm):
    name = subprocess.run(["sinfo", "-h", "-o", "%n"], capture_output=True, text=True).stdout.split()[0]
    subprocess.run(["scontrol", "update", f"nodename={name}", "state=drain", "reason=test"], check=True)
    process = begin(1)
    until(lambda: jobs("PD"))
    time.sleep(3)
    assert not finished()
    subprocess.run(["scontrol", "update", f"nodename={name}", "state=resume"], check=True)
    check(process, 1)


@pytest.mark.skipif(RUNS < 24, reason="SLURM counts time limits in minutes: only in CI")
def test_a_job_that_its_time_limit_ends(slurm):
    Path("out").mkdir()
    process = begin(1, pause=10.0, steps=12)
    until(jobs)
    subprocess.run(["scontrol", "update", f"jobid={jobs()[0]}", "timelimit=1"], check=True)
    check(process, 1, steps=12)
    begun = next(Path("out").glob("*/steps.txt")).read_text().split()
    assert len(begun) == 2 and int(begun[1]) > 0                                         # it went on, not back
