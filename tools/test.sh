#!/usr/bin/env bash
# All the checks of `make test`, with the seconds of each stage; `tools/test.sh quick` is `make check`. A stage that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=$(mktemp -d); trap 'rm -rf "$work"; kill $(jobs -p) 2>/dev/null || true' EXIT
times="$work/times"; touch "$times"

stage() {  # stage NAME COMMAND…
  local name=$1 start=$SECONDS; shift
  echo; echo "=== $name"
  "$@" || { echo "=== $name: FAILED after $((SECONDS - start)) s"; exit 1; }
  printf '%-10s %5d s\n' "$name" $((SECONDS - start)) >> "$times"
}

tutorials() {
  local nb
  for nb in nbs/tutorials/*.ipynb; do
    cellinterp run "$(basename "$nb" .ipynb)" -p quick=true --out "$work/$(basename "$nb" .ipynb)" || return 1
  done
}

# the cells of one notebook share a process; several workers would wait minutes for the pools that notebooks leave behind
notebooks() { nbdev-test --n-workers 0; }

stage export tools/generated.sh
stage lint ruff check --quiet .
if [ "${1:-}" = quick ]; then
  stage pytest python -m pytest -n 2 --dist loadfile -m "not slow and not browser and not julia"
else
  # two lanes for two cores: the tutorials run beside the notebooks
  (stage tutorials tutorials) > "$work/tutorials.log" 2>&1 & lane=$!
  stage notebooks notebooks
  wait $lane || { cat "$work/tutorials.log"; exit 1; }
  tail -n 3 "$work/tutorials.log"
  stage docs python tools/build_docs.py
  stage pytest python -m pytest -n 2 --dist loadfile
fi
echo; cat "$times"
