# Each target does all the set-up that it needs: a virtual environment in .venv and the installation into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A file's tests share what is costly to make, and stay together.
TEST_PROCESSES ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile
DOCS_INSTALLED := $(VENV)/.installed-docs

# The oldest Python that is there, of those that setup.py allows.
MINORS := 10 11 12 13 14
OLDEST_PYTHON ?= $(firstword $(foreach minor,$(MINORS),\
	$(shell python3.$(minor) -c "import sys; print(sys.executable)" 2>/dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/3.$(minor).*/bin/python)) $(PYTHON))
LOWEST := .venv-lowest
# What meets the other packages most, of what is quick.
LOWEST_TESTS := tests/test_bundled.py tests/test_damaged_files.py tests/envs/test_dream.py \
	tests/envs/test_dream_vec_env.py tests/envs/test_car_racing.py tests/wm_gym/test_vector.py \
	tests/wm_gym/test_bundle.py tests/data_collection/test_dataset.py tests/data_collection/test_episode_file.py \
	tests/data_collection/test_car_racing_collection.py tests/agents/test_agent_bundle.py

.PHONY: demo test test-all test-lowest lint types docs format clean help

help:
	@echo "make demo    the whole loop on CarRacing, into runs/demo (about 10 minutes on 2 cores)"
	@echo "make test    the tests but those marked slow (at most 12 minutes on 2 cores)"
	@echo "make test-all        all of them; make test-lowest: a part with the lowest versions that setup.py allows"
	@echo "make lint    ruff; make types: mypy; make format: let ruff format"
	@echo "make docs    the documentation as a site, into site/"
	@echo "make clean   remove the virtual environment and what was built"

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,minari,carla,ray,play]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/wm-gym demo --out runs/demo

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED)
	$(PYTEST)

test-lowest: $(INSTALLED)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(OLDEST_PYTHON) $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--editable ".[dev,minari,carla,ray,play]"
	$(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)

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
	$(BIN)/mypy tools/docs_pages.py tools/new_user.py

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Docstrings are read from an installed copy, for the same reason. Warnings about them do not fail a strict build, but here.
docs: $(DOCS_INSTALLED)
	rm -rf build/docs site
	$(BIN)/python -m pip install --quiet --no-deps --target build/docs/package .
	$(BIN)/wm-gym export --agent bundled --format web --out build/docs/drive --quiet || \
		echo "The site is made without the dream on its front page."
	$(BIN)/python tools/docs_pages.py build/docs/package build/docs/drive
	$(BIN)/zensical build --clean --strict > build/docs/log 2>&1 || { cat build/docs/log; exit 1; }
	cat build/docs/log
	if [ -d build/docs/drive ]; then cp -r build/docs/drive site/drive; fi
	! grep -E "^(griffe|mkdocstrings)" build/docs/log

clean:
	rm -rf $(VENV) $(LOWEST) build site .cache *.egg-info
