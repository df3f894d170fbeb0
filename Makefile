# Everything a fresh machine with Python 3.11, pip and make needs: `make ablation`, `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= results
PLAN ?= experiments/plans/digits_components.yaml

N ?= 100

.PHONY: help install ablation smoke test torture fuzz audit clean

help:
	@echo "make ablation   set up, train and compare the variants of $(PLAN), write the report (15 to 20 minutes on 2 cores)"
	@echo "make smoke      the same path in about a minute"
	@echo "make test       set up and run every check: format, lint, types, import contracts, tests"
	@echo "make torture    kill sweeps and searches at random moments and continue them, N=100 rounds,"
	@echo "                EXECUTOR=local or ray; table in torture.md"
	@echo "make fuzz       bad input of every kind, N=2000 cases of each; table in fuzz.md"
	@echo "make audit      known vulnerabilities of the pinned dependencies; skipped where the database is out of reach"
	@echo "make install    only create $(VENV) with the pinned dependencies"

# The stamp is newer than the lock file exactly when the environment is up to date.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

install: $(VENV)/.installed

ablation: install
	$(BIN)/robuq sweep $(PLAN) --output $(OUTPUT)
	$(BIN)/robuq report $(PLAN) --output $(OUTPUT)

smoke:
	$(MAKE) ablation PLAN=experiments/plans/smoke.yaml OUTPUT=$(OUTPUT)

# Kills real commands at seeded moments, N rounds, and writes a table of what was survived.
torture: install
	$(BIN)/python tests/torture/torture.py --rounds $(N) --seed $(or $(SEED),0) --executor $(or $(EXECUTOR),local) --table torture.md

# Bad input of every kind, by the thousand, at a low share of the processor.
fuzz: install
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/fuzz/fuzz.py --cases $(if $(filter file,$(origin N)),2000,$(N)) --seed $(or $(SEED),0) --table fuzz.md

audit: install
	$(BIN)/python tests/security/audit.py

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV)
