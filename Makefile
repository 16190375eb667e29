# `make demo` and `make test` set up all they need in .venv; nothing has to be run before them.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
FUZZ_MUTANTS ?= 5000
SOAK_MINUTES ?= 35
RUN ?= runs/demo

BIN := .venv/bin
READY := .venv/.installed
DEMO := $(RUN:%/=%)

.PHONY: help demo test lint snapshots fuzz soak clean

help:
	@echo 'make demo   distil, export, check, price and report on the digits, into runs/demo'
	@echo 'make test   unit tests, acceptance tests and doctests'
	@echo 'make lint   ruff and mypy'
	@echo 'make snapshots  write tests/data/help and deploy/schemas anew, to be read before a commit'
	@echo 'make fuzz   5,000 damaged files of each kind: half an hour'
	@echo 'make soak   the whole path again and again in one process, watched for leaks: 35 minutes'
	@echo 'make clean  delete .venv, build output and caches; runs/ is kept'
	@echo
	@echo 'Settings, as in "make demo RUN=runs/first":'
	@echo '  PYTHON       the Python (3.11 or newer) that .venv is made with: $(PYTHON)'
	@echo '  PIP_ARGS     more arguments for pip install. On Linux pip fetches a PyTorch with CUDA,'
	@echo '               several GB; --extra-index-url with the CPU index that the installation'
	@echo '               page of PyTorch names gets the small one.'
	@echo '  PYTEST_ARGS  more arguments for pytest, as in PYTEST_ARGS="-k loss"'
	@echo '  WORKERS      tests that run at the same time, each on one core and with up to 1.5 GB'
	@echo '  RUN          the folder of the demo run: $(RUN)'

# The mark is written last, so a broken installation is taken up again by the next call.
$(READY): pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tser needs Python 3.11 or newer and $(PYTHON) is $$('$(PYTHON)' -V 2>&1): name another with PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian and Ubuntu: apt-get install python3-venv), then call make again." >&2; exit 1; }
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear .venv
	@echo "Installing into .venv: some minutes, this once."
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@if [ -e '$(DEMO)' ]; then \
	  n=1; while [ -e "$(DEMO).$$n" ]; do n=$$((n + 1)); done; \
	  mv '$(DEMO)' "$(DEMO).$$n"; \
	  echo "There was a $(DEMO) already: it is kept as $(DEMO).$$n."; \
	fi
	$(BIN)/tser distill digits --out '$(DEMO)'
	$(BIN)/tser export '$(DEMO)' --format nir
	$(BIN)/tser export '$(DEMO)' --format onnx
	$(BIN)/tser validate '$(DEMO)/model.nir' --against '$(DEMO)'
	$(BIN)/tser energy '$(DEMO)/model.nir' --against '$(DEMO)' --settings
	$(BIN)/tser report '$(DEMO)'
	@echo "Open $(DEMO)/report.html in a browser."

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

snapshots: $(READY)
	$(BIN)/python -m tser.deploy.schemas
	TSER_WRITE_SNAPSHOTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/acceptance/test_cli_help.py

# Exit status 1 where a damaged file hung, crashed or confused its reader. FUZZ_MUTANTS: of each kind.
fuzz: $(READY)
	OMP_NUM_THREADS=1 FUZZ_MUTANTS=$(FUZZ_MUTANTS) $(BIN)/python -m tests.fuzz

# Exit status 1 where memory, file handles, threads or files pile up.
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES) --out benchmarks/results/soak.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p tser

clean:
	rm -rf .venv build dist ./*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find tser export deploy cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
