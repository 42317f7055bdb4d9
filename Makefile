# make demo: everything from a bare machine to a Pareto front. make test: every check, as in CI.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint bench bench-fidelity setup browser clean

demo: $(READY)
	$(BIN)/evomerge demo --folder demo

# What starts Ray, kills processes or measures memory and time runs alone, everything else on all cores.
ALONE := ray or browser or wheel or slow

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ($(ALONE))" --numprocesses auto --maxprocesses 8
	$(BIN)/python -m pytest -m "$(ALONE)"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python experiments/benchmarks/materialize.py
	$(BIN)/python experiments/benchmarks/candidate.py
	$(BIN)/python experiments/benchmarks/lm_eval_path.py
	$(BIN)/python experiments/benchmarks/memory.py
	$(BIN)/python experiments/benchmarks/unlabeled.py
	$(BIN)/python experiments/benchmarks/irt.py
	$(BIN)/python experiments/benchmarks/fidelity_simulation.py

# Twenty searches: an hour on two cores.
bench-fidelity: $(READY)
	$(BIN)/python experiments/benchmarks/fidelity_zoo.py

setup: $(READY)

# torch comes first and pinned: a looser request can pull gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

# The report's test needs a browser: installed where we may, else the test says what is missing.
browser: $(READY)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	|| echo "no chromium and chromedriver: the browser test will be skipped"

clean:
	rm -rf $(VENV) demo runs dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
