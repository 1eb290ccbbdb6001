# `make demo` and `make test` do everything on a machine that has only Python >= 3.11, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := RAY_AUTH_MODE=disabled $(BIN)/python
READY := $(VENV)/.installed

.PHONY: demo test test-system check format setup clean

setup: $(READY)

# uv installs in half a minute what pip takes minutes for; both honour the exact versions
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is %s" % sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: setup
	$(RUN) jobs/inat_remix.py

test: setup
	$(RUN) -m pytest -q

test-system: setup
	$(RUN) -m pytest -q -m system

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
