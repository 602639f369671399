"""One run on several processes: `accelerate launch` from the shell, `notebook_launcher` from a notebook; two CPU
processes (gloo) each.
"""
import os
import socket
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cellinterp.runs.execute import execute

TRAIN = """
def train(folder):
    import os
    import numpy as np
    from cellinterp.factors.vae import VAE
    from cellinterp.training.saving import save
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (48, 1, 32, 32)).astype(np.uint8)
    small = dict(widths=(4, 4, 4, 4), hidden=8, max_steps=12, batch_size=16)
    vae = VAE(3, "beta", **small, random_state=0, device="cpu").fit(images)
    rank = os.environ.get("RANK", "0")
    np.save(f"{folder}/factors-{rank}.npy", vae.transform(images))
    if rank == "0": save(vae, f"{folder}/model")
    print("process", rank, "of", os.environ.get("WORLD_SIZE", "1"))
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def env(monkeypatch):
    for key, value in dict(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo").items():
        monkeypatch.setenv(key, value)


def check(folder):
    "Both processes end with the same network, and the saved model is that network."
    a, b = (np.load(folder / f"factors-{rank}.npy") for rank in (0, 1))
    assert np.array_equal(a, b) and np.isfinite(a).all() and a.std() > 0
    from cellinterp.training.saving import load
    images = np.random.default_rng(0).integers(0, 255, (48, 1, 32, 32)).astype(np.uint8)
    np.testing.assert_allclose(load(folder / "model").transform(images), a, rtol=1e-5, atol=1e-6)


def test_accelerate_launch(tmp_path, env):
    (tmp_path / "train.py").write_text(TRAIN + f"\ntrain({str(tmp_path)!r})\n")
    # --multi_gpu is the launcher of several processes; the models ask for the CPU (accelerate launch --cpu would start
    # MPI, or one process)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            str(free_port()),
            str(tmp_path / "train.py"),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 0 of 2" in done.stdout and "process 1 of 2" in done.stdout
    check(tmp_path)


def test_notebook_launcher(tmp_path, env):
    "The notebook trains on two processes and goes on in its own: saved model in, metrics out."
    cells = [
        new_code_cell('seed = 0\nout = "x"', metadata={"tags": ["parameters"]}),
        new_code_cell('from cellinterp.runs.run import Run\nrun = Run("two", params=dict(seed=seed, out=out))'),
        new_code_cell(TRAIN),
        new_code_cell(
            "from accelerate import notebook_launcher\nnotebook_launcher(train, (out,), num_processes=2,"
            f" use_port='{free_port()}')"
        ),
        new_code_cell(
            "from cellinterp.training.saving import load\nrun.finish({'steps': len(load(out + '/model').history_)});"
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "two.ipynb")
    result = execute(tmp_path / "two.ipynb", {}, tmp_path / "out", progress=False, report=False)
    assert result["metrics"]["steps"] >= 1
    check(tmp_path / "out")
