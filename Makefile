# Everything there is to type. `make` alone prints this list; the only needs are make and Python >= 3.11 with venv.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)
UV ?= uv
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--no-annotate --extra embedded pyproject.toml requirements/build.in

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long check format bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/dev.stamp ## .venv, with all tools, from the pinned and hashed requirements

demo: $(VENV)/run.stamp ## a busy minute, with a private Postgres and a simulated provider
	@$(BIN)/outrider demo $(ARGS)

# Two halves that take about equally long: the whole road, which waits for others, beside all that computes. 5: pytest has
# found nothing in its half.
ROAD := tests/road tests/trouble tests/sql/test_conservation.py
test: $(VENV)/dev.stamp ## every test but the long ones, in two halves at a time; the core must be covered to 95 %
	@told=$$(mktemp); trap 'kill $$road 2>/dev/null; rm -f $$told' EXIT; \
	$(BIN)/python -m pytest -m "not long" $(ROAD) $(ARGS) >$$told 2>&1 & road=$$!; \
	$(BIN)/python -m coverage run -m pytest -m "not long" $(ROAD:%=--ignore=%) $(ARGS); others=$$?; \
	wait $$road; code=$$?; cat $$told; \
	for one in $$others $$code; do [ $$one -eq 0 ] || [ $$one -eq 5 ] || exit $$one; done
	$(BIN)/python -m coverage report --fail-under=95

test-long: $(VENV)/dev.stamp ## the tests that take minutes, and thousands of random cases for the others
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m "long or not long" --timeout=3600 $(ARGS)

check: $(VENV)/dev.stamp ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## put the code into shape
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp $(VENV)/bench.stamp ## measure against the others, in one run
	$(BIN)/python -m bench $(ARGS)

lock: ## make requirements/*.txt anew from pyproject.toml (needs uv); -U through ARGS upgrades
	$(LOCK) $(ARGS) --output-file requirements/run.txt
	$(LOCK) $(ARGS) --group dev --output-file requirements/dev.txt
	$(LOCK) $(ARGS) --group bench --constraints requirements/dev.txt --output-file requirements/bench.txt

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist
	find daemon tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation: the back end is pinned and hashed like everything else.
$(VENV)/%.stamp: requirements/%.txt pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --only-binary :all: -r $<
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Outrider needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
		echo "Name another one:  make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
