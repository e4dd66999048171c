#!/usr/bin/env bash
# Builds the sdist and the wheel, installs both in clean environments and uses what was installed:
#   run.sh PROJECTS_PYTHON PYTHON...
# The newest versions are installed for every PYTHON; Python 3.11 also gets the lowest versions that
# setup.cfg allows. One environment exists at a time (about 2 GB).
set -euo pipefail
python=${1:?the Python that has build}
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1

# The wheel is built from the sdist, so a file that the sdist lacks is missing in both.
git -C "$root" archive HEAD | tar -x -C "$(mkdir "$work/source" && echo "$work/source")"
"$python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 \
  || { cat "$work/build.log" >&2; exit 1; }
sdist=$(echo "$work"/dist/*.tar.gz)
wheel=$(echo "$work"/dist/*.whl)

# smoke COMMAND WHAT: the package in a folder that is not the checkout.
smoke() {
  rm -rf "$work/use" && mkdir "$work/use"
  # Joined by &&, since `set -e` does not hold on the left of ||.
  (
    cd "$work/use" && "$1" --help && "$1" --version && "$1" presets \
      && "$1" fit --out run --config folder --data.root "$root/data/sample" --data.crop 65 \
        --model.backbone mobilenet_v2 --model.backbone_weights none --model.head_channels 8 \
        --train.batch 4 --train.epochs 1 \
      && "$1" evaluate run \
      && "$1" predict run "$root/data/sample/test/images" --out predictions \
      && test "$(find predictions -name '*.label.png' | wc -l)" -eq 2
  ) >"$work/smoke.log" 2>&1 || { cat "$work/smoke.log" >&2; echo "failed: $2" >&2; exit 1; }
  echo "passed: $2 ($(grep -h '^ccfnet-tf [0-9]' "$work/smoke.log"))"
}

# exports COMMAND WHAT: the run that smoke left, in every format.
exports() {
  for format in saved_model tflite onnx; do
    (cd "$work/use" && "$1" export run --format "$format" --out "exported/$format") \
      >"$work/export.log" 2>&1 || { cat "$work/export.log" >&2; echo "failed: $2, $format" >&2; exit 1; }
  done
  echo "passed: $2, exports"
}

for each in "$@"; do
  name=$("$each" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])')
  bin=$work/environment/bin

  "$each" -m venv "$work/environment"
  "$bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
  smoke "$bin/ccfnet-tf" "$name, wheel"
  "$bin/python" -m pip uninstall --quiet --yes ccfnet-tf
  "$bin/python" -m pip install --quiet --disable-pip-version-check "$sdist"
  smoke "$bin/ccfnet-tf" "$name, sdist"
  rm -rf "$work/environment"

  if [ "$name" = 'Python 3.11' ]; then
    "$each" -m venv "$work/environment"
    # A range such as `numpy>=2.0` or `keras>=3.13,<3.16` is held at its lower end.
    sed -nE 's/^ +([A-Za-z0-9_-]+)(\[[a-z]+\])?>=([0-9.]+).*/\1==\3/p' "$root/setup.cfg" \
      >"$work/lowest.txt"
    "$bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$work/lowest.txt" \
      "${wheel}[serving,litert,onnx]"
    smoke "$bin/ccfnet-tf" "$name, wheel, lowest versions"
    exports "$bin/ccfnet-tf" "$name, wheel, lowest versions"
    rm -rf "$work/environment"
  fi
done
