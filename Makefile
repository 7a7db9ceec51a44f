# Everything is made in .venv; `make demo` and `make test` work straight after `git clone`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench wheelhouse clean

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh docs/demo.sh

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .lint/deeprank
	for part in train export runtime models; do ln -sfn ../../$$part .lint/deeprank/$$part; done
	MYPYPATH=.lint $(BIN)/mypy --namespace-packages --explicit-package-bases -p deeprank

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

wheelhouse: $(INSTALLED)
	$(BIN)/python docs/wheelhouse.py wheelhouse

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deeprank needs Python 3.11 or newer; set PYTHON")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .lint build dist wheelhouse demo
