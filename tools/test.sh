#!/usr/bin/env bash
# All the checks of `make test`, with the seconds of each stage. A stage that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
times="$work/times"

stage() {  # stage NAME COMMAND…
  local name=$1 start=$SECONDS; shift
  echo; echo "=== $name"
  "$@" || { echo "=== $name: FAILED after $((SECONDS - start)) s"; exit 1; }
  printf '%-10s %5d s\n' "$name" $((SECONDS - start)) >> "$times"
}

state() { git status --porcelain; git diff | sha256sum; }

generated() {  # modules, cleaned notebooks and README must be what the notebooks say
  local before after
  before=$(state)
  nbdev-export && nbdev-clean && python tools/write_readme.py || return 1
  after=$(state)
  [ "$before" = "$after" ] || { echo "nbdev-export, nbdev-clean or the README writer changed files: commit notebooks and what is written from them together"; git --no-pager diff --stat; return 1; }
}

tutorials() {
  local nb
  for nb in nbs/tutorials/*.ipynb; do
    cellinterp run "$(basename "$nb" .ipynb)" -p quick=true --out "$work/$(basename "$nb" .ipynb)" || return 1
  done
}

stage export generated
# one process: with several, those that hold joblib workers wait five minutes for them to retire
stage notebooks nbdev-test --n-workers 0
stage tutorials tutorials
stage docs python tools/build_docs.py
stage pytest python -m pytest
echo; cat "$times"
