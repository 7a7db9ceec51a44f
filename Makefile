# Everything is made in .venv; `make demo` and `make test` work straight after `git clone`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := demo
WHEELHOUSE := wheelhouse
MODEL := pretrained
DATA := data/tiny-imagenet-200
STEP := printf '\n%s\n'

.PHONY: demo test distributed test-distributed lint format bench wheelhouse clean

# Each step says what it is for, shows its command and runs it. The pictures are drawn, so nothing is downloaded; every
# command takes them from files, as it would with yours.
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(INSTALLED)
	@rm -rf $(DEMO) && mkdir $(DEMO)
	@$(STEP) '1/6  Draw 480 scenes of twelve kinds, a folder for each kind. A tenth is kept for questions.'
	python -m deeprank.runtime.datasets scenes $(DEMO)/scenes
	@$(STEP) '2/6  Train: learn what the scenes of a kind have in common.'
	deeprank-train $(DEMO)/scenes --config scenes --out $(DEMO)/run
	@$(STEP) '3/6  Export: one file that needs no PyTorch, proved to rank like the network.'
	deeprank-export $(DEMO)/run --format onnx --out $(DEMO)/model.onnx
	@$(STEP) '4/6  Index the train scenes. The next sync takes what is new or changed.'
	deeprank-index sync $(DEMO)/scenes/train --index $(DEMO)/scenes.index --model $(DEMO)/model.onnx
	@$(STEP) '5/6  Ask with a scene that the network has never seen.'
	deeprank-query $(DEMO)/scenes/val/castle/024.jpg --k 5 --index $(DEMO)/scenes.index
	@$(STEP) '6/6  Measure with all questions, and draw some of them with their hits.'
	deeprank-eval --model $(DEMO)/model.onnx --data $(DEMO)/scenes --k 10 --demo 5 --demo-k 5 --out $(DEMO)/sheets
	@$(STEP) 'Questions and their hits:  $(DEMO)/sheets/nearest.png'
	@echo 'What training brought:     $(DEMO)/run/report.html'
	@echo 'Search in the browser:     $(BIN)/deeprank-serve --index $(DEMO)/scenes.index'
	@echo '                           then open http://127.0.0.1:8000'

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
	@echo 'Installing into $(VENV), once: PyTorch and other packages, several gigabytes, some minutes. pip shows each one.'
	@echo 'Below "Building", a compiler is at work on hnswlib; below "Installing", pip unpacks and prints nothing.'
	$(BIN)/pip install --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .lint build dist $(WHEELHOUSE) $(DEMO)
