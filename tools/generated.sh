#!/usr/bin/env bash
# Modules, clean notebooks, stubs and README must be what the notebooks say; fails when writing them changes a file.
set -euo pipefail
cd "$(dirname "$0")/.."
state() { git status --porcelain; git diff | sha256sum; }
before=$(state)
nbdev-export && nbdev-clean && python tools/write_stubs.py && python tools/write_readme.py
[ "$before" = "$(state)" ] || {
  echo "nbdev-export, nbdev-clean, the stubs or the README writer changed files: commit them together with the notebooks"
  git --no-pager diff --stat
  exit 1
}
