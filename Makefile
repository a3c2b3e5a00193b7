# Each target does all the set-up that it needs: a virtual environment in .venv and the installation into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types format clean help

help:
	@echo "make demo    the whole loop on CarRacing, into runs/demo (about 20 minutes on 2 cores)"
	@echo "make test    the test suite"
	@echo "make lint    ruff; make types: mypy; make format: let ruff format"
	@echo "make clean   remove the virtual environment and what was built"

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,minari,carla,ray]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/wm-gym demo --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders have other names than their packages, so the types are checked on an installed copy.
types: $(INSTALLED)
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) -p wm_gym

clean:
	rm -rf $(VENV) build *.egg-info
