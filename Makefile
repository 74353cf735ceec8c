# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# A folder is removed only if it has the file that says what it is; one of yours that bears its name stays.
remove = if [ -f "$(1)/$(2)" ] && [ ! -L "$(1)" ]; then rm -rf "$(1)"; elif [ -e "$(1)" ]; then echo "$(1) is left: it has no $(2)"; fi

.PHONY: demo test test-arm64 conformance docs lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed  ## images of digits -> teacher -> student -> .pte -> report
	@echo "== Running the demo: handwritten digits, from a teacher to a .pte (python distill/run.py)"
	@$(BIN)/python distill/run.py

test: $(VENV)/.installed  ## all tests; need no network and no GPU
	@echo "== Running the tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-arm64: $(VENV)/.installed  ## compare programs on emulated AArch64 processors with this one; downloads one or skips
	@$(BIN)/python tests/arm64/arm64.py

SOURCE := build/conformance-transformers
conformance: $(VENV)/.installed  ## run transformers' own model tests on ours; downloads its source distribution
	@$(call remove,$(SOURCE),made_by_make) && mkdir -p $(SOURCE) && touch $(SOURCE)/made_by_make
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(SOURCE) \
		"transformers==$$($(BIN)/python -c 'import transformers; print(transformers.__version__)')"
	@tar -xzf $(SOURCE)/*.tar.gz --strip-components 1 -C $(SOURCE)
	@TRANSFORMERS_SOURCE=$(SOURCE) $(BIN)/python -m pytest tests/swin_hf/test_transformers_mixins.py -rs

docs: $(VENV)/.installed  ## the documentation as a site, in build/docs/site
	@$(BIN)/python scripts/build_docs.py && echo "== build/docs/site/index.html"

lint: $(VENV)/.installed  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:  ## remove what these commands made: the environment, downloads and caches; runs stay
	@$(call remove,$(VENV),made_by_make)
	@$(call remove,$(SOURCE),made_by_make)
	@$(call remove,build/arm64,made.json)
	@$(call remove,.pytest_cache,CACHEDIR.TAG)
	@$(call remove,.ruff_cache,CACHEDIR.TAG)
	@$(call remove,swin_hf.egg-info,PKG-INFO)

# PyTorch is installed first and alone, so that pip takes a CPU build if PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL names one.
$(VENV)/.installed: pyproject.toml
	@echo "== Making $(VENV) and installing swin-hf with all its extras (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swin-hf needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@[ -e $(VENV) ] || { mkdir $(VENV) && touch $(VENV)/made_by_make; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch>=2.13,<2.14"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]"
	@touch $@
