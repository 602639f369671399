"""Chaos: a sweep is killed at random moments, again and again, and its final table is the undisturbed one.

CELLINTERP_KILLS is the number of kills a place: 30 in CI.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cellinterp.runs.table import collect

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CELLINTERP_KILLS", "4"))
COMMAND = [sys.executable, "-c", "import cellinterp.runs.cli as c; c.main()", "sweep", "e.yaml", "--no-report"]
WORK = """
import json, os, time
from pathlib import Path
at = Path(run.checkpoint) / "state.json"
state = json.loads(at.read_text()) if at.exists() else {"step": 0, "value": float(seed)}
while state["step"] < 6:
    time.sleep(0.3)
    state = {"step": state["step"] + 1, "value": (state["value"] * 1.7 + 0.1) % 1}
    at.parent.mkdir(parents=True, exist_ok=True)
    at.with_suffix(".part").write_text(json.dumps(state)); os.replace(at.with_suffix(".part"), at)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [
        new_code_cell('seed = 0\nout = "x"', metadata={"tags": ["parameters"]}),
        new_code_cell("from cellinterp.runs.run import Run\nrun = Run.here('steps')"),
        new_code_cell(WORK),
        new_code_cell("import pandas as pd\ntable = pd.DataFrame({'x': [seed]})"),
        new_code_cell("run.finish({'value': state['value']}, {'t': table});"),
    ]
    nbformat.write(new_notebook(cells=cells), "steps.ipynb")
    Path("e.yaml").write_text("notebook: steps.ipynb\ngrid: {seeds: 4}")


def processes():
    "Processes of the sweep: they run in this folder."
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            pid, state = int(link.parent.name), (link.parent / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if os.readlink(link) == os.getcwd() and pid != os.getpid() and state != "Z": found.append(pid)
        except OSError: pass
    return found


@pytest.mark.parametrize("where", ["local", "dask"])
def test_killed_at_random_the_table_is_the_same(where):
    dice, kills = random.Random(0), 0
    command = [*COMMAND, "--out", "out", "--where", where, "--workers", "2"]
    while kills < KILLS:
        sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while kills < KILLS and sweep.poll() is None:
            time.sleep(dice.uniform(0.5, 8))
            # the sweep itself, or any of its workers and kernels
            victim = sweep.pid if dice.random() < 0.5 else dice.choice(processes() or [sweep.pid])
            try: os.kill(victim, signal.SIGKILL)
            except ProcessLookupError: continue
            kills += 1
        if kills < KILLS and sweep.wait() == 0:                          # it ended first: again, from nothing
            subprocess.run(["rm", "-r", "out"], check=True)
        if sweep.poll() is None: sweep.kill()
        sweep.wait()
        end = time.monotonic() + 30
        while processes(): assert time.monotonic() < end, "somebody is left"
        for path in Path("out").rglob("result.json"): json.loads(path.read_text())     # whole, or not there
    for _ in range(3):
        if subprocess.run(command, capture_output=True, timeout=600).returncode == 0: break
    table = collect("out", write=False)
    expected = []
    for seed in range(4):
        value = float(seed)
        for _ in range(6): value = (value * 1.7 + 0.1) % 1
        expected.append(value)
    assert list(table.sort_values("seed").value) == expected
    for folder in Path("out").glob("seed*"):
        names = {p.name for p in folder.iterdir()}
        assert names == {"executed.ipynb", "log.txt", "result.json", "status.json", "t.csv"}
