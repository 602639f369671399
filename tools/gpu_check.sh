#!/usr/bin/env bash
# What a GPU does with this package, in at most eight minutes on a bare machine:  tools/gpu_check.sh [OUT.json]
# Wheels carried along in WHEELS (default: wheels/) are installed without a network; DEVICE=cpu TOY=1 tries it at toy size.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
wheels=${WHEELS:-wheels}
[ ! -d "$wheels" ] || "$python" -m pip install --quiet --no-index --find-links "$wheels" "$wheels"/*.whl
exec "$python" tools/gpu_check.py --device "${DEVICE:-cuda}" ${TOY:+--toy} --out "${1:-gpu_check.json}"
