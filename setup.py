"""Build: name, version and dependencies come from settings.ini; the wheel also carries the tutorials, benchmarks and
experiments.
"""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


class BuildWithNotebooks(build_py):
    """Copy nbs/tutorials, nbs/benchmarks and nbs/experiments into the built package; an editable install reads nbs/
    itself.
    """

    def run(self):
        super().run()
        if self.editable_mode: return
        for folder, pattern in ("tutorials", "*.ipynb"), ("benchmarks", "*.ipynb"), ("experiments", "*.yaml"):
            target = Path(self.build_lib) / "cellinterp" / "_notebooks" / folder
            target.mkdir(parents=True, exist_ok=True)
            for source in sorted((HERE / "nbs" / folder).glob(pattern)): shutil.copy2(source, target / source.name)
        # reports cite from it
        shutil.copy2(HERE / "nbs" / "references.bib", Path(self.build_lib) / "cellinterp" / "_notebooks")


def lines(key): return [line.strip() for line in cfg[key].splitlines() if line.strip()]


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["cellinterp", "cellinterp.*"]),
    package_data={"cellinterp": ["py.typed", "*/*.pyi", "*/templates/*", "*/static/*"]},
    install_requires=lines("requirements"),
    extras_require={
        "dev": lines("dev_requirements"),
        **{key[6:]: lines(key) for key in cfg if key.startswith("extra_")},
    },
    entry_points={
        "console_scripts": ["cellinterp=cellinterp.runs.cli:main"],
        "nbdev": ["cellinterp=cellinterp._modidx:d"],
    },
    cmdclass={"build_py": BuildWithNotebooks},
    zip_safe=False,
)
