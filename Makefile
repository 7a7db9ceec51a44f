# Everything is made in .venv; `make demo` and `make test` work straight after `git clone`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := demo
WHEELHOUSE := wheelhouse
MODEL := pretrained
DATA := data/tiny-imagenet-200

.PHONY: demo test distributed test-distributed lint format bench wheelhouse clean

# The commands are shown as they run. Learn to tell handwritten digits apart, export, index 1,612 of them, and ask with
# others; every step takes pictures from files, as it would with yours.
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(INSTALLED)
	rm -rf $(DEMO) && mkdir $(DEMO)
	deeprank-train digits --out $(DEMO)/run
	deeprank-export $(DEMO)/run --format onnx --out $(DEMO)/model.onnx
	python -m deeprank.runtime.datasets digits $(DEMO)/digits
	deeprank-index sync $(DEMO)/digits/train --index $(DEMO)/digits.index --model $(DEMO)/model.onnx
	deeprank-query $(DEMO)/digits/val/3/0063.png --k 10 --index $(DEMO)/digits.index \
	    --query-label 3 --sheet $(DEMO)/query.png
	deeprank-eval --model $(DEMO)/model.onnx --data $(DEMO)/digits --reference $(DEMO)/run --demo 5 --out $(DEMO)/sheets
	@echo
	@echo "The pictures are in $(DEMO)/query.png and $(DEMO)/sheets/. To search in a browser:"
	@echo "    $(BIN)/deeprank-serve --index $(DEMO)/digits.index"

# A file of tests stays with one of two workers, so that what its tests share is made once. With THOROUGH=1, and in CI,
# the dozen that take longest run as well.
test: $(INSTALLED)
	DEEPRANK_THOROUGH=$(THOROUGH) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The tests of deeprank-embed on Ray and of indexes in Milvus, which "make test" skips without their packages (a gigabyte).
test-distributed: distributed
	DEEPRANK_THOROUGH=1 $(BIN)/pytest -n 2 --dist loadfile $(wildcard $(addprefix tests/test_,embed*.py milvus*.py parquet.py remote*.py))

distributed: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[train,test-distributed]'

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .lint/deeprank
	for part in train export runtime models; do ln -sfn ../../$$part .lint/deeprank/$$part; done
	MYPYPATH=.lint $(BIN)/mypy --namespace-packages --explicit-package-bases -p deeprank

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Hours: everything that docs/benchmarks.md shows, with the libraries that it is compared with.
bench: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[train,dev,bench]'
	$(BIN)/python benchmarks/run.py --model $(MODEL) --data $(DATA)

# All that a box without a compiler and without network needs:
#     pip install --no-index --find-links wheelhouse deep-ranking
# hnswlib is built for any processor of this kind; built on the box itself it is 15 to 35 % faster (docs/deployment.md).
wheelhouse: $(INSTALLED)
	rm -rf $(WHEELHOUSE) build
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEELHOUSE) .
	HNSWLIB_NO_NATIVE=1 $(BIN)/pip wheel --quiet --no-deps --no-cache-dir --no-binary hnswlib --wheel-dir $(WHEELHOUSE) hnswlib
	$(BIN)/pip download --quiet --only-binary :all: --find-links $(WHEELHOUSE) --dest $(WHEELHOUSE) $(WHEELHOUSE)/deep_ranking-*.whl
	rm -rf build
	@ls -sh $(WHEELHOUSE)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deeprank needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .lint build dist $(WHEELHOUSE) $(DEMO)
