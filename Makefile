# make demo | test | test-long | test-transformers-4.57 | check | bench
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HARNESS := $(VENV)/.installed-eval
export OMP_NUM_THREADS ?= 1
# glibc gives memory back and asks for it again at every step unless told not to.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
export TOKENIZERS_PARALLELISM ?= false

OLD := .venv-4.57
OLD_PINS := constraints/transformers-4.57.txt

.PHONY: demo test test-long test-transformers-4.57 check bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# What only the tests of the lm-evaluation-harness model need.
$(HARNESS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,eval]'
	touch $@

## Train a small diffusion LM by SFT, improve it by EGSPO-SA, evaluate both, draw report.html.
## DATA=FILE evaluates on a public puzzle file too; OUT=DIR is where the runs go.
demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh

test: $(HARNESS)
	$(BIN)/python -m pytest -n 2 -m "not long"

test-long: $(HARNESS)
	$(BIN)/python -m pytest -n 2

## The tests under the oldest transformers that pyproject.toml allows, in an environment of its own.
test-transformers-4.57: $(OLD)/.installed
	$(OLD)/bin/python -m pytest -n 2 -m "not long"

$(OLD)/.installed: pyproject.toml $(OLD_PINS)
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLD_PINS) -e '.[test,eval]'
	touch $@

check: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

bench: $(STAMP)
	$(BIN)/python benchmarks/seeds.py

clean:
	rm -rf $(VENV) $(OLD)
