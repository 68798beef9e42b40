# Everything sets itself up in .venv; a machine needs Python 3.10 to 3.13, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PHOTO ?=
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: demo test test-app test-all lint format bench wheel clean

demo: $(READY)  ## train on real digits, score against rival partitions, draw a photo's clusters
	$(BIN)/python examples/demo.py $(if $(PHOTO),--photo "$(PHOTO)")

test: $(READY)  ## the tests that take seconds, on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-app: $(READY)  ## the page of `secvit app` in a real browser: Debian's Chromium, unless CHROMIUM names another
	@test -n "$(CHROMIUM)" || { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } || \
	  { echo "no Chromium; install one, or name it with: make test-app CHROMIUM=/path/to/it"; exit 1; }
	$(BIN)/pip install --quiet -e ".[app]" playwright
	OMP_NUM_THREADS=1 NEEDS_BROWSER=1 $(BIN)/python -m pytest tests/app

test-all: $(READY)  ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## interleaved speed ratios, results/<what>_<hardware>_<torch>_<date>.json
	$(BIN)/secvit bench

bench-gpu:  ## kernels checked and timed, and models, by the python that has torch for a GPU: PYTHON=...
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

wheel: $(READY)
	$(BIN)/pip wheel --no-deps -w dist .

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "secvit needs Python 3.10 to 3.13; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist src/*.egg-info demo_output
