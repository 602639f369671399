#!/usr/bin/env bash
# All the checks of `make test`, with the seconds of each; `tools/test.sh quick` is `make check`. Every check runs; one that fails prints
# its output, and the whole fails.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export work

check() {  # check NAME COMMAND…: the output is shown of what fails only
  local name=$1 start=$SECONDS log="$work/${1//\//_}.log" rc=0; shift
  "$@" > "$log" 2>&1 || rc=$?
  printf '%-28s %5d s%s\n' "$name" $((SECONDS - start)) "$([ $rc = 0 ] || echo '  FAILED')" | tee -a "$work/times"
  if [ $rc != 0 ]; then sed "s|^|$name: |" "$log"; fi
  return $rc
}
export -f check

job() {  # one line of the queue: KIND NAME
  case $1 in
    tutorial) check "tutorial $2" cellinterp run "$2" -p quick=true --out "$work/$2" ;;
    notebooks) check "notebooks $2" nbdev-test "nbs/$2" --n-workers 0 ;;  # the cells of a folder share a process
    docs) check docs python tools/build_docs.py ;;
  esac
}
export -f job

queue() {  # the longest first; two lanes for two cores
  printf '%s\n' "notebooks laws" "notebooks runs" "notebooks data" "notebooks concepts" "docs -" "notebooks factors" "notebooks explain"
  for nb in nbs/tutorials/*.ipynb; do echo "tutorial $(basename "$nb" .ipynb)"; done
  printf '%s\n' "notebooks training" "notebooks guides" "notebooks index.ipynb"
}

failed=0
check export tools/generated.sh || failed=1
check lint ruff check . || failed=1
if [ "${1:-}" = quick ]; then
  check pytest python -m pytest -q -n 2 --dist loadfile -m "not slow and not browser and not julia" || failed=1
else
  queue | xargs -P 2 -I LINE bash -c 'job LINE' || failed=1
  check pytest python -m pytest -q -n 2 --dist loadfile -rfE --durations=25 || failed=1
  [ $failed = 0 ] && tail -n 3 "$work/pytest.log"
fi
echo; echo "$SECONDS s in all"
exit $failed
