#!/usr/bin/env bash
# Tests beside TensorFlow Addons, in an environment of its own: run.sh PROJECTS_PYTHON ENVIRONMENT
# Needs Python 3.9, 3.10 or 3.11, which ADDONS_PYTHON may name; elsewhere it says so and ends well.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:?the Python that has ccfnet_tf}
environment=${2:?the folder of the environment to build}

fits() {
  "$1" -c 'import sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null
}
found=
for each in ${ADDONS_PYTHON:-"$python" python3.11 python3.10 python3.9}; do
  if fits "$each"; then found=$each; break; fi
done
if [ -z "$found" ]; then
  echo "test-addons: skipped: TensorFlow Addons needs Python 3.9 to 3.11, and none of" \
    "${ADDONS_PYTHON:-$python python3.11 python3.10 python3.9} is one; name one with ADDONS_PYTHON"
  exit 0
fi

if [ ! "$environment/.ready" -nt "$here/requirements.txt" ]; then
  rm -rf "$environment"
  "$found" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r "$here/requirements.txt"
  touch "$environment/.ready"
fi

material=$(mktemp -d)
trap 'rm -rf "$material"' EXIT
echo "test-addons: what is compared is made by $("$python" --version)"
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1 "$python" "$here/material.py" "$material" \
  2>"$material/log" || { cat "$material/log" >&2; exit 1; }
ADDONS_MATERIAL=$material "$environment/bin/python" -m pytest "$here"
