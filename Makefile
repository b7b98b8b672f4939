# Everything a fresh Debian machine needs is set up by `make run` or `make test`.
# `make help` says what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps
NATIVE := $(wildcard _native/*)
CATALOG := $(wildcard configs/catalog/*.h configs/catalog/*/*)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: run
run: set-up ## Start the agent on the shipped catalog; OTLP_ENDPOINT=URL posts to a collector too
	@packaging/setup/as-root $(BIN)/skep agent --config.file=configs/run.yaml $(if $(OTLP_ENDPOINT),--config.dir=configs/run.d)

.PHONY: test
test: set-up-test ## Run every test (needs root for the kernel tests: uses sudo if there is one)
	@packaging/setup/as-root $(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: check
check: set-up-test ## Format, lint, types, import contracts, fast tests: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 4 -m "not slow" tests/unit tests/tables

.PHONY: bench
bench: set-up-test ## Measure; prints the table and writes build/bench.json
	@packaging/setup/as-root $(BIN)/python -m tests.bench

.PHONY: vm
vm: set-up-test $(STAMPS)/system-vm ## Boot the kernels, run the kernel tests in each; writes docs/kernels.md
	@packaging/setup/as-root $(BIN)/python -m tests.vm

.PHONY: vm-hooks
vm-hooks: set-up-test $(STAMPS)/system-vm ## Boot one kernel that has kprobes, trampolines and LSM, and prove hooks, refusals and images there
	@packaging/setup/as-root $(BIN)/python -m tests.vm --kernel 6.1 $(addprefix --select tests/,$(HOOK_CASES))

HOOK_CASES := kernel/test_hooks.py kernel/test_refused_hooks.py kernel/test_refusals.py kernel/test_load.py \
	kernel/test_choices.py kernel/test_doctor.py kernel/test_catalog.py kernel/test_catalog_tasks.py \
	kernel/test_catalog_tcp.py kernel/test_catalog_nfs.py kernel/test_map_kinds.py kernel/test_types.py vm/cases

.PHONY: vm-install
vm-install: set-up-test $(STAMPS)/system-vm ## Install the Debian package on Debian 12 and 13, upgrade, crash, purge; writes docs/install.md
	@packaging/setup/as-root $(BIN)/python -m tests.vm.install

.PHONY: set-up
set-up: $(STAMPS)/system-run $(STAMPS)/native build/catalog/index.json

.PHONY: set-up-test
set-up-test: $(STAMPS)/system-test $(STAMPS)/dev build/catalog/index.json

$(STAMPS)/system-%: packaging/setup/system-packages
	@mkdir -p $(STAMPS)
	@packaging/setup/system-packages $*
	@touch $@

$(BIN)/python: | $(STAMPS)/system-run
	@echo "skep set-up: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Editable: Python files are used in place, the extensions are built beside them.
$(STAMPS)/native: pyproject.toml setup.py $(NATIVE) | $(BIN)/python
	@echo "skep set-up: Python packages and native extensions"
	@mkdir -p $(STAMPS)
	@$(BIN)/pip install --quiet --upgrade "pip>=25.1" "cython>=3.1" "setuptools>=77"
	@$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/native | $(STAMPS)/system-test
	@$(BIN)/pip install --quiet --group dev
	@touch $@

build/catalog/index.json: $(STAMPS)/native $(CATALOG)
	@echo "skep set-up: catalog objects"
	@$(BIN)/python -m exporter.cli.build --catalog configs/catalog build/catalog
	@touch $@

$(STAMPS)/package: $(STAMPS)/native | $(STAMPS)/system-package
	@$(BIN)/pip install --quiet --group package
	@touch $@

.PHONY: dist
dist: set-up $(STAMPS)/package ## Build the wheel, whole in itself, and the source archive into dist/
	@$(BIN)/python packaging/wheel.py

.PHONY: deb
deb: set-up $(STAMPS)/package ## Build the Debian package into dist/; RELEASE=trixie for another release
	@$(if $(RELEASE),packaging/setup/as-root) $(BIN)/python packaging/deb/build.py $(if $(RELEASE),--release $(RELEASE))

.PHONY: clean
clean: ## Remove what was built; keeps the image store
	rm -rf build dist $(VENV) *.egg-info exporter/*/*.so
