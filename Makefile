# make run · make test · make check · make docs · make lab · make bench: each sets up what it needs, and does nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_WAIT_POLICY := PASSIVE
export PYTHONNOUSERSITE := 1
READY := $(VENV)/.ready
OUT ?= runs/images_to_law

.PHONY: setup run test check docs lab bench release clean

run: setup  ## images in, an equation out: the main job on simulated nuclei
	cellinterp run images_to_law --out $(OUT)

test: setup  ## all checks: generated files, linter, notebooks, tutorials, docs, pytest; seconds a stage
	tools/test.sh

check: setup  ## the quick tier: generated files, linter, fast tests
	tools/test.sh quick

docs: setup  ## the site, in _docs
	python tools/build_docs.py

lab: setup
	jupyter lab nbs

bench: setup  ## the benchmark notebooks, executed in place
	for nb in $(or $(NB),$(wildcard nbs/benchmarks/*.ipynb)); do cellinterp run ./$$nb --out runs/$$(basename $$nb .ipynb) || exit 1; done

release: setup  ## build, check the wheel in an empty environment
	tools/release.sh

setup: $(READY)

$(READY): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "cellinterp needs Python 3.11 to 3.13; set PYTHON=python3.x"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@git rev-parse --git-dir >/dev/null 2>&1 && nbdev-install-hooks || true
	touch $(READY)

clean:
	rm -rf _docs _proc build dist *.egg-info
