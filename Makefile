# On a fresh machine: `make demo` sets up and runs the main job, `make test` sets up and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo_out

.PHONY: demo test check format train-demo browser clean
.DEFAULT_GOAL := demo

# torch first and alone: a looser requirement met in passing would fetch another, far larger build of it.
$(BIN)/crossvis: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(BIN)/crossvis
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(BIN)/crossvis
	$(BIN)/crossvis demo --out $(DEMO_OUT)

test: check browser
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/oxlint crossvis_tl/page
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

browser:
	sh scripts/install_browser.sh

# Makes every file of crossvis_tl/demo/assets again, from texts: about an hour on two cores. Needs Debian's packages
# bible-kjv and python3.11-doc.
train-demo: $(VENV)/dev
	$(BIN)/python -m scripts.train_demo --install crossvis_tl/demo/assets

clean:
	rm -rf $(VENV) build dist demo_out .pytest_cache .ruff_cache .hypothesis
