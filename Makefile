# Everything a fresh machine needs: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
OLDEST = .venv-oldest
INTEGRATIONS = .venv-integrations
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help install demo test test-all test-oldest test-integrations lint bench

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/installed  ## create the virtual environment and install the package into it

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=python3.11 (or newer)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dicom,dev]'
	@touch $@

demo: install  ## find lesions in phantom videos that training never saw
	$(BIN)/python -m stnet.demo --output demo

test: install  ## the tests, under ten minutes on two cores
	$(PYTEST) -m "not slow and not integration"

test-all: install  ## the tests with the long ones
	$(PYTEST) -m "not integration"

test-oldest:  ## the tests with the oldest PyTorch and Triton that are supported (Python up to 3.13)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[cpu,dicom,dev]' 'torch==2.10.*' 'numpy<2.3'
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) -m "not slow and not integration"

test-integrations: $(INTEGRATIONS)/installed  ## the tests through other people's packages, in an environment of their own
	HF_HUB_OFFLINE=1 YOLO_OFFLINE=true OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest -n $(WORKERS) -m integration

$(INTEGRATIONS)/installed: pyproject.toml requirements/integrations.txt
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --upgrade pip
	$(INTEGRATIONS)/bin/python -m pip install --quiet --editable '.[cpu,dicom-results,lite,dev]' --requirement requirements/integrations.txt
	@touch $@

lint: install  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: install  ## benchmarks at small sizes; results go to runs/bench
	@mkdir -p runs/bench
	$(BIN)/python -m pytest bench --benchmark-json=runs/bench/cpu_benchmark.json
