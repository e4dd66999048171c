# make demo       create .venv, train, evaluate and predict on synthetic scenes: a few minutes
# make test       the tests (2 cores: 7 minutes with AVX-512, up to 15 without)
# make test-all   the tests including the slow ones (30 minutes, up to 70)
# make bench      speed of the network and of the input pipeline
# make bench-peers  speed compared with PyTorch, in a separate environment
# make matrix RUNS="..."  export, verify and time every format of trained runs; prints Markdown
# make test-addons  test exported files and image operations against TensorFlow Addons
# make test-label-studio  test what `rank` writes with Label Studio's own package
# make test-packages  test the sdist and the wheel, each in clean environments
# make coverage   the tests with line coverage
# make lint       ruff, mypy, import-linter
# make docs       the documentation site, in site/
# make lock       update the versions in constraints.txt and requirements-ci.txt
# make env-locked   install the environment from requirements-ci.txt with hashes, as in CI

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Three processes keep two cores busy: tests wait for servers, files and other processes.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
PEERS := .venv-peers
ADDONS := .venv-addons
LABEL_STUDIO := .label-studio
DEMO := runs/demo

.PHONY: env env-locked lock demo test test-slow test-all test-addons test-label-studio test-packages coverage
.PHONY: bench bench-peers matrix lint docs clean

env: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"Python {v[0]}.{v[1]} found, but 3.11 to 3.13 is required: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(MAKE) --no-print-directory check-cv2
	@touch $@

env-locked:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(VENV)/.ready

# Pins one version of each package for Python 3.11 to 3.13 on Linux, resolved with the oldest of them:
# with hashes in requirements-ci.txt, without in constraints.txt. This package itself is excluded.
lock: env
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --extra dev --strip-extras \
	  --generate-hashes --no-annotate --no-emit-options --unsafe-package ccfnet-tf \
	  --output-file requirements-ci.txt setup.cfg
	sed -i '/^# WARNING: The following packages were not pinned/,$$d' requirements-ci.txt
	{ echo '# Versions used by the tests; updated by make lock.'; \
	  grep -oE '^[a-z0-9.-]+==[^ ]+' requirements-ci.txt; } > constraints.txt

# The wheel of OpenCV requires system libraries that containers often lack.
.PHONY: check-cv2
check-cv2:
	@$(BIN)/python -c 'import cv2' || { \
	  echo; \
	  echo 'OpenCV requires system libraries that are not installed. On Debian and Ubuntu:'; \
	  echo '    apt-get install libgl1 libglib2.0-0'; \
	  echo 'on Fedora:'; \
	  echo '    dnf install mesa-libGL glib2'; \
	  exit 1; }

demo: env check-cv2
	@if [ -f $(DEMO)/config.yaml ]; then \
	  $(BIN)/ccfnet-tf fit --out $(DEMO) --resume; \
	else \
	  $(BIN)/ccfnet-tf fit --out $(DEMO); \
	fi
	$(BIN)/ccfnet-tf calibrate $(DEMO)
	$(BIN)/ccfnet-tf evaluate $(DEMO)
	$(BIN)/ccfnet-tf predict $(DEMO) data/sample/test/images --out $(DEMO)/predictions --overwrite
	@echo
	@echo 'Look at:    $(DEMO)/previews/  and  $(DEMO)/predictions/'
	@echo 'Try next:   $(BIN)/ccfnet-tf predict $(DEMO) YOUR_PHOTO.jpg --out predictions'
	@echo '            $(BIN)/ccfnet-tf fit --data.root YOUR_FOLDER --out runs/mine'
	@echo '            $(BIN)/ccfnet-tf presets'

test: env check-cv2
	$(PYTEST) -m 'not slow'

test-slow: env check-cv2
	$(PYTEST) -m slow

test-all: env check-cv2
	$(PYTEST)

# Runs in a separate environment with TensorFlow 2.15; requires Python 3.9 to 3.11.
test-addons: env check-cv2
	tests/addons/run.sh $(BIN)/python $(ADDONS)

# Label Studio's package is in a folder of its own that Python searches last, so that its versions of
# OpenCV and NumPy are not imported.
test-label-studio: env check-cv2 $(LABEL_STUDIO)/.ready
	$(BIN)/python -c 'import site, sys, pytest; site.addsitedir(sys.argv[1]); \
	  sys.exit(pytest.main(sys.argv[2:]))' $(LABEL_STUDIO) tests/report/test_label_studio_sdk.py

$(LABEL_STUDIO)/.ready: tests/report/label_studio_sdk.txt | env
	rm -rf $(LABEL_STUDIO)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(LABEL_STUDIO) -r $<
	@touch $@

# Each in a separate environment; PYTHONS="python3.11 python3.12" selects the interpreters.
PYTHONS ?= $(PYTHON)
test-packages: env check-cv2
	tests/packaging/run.sh $(BIN)/python $(PYTHONS)

coverage: env check-cv2
	$(PYTEST) -m 'not slow' --cov --cov-report=term:skip-covered

# To include your own data sets: make bench DATA="FOLDER FOLDER"
bench: env
	$(BIN)/ccfnet-tf benchmark
	$(BIN)/python -m benchmarks.input_pipeline $(DATA)

# Exports go to export/models; existing ones are reused.
matrix: env
	$(BIN)/python -m benchmarks.export_matrix $(RUNS)

bench-peers: env $(PEERS)/.ready
	$(BIN)/python -m benchmarks.pytorch_peers --python $(PEERS)/bin/python

$(PEERS)/.ready: benchmarks/pytorch_peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS_PIP) -r $<
	@touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --config-file setup.cfg
	$(BIN)/lint-imports --config setup.cfg

docs: env
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(PEERS) $(ADDONS) $(LABEL_STUDIO) build site *.egg-info
