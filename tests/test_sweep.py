"""Sweeps: every mistake in the file is found before anything starts; nothing finished is repeated; killed in the middle
and started again, the same comes out.
"""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cellinterp.runs.execute import (
    check_parameters,
    find_notebook,
    list_notebooks,
    read_parameters,
    read_params_file,
    read_yaml,
)
from cellinterp.runs.run import Run, code_hash, identity, packaged_folder, read_result
from cellinterp.runs.sweep import plan, read_experiment, sweep, worker_env

# Ten steps of arithmetic with a checkpoint after each, as a stand-in for training: what comes out depends on every
# step.
WORK = """
import json, os, time
from pathlib import Path
at = Path(run.checkpoint) / "state.json"
state = json.loads(at.read_text()) if at.exists() else {"step": 0, "value": float(seed)}
begun = state["step"]
with open(out + "/steps.txt", "a") as f: f.write(f"{os.getpid()} from {begun}\\n")
while state["step"] < steps:
    time.sleep(pause)
    state = {"step": state["step"] + 1, "value": (state["value"] * 1.7 + rate) % 1}
    at.parent.mkdir(parents=True, exist_ok=True)
    at.with_suffix(".part").write_text(json.dumps(state)); os.replace(at.with_suffix(".part"), at)
    if state["step"] == 3 and mode == "raise": raise ValueError("the cells\\nare gone")
    if state["step"] == 3 and mode == "dead": os._exit(1)
    if state["step"] == 3 and mode == "full": open("/dev/full", "w").write("x" * 10**6)
"""
PARAMETERS = (
    'rate = 0.1\nsteps = 5\npause = 0.0\nmode = "fine"\nobjective = "beta"\nseed = 0\ndevice = "auto"\nout ='
    ' "runs/steps"'
)
RUN = (
    'from cellinterp.runs.run import Run\nrun = Run("steps", params=dict(rate=rate, steps=steps, pause=pause,'
    " mode=mode, objective=objective, seed=seed, device=device, out=out))"
)


def notebook(path="steps.ipynb", work=WORK, tags=("parameters",)):
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": list(tags)}),
        new_code_cell(RUN),
        new_code_cell(work),
        new_code_cell('run.finish({"value": state["value"]});'),
    ]
    nbformat.write(new_notebook(cells=cells), path)


def experiment(text="grid: {seeds: 2}", name="steps.yaml"):
    Path(name).write_text("notebook: steps.ipynb\n" + text)
    return name


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook()


COMMAND = [sys.executable, "-c", "import cellinterp.runs.cli as c; c.main()"]
def cli(*args, **kwargs):
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def kernels():
    "Python processes that run in this folder: the sweep's own, and kernels."
    found = []
    for p in psutil.process_iter():
        try:
            if p.cwd() == os.getcwd() and p.pid != os.getpid() and p.status() != "zombie": found.append(p)
        except psutil.Error: pass
    return found


def until(condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert (
            time.monotonic() < end
        ), f"waited in vain; alive: {[(p.pid, p.ppid(), p.status(), p.cmdline()) for p in kernels() if p.is_running()]}"
        time.sleep(0.05)


def results(out): return {p.parent.name: json.loads(p.read_text()) for p in sorted(Path(out).glob("*/result.json"))}
def begun(folder): return [line.split(" from ")[1] for line in (Path(folder) / "steps.txt").read_text().splitlines()]


# ---- the file

@pytest.mark.parametrize(
    "text, message",
    [
        ("", "grid of steps.yaml is empty"),
        ("grid: {}", "empty"),
        ("grid: {seeds: 0}", "empty"),
        ("grid: {product: {rate: []}}", "rate lists no value"),
        ("grid: {product: {rte: [1]}}", "did you mean rate"),
        ("parameters: {step: 3}\ngrid: {seeds: 2}", "no parameter 'step'"),
        ("grid: {product: {steps: [1.5]}}", "steps must be a whole number"),
        ("grid: {product: {rate: [fast]}}", "rate must be a number"),
        ("grid: {product: {rate: 1}}", "must be a list"),
        ("grid: {zip: {rate: [1, 2], steps: [1]}}", "differ in length"),
        ("grid: {product: {rate: [1, 1.0]}}", "same value of rate twice"),
        ("parameters: {rate: 1}\ngrid: {product: {rate: [1]}}", "under `parameters` and in the grid"),
        ("grid: {product: {seed: [1]}, seeds: 2}", "sets seed twice"),
        ("grid: {seeds: [1, 1]}", "seed twice"),
        ("parameters: {out: x}\ngrid: {seeds: 2}", "sets `out`"),
        ("grids: {seeds: 2}", "did you mean grid"),
        ("grid: {seeds: 2}\nresources: {minuts: 1}", "did you mean minutes"),
        ("grid: {seeds: 2}\nresources: {minutes: long}", "minutes in steps.yaml must be a number"),
        ("grid: [1]", "must hold"),
        ("parameters: 3\ngrid: {seeds: 2}", "must hold"),
        ("grid: {seeds: x}", "seeds"),
    ],
)
def test_mistakes_in_the_file_start_nothing(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sweep(experiment(text), "out")
    assert not Path("out").exists()


def test_a_lost_tag_or_notebook_starts_nothing():
    notebook(tags=())
    done = cli("sweep", experiment(), "--out", "out")
    assert done.returncode == 2 and "no cell tagged `parameters`" in done.stderr and done.stderr.count("\n") == 1
    Path("steps.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="steps.ipynb"): read_experiment("steps.yaml")
    Path("x.yaml").write_text("grid: {seeds: 1}")
    with pytest.raises(ValueError, match="which notebook"): read_experiment("x.yaml")
    assert not Path("out").exists()


def test_a_grid_is_product_times_zip_times_seeds():
    text = (
        "parameters: {pause: 0.0}\ngrid:\n  product: {objective: [a, b], rate: [1, 2, 3]}\n  zip: {steps: [1, 2], mode:"
        " [x, y]}\n  seeds: [5, 7]"
    )
    found = read_experiment(experiment(text))
    assert (
        found.axes == ["objective", "rate", "steps", "mode", "seed"]
        and len(found.runs) == 24
        and found.resources["minutes"] == 15
    )
    assert found.runs[1] == dict(pause=0.0, objective="a", rate=1.0, steps=1, mode="x", seed=7)
    assert {(r["steps"], r["mode"]) for r in found.runs} == {(1, "x"), (2, "y")} and len(
        {p.name for p in plan(found, "out")}
    ) == 24


def test_a_notebook_is_found_beside_the_file_or_from_here(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.yaml").write_text("notebook: ../steps.ipynb\ngrid: {seeds: 1}")
    (tmp_path / "elsewhere/f.yaml").write_text("notebook: ./steps.ipynb\ngrid: {seeds: 1}")
    assert (
        read_experiment("elsewhere/e.yaml").notebook
        == read_experiment("elsewhere/f.yaml").notebook.resolve()
        == tmp_path / "steps.ipynb"
    )


def test_every_packaged_experiment_fits_its_notebook():
    for path in sorted(packaged_folder("experiments").glob("*.yaml")):
        content = read_yaml(path)[1]
        if "grid" in content: assert read_experiment(path).runs
        else:
            name, values = read_params_file(path)
            assert check_parameters(read_parameters(find_notebook(name)), values, path.name) is not None


def test_every_tutorial_has_a_gpu_file_with_its_estimate():
    "The table of estimates is of these very parameters, and the file says what the table says."
    folder = packaged_folder("experiments")
    files = {p.stem: read_experiment(p) for p in sorted(folder.glob("*_gpu.yaml"))}
    reports = {"affinity_report"}                                             # on a model that is there already
    assert {
        f"{n['name']}_gpu" for n in list_notebooks() if n["kind"] == "tutorials" and n["name"] not in reports
    } == set(files) and not list(folder.glob("*_full.yaml"))
    table = pd.read_csv(Path(__file__).parents[1] / "nbs/benchmarks/gpu_estimates.csv").set_index("file")
    for name, e in files.items():
        mark = hashlib.sha256(json.dumps([e.notebook.stem, e.runs], sort_keys=True).encode()).hexdigest()[:8]
        assert (
            name == f"{e.notebook.stem}_gpu" and mark == table.parameters[name]
        ), f"{name}.yaml has changed: run benchmarks/gpu_estimates again and keep its table"
        assert e.description.endswith(
            table.sentence[name]
        ), f"the description of {name}.yaml must end: {table.sentence[name]}"
        assert e.resources["minutes"] >= 2 * (60 * table.hours_run[name] + table.data_minutes[name]) and (
            table.hours_run[name] == 0 or e.resources["gpus"] == 1 and {r["device"] for r in e.runs} == {"cuda"}
        )


# ---- identity

def test_identity_is_code_and_parameters_without_place_and_device():
    base = dict(rate=1, seed=0)
    assert identity("c", {**base, "out": "a", "device": "cpu"}) == identity(
        "c", {"seed": 0, "rate": 1, "out": "b", "device": "cuda"}
    )
    assert len({identity("c", base), identity("d", base), identity("c", {**base, "rate": 2})}) == 3


def finish_all(text="grid: {seeds: 2}"):
    for run in plan(read_experiment(experiment(text)), "out"):
        run = Run("steps", run.params)
        run.code_hash = code_hash("steps.ipynb")
        run.finish({})


def states(keep=False): return [r["state"] for r in sweep("steps.yaml", "out", dry_run=True, keep_finished=keep)]


def test_what_is_due(capsys):
    finish_all()
    assert states() == ["finished"] * 2
    experiment("grid: {seeds: 3}")                                            # a larger grid keeps what there is
    assert states() == ["finished", "finished", "new"]
    experiment("grid: {product: {device: [cpu]}, seeds: 3}")                  # another device is no other run
    assert states() == ["finished", "finished", "new"]
    experiment("parameters: {rate: 2}\ngrid: {seeds: 2}")
    assert states() == ["new"] * 2
    experiment()
    notebook(work=WORK + "\n# other code")
    assert states() == ["changed"] * 2 and states(keep=True) == ["finished"] * 2
    first = Path(sweep("steps.yaml", "out", dry_run=True)[0]["folder"])
    (first / "result.json").unlink()
    (first / "status.json").write_text('{"state": "running"}')
    assert states() == ["interrupted", "changed"]
    (first / "status.json").write_text('{"state": "failed"}')
    assert states(keep=True) == ["failed", "finished"]


def test_a_changed_parameter_or_value_of_one_axis_finds_its_old_folder():
    finish_all("grid: {product: {rate: [1, 2]}}")
    # beta is the default, but it was not given before: another run
    experiment("parameters: {rate: 2}\ngrid: {product: {objective: [beta]}}")
    assert states() == ["new"]
    experiment("parameters: {rate: 1}\ngrid: {seeds: [0]}")
    assert states() == ["new"]


# ---- running

def test_failures_do_not_stop_a_sweep_and_are_told(tmp_path):
    done = cli(
        "sweep",
        experiment("grid: {product: {mode: [raise, dead, full, fine]}}\nresources: {minutes: 1}"),
        "--out",
        "out",
        "--workers",
        2,
        "--no-report",
    )
    assert done.returncode == 1 and "3 failed" in done.stderr and "1 of 4 runs are finished" in done.stdout, (
        done.stdout + done.stderr
    )
    for words in "ValueError: the cells are gone", "most often for want of memory", "No space left on device":
        assert words in done.stderr, done.stderr
    for folder in sorted(Path("out").iterdir()):
        if folder.name.startswith("mode=raise"):
            assert "the cells" in (folder / "failed.ipynb").read_text() and str(folder / "failed.ipynb") in done.stderr
        if folder.is_dir(): assert (folder / "result.json").exists() == folder.name.startswith("mode=fine")
    assert "1 done · 0 running · 3 failed · 0 waiting" in done.stdout and kernels() == []
    # repaired: other code, so everything is run again, from its start
    notebook(work=WORK.replace('mode == "raise"', "False"))
    rows = sweep("steps.yaml", "out", report=False, progress=False, limit=1)
    assert (
        rows[0]["state"] == "done"
        and begun(rows[0]["folder"]) == ["0", "0"]
        and [r["state"] for r in rows[1:]] == ["failed", "failed", "changed"]
    )


def test_a_failed_run_resumes_where_it_was():
    experiment("parameters: {mode: raise}\ngrid: {seeds: 1}")
    for _ in range(2): row = sweep("steps.yaml", "out", report=False, progress=False)[0]
    assert begun(row["folder"]) == ["0", "3"] and row["state"] == "done"      # it fails at step 3 only
    assert not (Path(row["folder"]) / ".cellinterp").exists() and not (Path(row["folder"]) / "failed.ipynb").exists()


def test_a_run_that_takes_too_long_is_stopped():
    experiment("parameters: {pause: 60}\ngrid: {seeds: 1}\nresources: {minutes: 0.2}")
    row = sweep("steps.yaml", "out", report=False, progress=False)[0]
    assert (
        row["state"] == "failed"
        and "stopped after 12 s" in row["error"]
        and (Path(row["folder"]) / "failed.ipynb").exists()
    )
    assert json.loads((Path(row["folder"]) / "status.json").read_text())["error"] == row["error"]
    until(lambda: kernels() == [], 20)


SLOW = "parameters: {pause: 0.25, steps: 8}\ngrid: {seeds: 3}"


def unbroken():
    "What an unbroken sweep gives, by the arithmetic of WORK."
    values = {}
    for seed in range(3):
        values[seed] = float(seed)
        for _ in range(8): values[seed] = (values[seed] * 1.7 + 0.1) % 1
    return values


@pytest.mark.parametrize("kill", ["sweep", "ctrl-c"])
def test_killed_and_started_again_gives_the_same(kill):
    command = [*COMMAND, "sweep", experiment(SLOW), "--out", "out", "--workers", "2", "--no-report"]
    # whoever started the tests may ignore Ctrl-C
    def heed():
        return signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    # one is finished, the last has begun
    until(lambda: len(results("out")) >= 1 and sum((p / "steps.txt").exists() for p in Path("out").glob("seed=*")) == 3)
    third = next(p for p in Path("out").glob("seed=2*"))
    until(lambda: list(third.glob(".cellinterp/checkpoint/*/state.json")))
    finished = results("out")
    process.send_signal({"sweep": signal.SIGKILL, "ctrl-c": signal.SIGINT}[kill])
    shown, said = process.communicate(timeout=150)
    until(lambda: kernels() == [], 20)                                         # nobody is left
    if kill != "sweep":
        assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said + shown, said + shown
    assert "finished" in states() and states()[2] == "interrupted"
    done = cli(*command[3:])
    assert done.returncode == 0, done.stdout + done.stderr
    again = results("out")
    assert {r["seed"]: r["metrics"]["value"] for r in again.values()} == unbroken()
    # not run again: not even the seconds differ
    assert all(again[name] == r for name, r in finished.items())
    # and the third went on, not back to its start
    assert len(begun(third)) == 2 and 1 <= int(begun(third)[1]) <= 8


def test_a_killed_worker_is_a_failed_run_and_takes_its_kernel_along():
    process = subprocess.Popen(
        [
            *COMMAND,
            "sweep",
            experiment("parameters: {pause: 0.25}\ngrid: {product: {steps: [100]}, seeds: 1}"),
            "--out",
            "out",
            "--no-report",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: list(Path("out").glob("*/.cellinterp/checkpoint/*/state.json")))
    worker = json.loads(next(Path("out").glob("*/status.json")).read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    shown, said = process.communicate(timeout=150)
    assert process.returncode == 1 and "killed by signal 9" in said and "failed.ipynb" in said, said
    until(lambda: kernels() == [], 20)


def test_two_sweeps_in_one_folder():
    experiment("parameters: {pause: 0.5}\ngrid: {seeds: 1}")
    process = subprocess.Popen(
        [*COMMAND, "sweep", "steps.yaml", "--out", "out", "--no-report"], stdout=subprocess.PIPE, text=True
    )
    until(lambda: list(Path("out").glob("*/steps.txt")))
    other = cli("sweep", "steps.yaml", "--out", "out")
    assert (
        other.returncode == 2
        and f"another sweep is at work in 'out' (process {process.pid} on" in other.stderr
        and other.stderr.count("\n") == 1
    )
    process.communicate(timeout=150)
    assert process.returncode == 0 and len(results("out")) == 1


def test_workers_are_pinned():
    notebook(
        work=(
            "import os\nstate = dict(value=int(os.environ['OMP_NUM_THREADS']) + 10 *"
            " len(os.environ['CUDA_VISIBLE_DEVICES']))"
        )
    )
    rows = sweep(
        experiment("grid: {seeds: 3}\nresources: {threads: 3}"),
        "out",
        devices="7,cpu",
        workers=3,
        report=False,
        progress=False,
    )
    assert [read_result(r["folder"])["metrics"]["value"] for r in rows] == [13, 3, 13] and read_result(
        rows[0]["folder"]
    )["threads"] == 3
    assert (
        worker_env(2, None).keys().isdisjoint({"CUDA_VISIBLE_DEVICES"})
        and worker_env(2, "cpu")["CUDA_VISIBLE_DEVICES"] == ""
    )


@pytest.mark.parametrize(
    "args, message",
    [(dict(workers=0), "workers must be"), (dict(limit=0), "limit must be"), (dict(where="moon"), "where must be")],
)
def test_wrong_options(args, message):
    with pytest.raises(ValueError, match=message):
        sweep(experiment(), "out", **args)
    assert not Path("out").exists()


# ---- clusters

def fake_slurm(folder: Path):
    """sbatch starts the script in a session of its own, scancel kills that session, squeue lists what lives; every call
    is noted.
    """
    folder.mkdir()
    scripts = {
        "sbatch": (
            f'cp "${{@: -1}}" {folder}/$$.job; setsid bash {folder}/$$.job > {folder}/$$.out 2>&1 < /dev/null & echo $!'
            f' > {folder}/$$.pid; echo "Submitted batch job $$"'
        ),
        "scancel": f'for job in "$@"; do kill -- -$(cat {folder}/$job.pid); done',
        "sinfo": "true",
        "squeue": f"for p in {folder}/*.pid; do kill -0 $(cat $p) 2>/dev/null && basename $p .pid; done; true",
    }
    for name, script in scripts.items():
        head = '#!/bin/bash\n[ "$1" = --test-only ] && exit 0\n'
        (folder / name).write_text(f"{head}echo {name} >> {folder}/calls\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def test_processes_dask_and_slurm_give_the_same_table(monkeypatch, tmp_path):
    pytest.importorskip("dask_jobqueue")
    from cellinterp.runs.collect import collect
    experiment(
        "grid: {product: {rate: [0.1, 0.3]}, seeds: [0]}\nresources: {threads: 1, memory: 1, slurm: {queue: gpu,"
        " account: lab, interface: lo}}"
    )
    slurm = fake_slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    tables = {}
    from distributed import LocalCluster
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50
    ) as cluster:
        for out, options in dict(
            local={},
            dask=dict(where="dask", workers=2),
            scheduler=dict(where="dask", scheduler=cluster.scheduler_address),
            slurm=dict(where="slurm"),
        ).items():
            rows = sweep("steps.yaml", out, report=False, progress=False, **{"workers": 1, **options})
            assert [r["state"] for r in rows] == ["done"] * 2, rows
            tables[out] = collect(out).drop(columns=["seconds", "peak_memory_mb"])
    for out in "dask", "scheduler", "slurm": assert tables["local"].equals(tables[out]), out
    calls, script = (slurm / "calls").read_text().split(), next(slurm.glob("*.job")).read_text()
    assert calls.count("sbatch") == 1 and calls.count("scancel") == 1
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH -A lab",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=954M",
        "#SBATCH -t 00:40:00",
        "export OMP_NUM_THREADS=1",
    ):
        assert line in script, script
    until(lambda: kernels() == [], 15)
    assert not list(Path("slurm").glob(".cellinterp/alive-*"))


def test_a_dask_run_ends_with_its_sweep(monkeypatch, tmp_path):
    pytest.importorskip("distributed")
    from cellinterp.runs import cluster
    alive = tmp_path / "alive"
    alive.touch()
    spec = dict(
        notebook=str(tmp_path / "steps.ipynb"),
        params=dict(pause=30.0, out=str(tmp_path / "r")),
        seconds=60,
        report=False,
        env={},
        alive=str(alive),
        job=False,
    )
    # the sweep was killed: nobody touches the file any more
    monkeypatch.setattr(cluster, "OLD", 1.0)
    assert "the sweep that asked for it has ended" in cluster.run_here(spec)["error"]
    alive.unlink()                                                            # the sweep was stopped
    assert cluster.run_here(spec)["state"] == "failed" and kernels() == []
    # a job of its own ends, too, whatever else it waits for
    alive.touch()
    job = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import time; from cellinterp.runs import cluster; cluster.GRACE = 0.5;"
                f" cluster.end_with_sweep({str(alive)!r}); print(1, flush=True); time.sleep(600)"
            ),
        ],
        stdout=subprocess.PIPE,
    )
    assert job.stdout.readline() and job.poll() is None
    alive.unlink()
    assert job.wait(60) == 0
    with pytest.raises(OSError, match="no dask scheduler answers at 'tcp://127.0.0.1:1'"):
        monkeypatch.setattr("distributed.Client", lambda *a, **k: (_ for _ in ()).throw(OSError("timed out")))
        cluster.dask_pool(1, tmp_path, "tcp://127.0.0.1:1")


def test_clusters_say_what_they_lack(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install .cellinterp\[cluster\]"):
        sweep(experiment(), "out", where="dask")
    with pytest.raises(ValueError, match="is for where='dask'"): sweep(experiment(), "out", scheduler="tcp://x")
