# Every target does its own set-up: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN = .venv/bin

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,dev]"
	touch $@

.PHONY: demo test slow tables lint clean
demo: .venv/ready  ## train a small network and measure the spectrum of its Hessian
	mkdir -p demo
	$(BIN)/landscape demo cnn -o demo/model.pt --force
	$(BIN)/landscape spectrum demo/model.pt

test: .venv/ready  ## the test suite, under 8 minutes on 2 cores
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

slow: .venv/ready  ## the long checks
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

tables: .venv/ready  ## what opens and how exact it is, from the suite to docs/compatibility.md
	$(BIN)/python -m pytest -q --tables figures/data \
		tests/test_files.py tests/test_loading.py tests/test_data.py tests/test_security.py \
		tests/test_module_kinds.py
	$(BIN)/python figures/compatibility.py

lint: .venv/ready  ## lint, format check, type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist *.egg-info
