# Everything is made in .venv of this folder; nothing but the package index is reached.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PACKAGES := privacy shared_models client server simulations
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test soak mutants check peers clean

demo: $(VENV)/.installed
	$(BIN)/fedward-sim demo --out demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder # some wait for deadlines

soak: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m soak

# Each single check of the protocol is removed, and the test that notices is printed.
mutants: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/checks.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# Competitors of the benchmarks, in an environment of their own: their pins and ours do not agree.
peers: .venv-peers/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable '.[dev]'
	@touch $@

.venv-peers/.installed: constraints.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@echo "installing into .venv-peers (a few minutes the first time)"
	@.venv-peers/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt pfl==0.6.0 torch
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers demo runs build *.egg-info
