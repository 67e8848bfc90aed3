.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help tutorial test claims test-browser test-zoo test-colab test-floor fuzz reliability slides solutions lab site full referee decade enter bench bound co-design bench-gpu lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

# Runs once, and again only when the list of dependencies changes.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "python -m venv failed; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into .venv (once; torch is large, so some minutes)"
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@$(BIN)/python tools/check_install.py
	@touch $@

tutorial: $(INSTALLED) ## Run all notebooks in the quick profile into build/ and print a summary
	@$(BIN)/python tools/run_notebooks.py --output build/notebooks

# Two processes share the library's tests; waiting threads leave the cores to the other one. Notebooks time what they
# claim, so they run alone.
LIBRARY_TESTS = tests --numprocesses=2 --dist=loadfile
NOTEBOOK_TESTS = --nbval-lax --nbval-current-env --nbval-sanitize-with tests/notebooks/nbval_sanitize.cfg
test: $(INSTALLED) ## Run all tests: library, notebooks, README
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(LIBRARY_TESTS)
	@$(BIN)/python -m pytest notebooks $(NOTEBOOK_TESTS)

claims: $(INSTALLED) ## Run all notebooks from 3 seeds on both data sets and print which claims hold, and accuracies (half an hour)
	@$(BIN)/python tools/claims.py

test-browser: $(INSTALLED) ## Run the tests that need a headless Chromium, and install what they need
	@$(BIN)/python -m pip install --quiet --editable '.[test,browser,site]'
	@command -v chromium chromium-browser google-chrome >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || { echo "no Chromium here; install one, on Debian: apt install chromium"; exit 1; }
	@$(BIN)/python -m pytest tests -m browser

test-zoo: $(INSTALLED) ## Run the tests with networks and trainers of timm, transformers, Lightning, accelerate, and install these
	@$(BIN)/python -m pip install --quiet --editable '.[test,zoo]'
	@$(BIN)/python -m pytest tests -m zoo $(RECORD)

# torch and torchvision are the registry's builds: Colab's own, for CUDA 12.8, are not there.
.venv-colab/.installed: tests/colab-constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || { echo "Colab's numba needs Python 3.10 to 3.12 (Colab has 3.12); try: make PYTHON=python3.12 test-colab"; exit 1; }
	@$(PYTHON) -m venv .venv-colab
	@.venv-colab/bin/python -m pip install --quiet --constraint $< torch torchvision numpy scipy numba pandas matplotlib seaborn tqdm scikit-learn pooch ipywidgets ipykernel nbclient setuptools wheel
	@touch $@

test-colab: $(INSTALLED) .venv-colab/.installed ## Run all notebooks in an environment with Colab's versions
	@$(BIN)/python -m pytest tests/notebooks/test_colab.py -m colab

# Setuptools as pyproject.toml asks for; without isolation a notebook's set-up cell builds with it.
.venv-floor/.installed: tests/floor-constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' || { echo "the lowest versions need Python 3.10 or 3.11; try: make PYTHON=python3.10 test-floor"; exit 1; }
	@$(PYTHON) -m venv .venv-floor
	@.venv-floor/bin/python -m pip install --quiet 'setuptools>=68' wheel
	@.venv-floor/bin/python -m pip install --quiet --constraint $< --editable '.[test]'
	@touch $@

test-floor: .venv-floor/.installed ## Run the tests and two notebooks in the lowest versions that the project accepts
	@OMP_WAIT_POLICY=passive .venv-floor/bin/python -m pytest $(LIBRARY_TESTS)
	@.venv-floor/bin/python -m pytest notebooks/02_masked_layers.ipynb notebooks/05_simulated_vs_csr.ipynb $(NOTEBOOK_TESTS)

reliability: $(INSTALLED) ## Count what the library survives, at length; writes figures/ and the table of docs/help.md
	@$(BIN)/python -m pip install --quiet --editable '.[test,fuzz]' || echo "atheris does not install here; going on without it"
	@$(BIN)/python -m pytest tests/reliability tests/truly_sparse/test_bounds.py tests/truly_sparse/test_compiled.py tests/tutorial_lib/test_checkpoint.py -m 'not browser and not colab' --hypothesis-profile=long --record-reliability
	@$(BIN)/python -m tools.readme_tables

fuzz: $(INSTALLED) ## Draw 10,000 networks, checkpoints and data files and try to break the library with them
	@$(BIN)/python -m pip install --quiet --editable '.[test,fuzz]' || echo "atheris does not install here; going on without it"
	@$(BIN)/python -m pytest tests/reliability/test_fuzz.py --hypothesis-profile=long

slides: $(INSTALLED) ## Make a deck of slides with speaker's notes from each notebook, into build/slides/
	@$(BIN)/python tools/slides.py

solutions: $(INSTALLED) ## Write the notebooks with all exercises solved and checked, for instructors, into build/solutions/
	@$(BIN)/python -m tools.solutions

lab: $(INSTALLED) ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

site: $(INSTALLED) ## Build the site from README, docs/, notebooks and docstrings, into build/site/
	@$(BIN)/python -m pip install --quiet --editable '.[test,site]'
	@$(BIN)/python -m tools.site

full: $(INSTALLED) ## Measure everything again: study, notebooks in place, figures/, README's tables
	@TUTORIAL_PROFILE=full $(BIN)/python benchmarks/study.py
	@TUTORIAL_PROFILE=full $(BIN)/python tools/run_notebooks.py --output notebooks
	@TUTORIAL_PROFILE=quick $(BIN)/python tools/run_notebooks.py --output build/notebooks --record
	@$(BIN)/python -m tools.readme_tables

referee: $(INSTALLED) ## Compare the algorithms at full length (hours; goes on where it was stopped)
	@$(BIN)/python benchmarks/referee.py
	@$(BIN)/python -m tools.readme_tables

decade: $(INSTALLED) ## Compare the methods of the decade and redraw their pages (hours; goes on where it was stopped)
	@$(BIN)/python benchmarks/decade.py
	@$(BIN)/python -m tools.readme_tables

enter: $(INSTALLED) ## Train a rule of your own beside the decade's methods: make enter RULE=my_rule.py (minutes)
	@test -n "$(RULE)" || { echo "say which file: make enter RULE=my_rule.py; docs/your-own-rule.md has a template"; exit 1; }
	@$(BIN)/python benchmarks/enter.py "$(RULE)" --sparsity $(or $(SPARSITY),0.99)

bench: $(INSTALLED) ## Race truly sparse layers against dense, masked and CSR; writes figures/ and README's tables
	@$(BIN)/python benchmarks/bench.py
	@$(BIN)/python benchmarks/structures.py --table
	@$(BIN)/python -m tools.readme_tables

bound: $(INSTALLED) ## Count what each pass of a layer loads, stores and computes, and how near to that bound it comes
	@$(BIN)/python benchmarks/bound.py
	@$(BIN)/python -m tools.readme_tables

co-design: $(INSTALLED) ## Train static and rewired blocks at five sparsities (hours; goes on where it was stopped)
	@$(BIN)/python benchmarks/co_design.py
	@$(BIN)/python -m tools.readme_tables

bench-gpu: ## The dense, masked and CSR rows on an NVIDIA GPU, with the torch of $(PYTHON)
	@$(PYTHON) benchmarks/bench_gpu.py

lint: $(INSTALLED) ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## Remove .venv, build/ and caches; data/ stays
	@rm -rf .venv .venv-colab .venv-floor build .pytest_cache .ruff_cache .hypothesis *.egg-info
