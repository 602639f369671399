#!/usr/bin/env bash
# Build sdist and wheel, install the wheel in an empty environment, and run the main job from it. Tag afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(python - <<'P'
from configparser import ConfigParser
config = ConfigParser(delimiters=["="])
config.read("settings.ini")
print(config["DEFAULT"]["version"])
P
)
grep -q "^## $version" CHANGELOG.md || { echo "CHANGELOG.md: no section $version"; exit 1; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
rm -rf dist
git archive HEAD | tar -x -C "$work"                          # from what is committed, in an empty folder
python -m build --outdir dist "$work"
python -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
(cd "$work" && venv/bin/cellinterp run images_to_law --quick --out out && test -s out/result.json)
echo "dist/ holds cellinterp $version. Now: git tag v$version && git push --tags"
