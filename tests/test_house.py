"""The house: layout, one-way imports, one list of dependencies, a wheel that carries its tutorials."""
import ast
import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {"data": 0, "training": 1, "factors": 2, "concepts": 2, "laws": 2, "explain": 3, "runs": 4}


def imports(path):
    "(line, module) of every import of cellinterp in a file, inside functions too."
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cellinterp"):
            yield node.lineno, node.module
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith("cellinterp"): yield node.lineno, a.name


def test_imports_point_one_way():
    wrong = []
    for path in (ROOT / "cellinterp").glob("*/*.py"):
        if path.parent.name.startswith("_"): continue
        for line, module in imports(path):
            parts = module.split(".")
            if len(parts) > 1 and LEVEL[parts[1]] > LEVEL[path.parent.name]:
                wrong.append(f"{path.parent.name}/{path.name}:{line} imports {module}")
    assert not wrong, wrong


def test_every_module_has_its_notebook_and_page():
    sidebar = (ROOT / "_quarto.yml").read_text()
    for path in (ROOT / "cellinterp").glob("*/*.py"):
        if path.parent.name.startswith("_"): continue
        name = "api" if path.stem == "__init__" else path.stem
        assert (ROOT / "nbs" / path.parent.name / f"{name}.ipynb").exists(), path
        if name != "api": assert f"{path.parent.name}/{name}.ipynb" in sidebar, f"{name} has no page"


def test_the_version_is_one():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    import cellinterp
    assert config["DEFAULT"]["version"] == cellinterp.__version__
    assert f"version: {cellinterp.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_constraints_are_portable():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert "@" not in line and "+" not in line and "file:" not in line, line


def test_training_needs_torch_accelerate_numpy_and_scikit_learn_only():
    "Heavy imports are lazy: a GPU machine without the plotting, zarr or papermill packages can train."
    code = """
import sys
blocked = "matplotlib seaborn zarr tifffile papermill pysr pyoperon skimage nbdev pypandoc typer juliacall".split()
for name in blocked: sys.modules[name] = None
import numpy as np
from cellinterp.factors.vae import VAE
from cellinterp.laws.blackbox import BlackBoxClassifier
from cellinterp.laws.sparse import SparseClassifier
x = np.random.default_rng(0).integers(0, 255, (24, 1, 32, 32)).astype(np.uint8); y = np.array(["a", "b"] * 12)
Z = VAE(3, max_steps=2, widths=(4, 4, 4, 4), hidden=8, device="cpu").fit(x).transform(x)
BlackBoxClassifier(max_steps=2, widths=(4, 4, 4, 4), device="cpu").fit(x, y); SparseClassifier(max_steps=2).fit(Z, y)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    # build from a copy: the checkout stays clean
    source = tmp_path_factory.mktemp("source")
    for name in ("cellinterp", "nbs", "settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(out),
            str(source),
        ],
        check=True,
    )
    return next(out.glob("*.whl"))


def test_a_wheel_lists_and_runs_the_tutorials_without_the_repository(wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    assert (
        "cellinterp/_notebooks/tutorials/images_to_law.ipynb" in names
        and "cellinterp/_notebooks/experiments/images_to_law_gpu.yaml" in names
    )
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    code = (
        "import cellinterp.runs.cli as c, cellinterp; assert 'site' in cellinterp.__file__, cellinterp.__file__;"
        " c.main()"
    )
    listed = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert "images_to_law" in listed.stdout, listed.stdout + listed.stderr
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "images_to_law", "--quick", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (tmp_path / "out" / "result.json").exists() and (tmp_path / "out" / "report.html").exists()
    images = tmp_path / "new.npz"
    import numpy as np

    from cellinterp.data import simulate_nuclei
    cells = simulate_nuclei(20, random_state=5)
    np.savez(images, images=cells.images, labels=cells.labels)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "predict",
            str(tmp_path / "out" / "model"),
            str(images),
            "--out",
            str(tmp_path / "t.parquet"),
        ],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    import pandas as pd
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == 20


def test_plain_papermill_gives_the_same_metrics(tmp_path):
    "The notebook is an experiment without our command line too."
    import json
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs/tutorials/images_to_law.ipynb"),
        str(tmp_path / "out.ipynb"),
        "-k",
        "python3",
        "-p",
        "quick",
        "True",
        "-p",
        "out",
        str(tmp_path / "run"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder in ("a", "b"):
        if folder == "a":
            done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        else:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import cellinterp.runs.cli as c; c.main()",
                    "run",
                    "images_to_law",
                    "--quick",
                    "--out",
                    str(tmp_path / "cli"),
                ],
                capture_output=True,
                text=True,
                env=env,
                cwd=tmp_path,
            )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    a, b = (json.loads((tmp_path / f / "result.json").read_text())["metrics"] for f in ("run", "cli"))
    assert a == b
