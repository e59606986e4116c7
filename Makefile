# Each target sets itself up in a virtual environment, from nothing but Python (3.10 to 3.13) and pip.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# torch first and by itself, so that pip does not bring the CUDA build with it
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,lint]"
	touch $@

install: $(VENV)/installed

demo: install
	$(BIN)/physpre demo --out runs/demo

# The machine's cores are shared by test processes, so each gets one thread.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -rs --durations=10

# Inside the real hosts: MATDEEPLEARN_HOME and MATTERTUNE_HOME name their checkouts, HOST_PYTHON an environment with what
# they need (docs/matdeeplearn.md, docs/mattertune.md). What is not there is skipped, and why is said.
HOST_PYTHON ?= $(BIN)/python
test-hosts: install
	OMP_NUM_THREADS=1 $(HOST_PYTHON) -m pytest tests/hosts -rs

lint: install
	$(BIN)/ruff check mdl_physpre tests benchmarks scripts setup.py
	$(BIN)/ruff format --check mdl_physpre tests benchmarks scripts setup.py
	$(BIN)/mypy

.PHONY: install demo test test-hosts lint
