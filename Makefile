# `make demo` and `make test` set up all they need and are quick from the second time on.
# `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
# The steps share apt, pip and the cores: `make -j` must not run two of them at a time.
.NOTPARALLEL:

# Debian's own Python: libvirt-python is compiled against it, and a python3 that comes first on
# the path may be another one.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin

# A set-up step leaves a mark when it is through, so one that was interrupted is done again. The
# marks live in the virtual environment and go with it.
VENV_MADE := $(VENV)/.made
VENV_READY := $(VENV)/.installed
HOST_READY := $(VENV)/.host-prepared

BOOTSTRAP_PACKAGES := python3-venv python3-dev gcc pkg-config libvirt-dev
ANSIBLE_FILES := $(shell find ansible -type f -not -name '*.md')

PLAY := LC_ALL=C.UTF-8 ANSIBLE_CONFIG=ansible/ansible.cfg $(BIN)/ansible-playbook \
	ansible/host.yml --extra-vars vmrun_host_development=true

export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifeq ($(CI),true)
export PIP_PROGRESS_BAR := off
export PIP_NO_INPUT := 1
export NO_COLOR := 1
export ANSIBLE_NOCOLOR := 1
endif

# More arguments for pytest: make unit PYTEST='-k plan -x'
PYTEST ?=

# Tests run in so many processes, a file in one of them: each keeps its guests in a state directory
# of its own. A guest of the tests takes half a gigabyte, and under emulation a whole processor.
JOBS ?= 2
SPREAD := --numprocesses $(JOBS) --dist loadfile
# What has failed beside others is asked once more, alone: what fails then has failed. Anything but
# failed tests, such as a file that cannot be imported, fails at once.
ALONE = { [ $$? -eq 1 ] && printf '==> %s\n' 'test: those that have failed, once more and alone' \
	&& $(BIN)/pytest --last-failed --last-failed-no-failures none $(PYTEST); }

say = @printf '==> %s\n'

##@ What you came for

.PHONY: demo
demo: base-minimal ## Set up, then run a real image hardened in a guest of its own
	$(say) 'demo: one image, bare and in a guest, side by side'
	@$(BIN)/python images/workloads/demo.py

.PHONY: test
test: lint base ## Set up, then lint and run every test, those in real guests too
	$(say) 'test: all tests, those in real guests too'
	@$(BIN)/pytest $(SPREAD) $(PYTEST) || $(ALONE)

##@ Steps

.PHONY: setup
setup: $(HOST_READY) ## Install system packages, the virtual environment, and check the host
	$(say) 'setup: in place'

.PHONY: base
base: base-minimal base-docker ## Build the guest bases that are missing

.PHONY: base-minimal base-docker
base-minimal base-docker: base-%: $(HOST_READY)
	$(say) 'base: $* guest base, built if it is missing'
	@$(BIN)/vmrun base build --flavour $* --if-missing

.PHONY: lint
lint: $(VENV_READY) ## Check style, formatting and types
	$(say) 'lint: ruff check'
	@$(BIN)/ruff check --quiet .
	$(say) 'lint: ruff format --check'
	@$(BIN)/ruff format --quiet --check .
	$(say) 'lint: mypy --strict'
	@$(BIN)/mypy

.PHONY: format
format: $(VENV_READY) ## Put the code in its format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

.PHONY: unit
unit: $(HOST_READY) ## Run the tests that need no guest
	$(say) 'unit: tests without guests'
	@$(BIN)/pytest $(SPREAD) -m 'not guest' $(PYTEST)

.PHONY: e2e
e2e: base ## Run the tests in real guests
	$(say) 'e2e: tests in real guests'
	@$(BIN)/pytest $(SPREAD) -m guest $(PYTEST)

.PHONY: bench
bench: base ## Measure the figures that vmrun is held to, and print them
	$(say) 'bench: start-up, whole runs and memory on this host'
	@$(BIN)/python -m tests.benchmarks.figures
	$(say) 'bench: many guests at once'
	@$(BIN)/python -m tests.benchmarks.density
	$(say) 'bench: verifying a signed image, beside sha256sum'
	@$(BIN)/python -m tests.benchmarks.verification
	$(say) 'bench: pushing and pulling'
	@$(BIN)/python -m tests.benchmarks.registry
	$(say) 'bench: scanning'
	@$(BIN)/python -m tests.benchmarks.scan

.PHONY: checks
checks: $(VENV_READY) ## Advise on this host: virtualization, SMT, KSM, swap, microcode
	@$(PLAY) --tags checks

##@ Tidying up

.PHONY: clean
clean: ## Remove caches and build output
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove the virtual environment too (bases and packages stay)
	@rm -rf $(VENV) *.egg-info

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo

# A virtual environment that was left half-made has no working pip, and is made anew. After an
# upgrade of Debian to another Python, `make distclean` comes first.
$(VENV_MADE):
	$(say) 'setup: packages for the virtual environment'
	@ansible/bootstrap $(BOOTSTRAP_PACKAGES)
	$(say) 'setup: virtual environment in $(VENV)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV_READY): $(VENV_MADE) pyproject.toml
	$(say) 'setup: Python packages (a minute or two the first time)'
	@# -qq leaves errors only: an index that lacks a package is not worth a line per package
	@$(BIN)/python -m pip install -qq --editable '.[dev,host]'
	@touch $@

# dpkg's status changes when packages come or go, so what was removed since is put back.
#
# sudo's password is asked for only by a user who needs one and when the play would change
# something: a rehearsal that needs no root tells.
$(HOST_READY): $(VENV_READY) $(ANSIBLE_FILES) $(wildcard /var/lib/dpkg/status)
	$(say) 'setup: this host, by ansible/host.yml'
	@ask=; \
	if [ "$$(id -u)" -ne 0 ] && command -v sudo >/dev/null \
		&& ! sudo --non-interactive true 2>/dev/null; then \
		$(PLAY) --check --extra-vars vmrun_host_become=false 2>/dev/null \
			| grep 'changed=0 .*unreachable=0 .*failed=0' >/dev/null || ask=--ask-become-pass; \
	fi; \
	$(PLAY) $$ask
	@touch $@
