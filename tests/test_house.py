"""The house: layout, one-way imports, one list of dependencies, a wheel that carries its tutorials."""
import configparser
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import house

# What is still over a limit, with the size it may not grow beyond. A line goes when its debt is paid.
DEBTS = json.loads((ROOT / "tests" / "house_debts.json").read_text())


def over(found, limit, allowed):
    "Of (size, name): those over the limit, and over what is still allowed to them."
    largest = {}
    for size, name in found: largest[name] = max(size, largest.get(name, 0))
    larger = {name: size for name, size in largest.items() if size > allowed.get(name, limit)}
    return [f"{name}: {size}; expected at most {limit}" for name, size in larger.items()]


def test_imports_point_one_way():
    assert not house.wrong_arrows()


def test_no_circles_between_files():
    assert not house.circles()


def test_no_private_names_across_modules():
    assert not house.private_imports()


def test_the_rules_see_what_they_forbid(tmp_path):
    "Each rule on a small house that breaks it: relative imports, imports in functions, circles, private names."
    for room in house.LEVEL:
        (tmp_path / "cellinterp" / room).mkdir(parents=True)
        (tmp_path / "cellinterp" / room / "__init__.py").write_text("")
    upwards = "from ..explain import b\ndef f():\n    from ..factors.c import _hidden\n"
    (tmp_path / "cellinterp/laws/a.py").write_text(upwards)
    (tmp_path / "cellinterp/explain/b.py").write_text("from cellinterp.laws import a\n")
    (tmp_path / "cellinterp/factors/c.py").write_text("_hidden = 1 if True else (2 if True else 3)\n")
    assert house.wrong_arrows(tmp_path) == [
        "laws/a.py:1 imports cellinterp.explain.b",
        "laws/a.py:3 imports cellinterp.factors.c",
    ]
    assert house.circles(tmp_path) == ["cellinterp.explain.b -> cellinterp.laws.a"]
    assert house.private_imports(tmp_path) == ["laws/a.py:3 takes _hidden from cellinterp.factors.c"]
    assert house.nested_conditionals(tmp_path / "cellinterp/factors/c.py") == ["c.py:1"]


def test_small_rules_are_broken_no_more_often_than_is_listed():
    "Conditional expressions inside others, lambdas with a name, several attributes set in one line of a constructor."
    found = {
        rule.__name__: sum(len(rule(path)) for path in house.modules())
        for rule in (house.nested_conditionals, house.named_lambdas, house.crowded_constructors)
    }
    assert found == DEBTS["small rules"], "fewer: lower the number in house_debts.json; more: mend what is new"


def test_cells_and_modules_are_short():
    assert not over(house.long_cells(), house.MAX_CELL, DEBTS["cells"])
    assert not over(house.long_modules(), house.MAX_MODULE, DEBTS["modules"])


def test_every_public_parameter_is_explained():
    _, missing = house.undocumented()
    assert not sorted(set(missing) - set(DEBTS["undocumented"]))


def test_no_debt_is_listed_that_is_paid():
    cells, modules = dict(map(reversed, reversed(house.long_cells()))), dict(map(reversed, house.long_modules()))
    assert not [name for name in DEBTS["cells"] if cells.get(name, 0) <= house.MAX_CELL]
    assert not [name for name in DEBTS["modules"] if modules.get(name, 0) <= house.MAX_MODULE]
    assert not sorted(set(DEBTS["undocumented"]) - set(house.undocumented()[1]))


def test_constructors_have_few_parameters():
    sizes = {name: n for n, name in house.largest_constructors()}
    for name, most in {"factors.VAE": 16, "factors.AffinityVAE": 18, "concepts.ICFL": 15}.items():
        assert sizes[name] <= DEBTS["constructors"].get(name, most), f"{name} has {sizes[name]} parameters"


def test_public_names_are_in_one_room_and_typed():
    names = sum(house.public_names().values(), [])
    assert len(names) == len(set(names)), "a public name stands in two rooms"
    assert (ROOT / "cellinterp" / "py.typed").exists()
    for room, listed in house.public_names().items():
        stub = (ROOT / "cellinterp" / room / "__init__.pyi").read_text()
        assert all(f"import {name} as {name}\n" in stub for name in listed), f"tools/write_stubs.py: {room}"


@pytest.mark.slow
def test_type_checkers_know_the_public_names(tmp_path):
    "mypy finds every public name behind the lazy rooms, and the signature of what it names."
    lines = [f"from cellinterp.{room} import {name}" for room, names in house.public_names().items() for name in names]
    script = tmp_path / "names.py"
    script.write_text("\n".join([*lines, "reveal_type(VAE)"]) + "\n")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "n_factors" in done.stdout, done.stdout[-500:]


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
    cells = simulate_nuclei(20, size=48, random_state=5)
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
        str(ROOT / "nbs/tutorials/symbolic_laws.ipynb"),
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
                    "symbolic_laws",
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
