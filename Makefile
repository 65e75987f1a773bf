# make serve [MODEL=...] [HOST=...] [PORT=...] [ARGS="--flag value"]   install, then serve
# make test [ARGS="tests/config -k name"]                              install, then run the tests
# make check | lint                                                    everything CI runs | all of it but the tests
#
# PYTHON=python3.12          another interpreter (3.11 or newer)
# TORCH=torch==2.11.0        another torch than the pinned one, such as the build for your CUDA driver
# EXTRAS=gpu                 for `make serve` on a CUDA machine: Triton too
#
# Where packages come from is pip's own configuration (pip config, PIP_INDEX_URL, ...).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PINNED_TORCH := $(shell grep '^torch==' constraints.txt)
TORCH ?= $(PINNED_TORCH)
EXTRAS ?= native

# Clients to be tested as they are published, without what they ask for: an older huggingface-hub that is not used
# (text-generation), older releases of other clients (instructor), plugins that change pytest (langchain-tests).
CLIENTS := text-generation==0.7.0 instructor==1.17.0 langchain-tests==1.1.9

BIN := $(VENV)/bin
CONSTRAINTS := $(VENV)/constraints.txt

# $(call flag,PORT,--port): only when given on the command line, since shells export HOST for purposes of their own
given = $(filter command,$(origin $(1)))
flag = $(if $(call given,$(1)),$(2) '$($(1))')

.PHONY: serve test check lint clean FORCE
.DEFAULT_GOAL := serve

serve: $(VENV)/.installed-$(EXTRAS)
	@$(BIN)/headrace serve $(call flag,MODEL) $(call flag,HOST,--host) $(call flag,PORT,--port) $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

lint: $(VENV)/.installed-dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lint

clean:
	rm -rf $(VENV)

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS)
	@echo 'Installing Headrace [$*] into $(VENV); the first time takes a few minutes ...'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS) -e '.[$*]'
	@$(if $(filter dev,$*),$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps $(CLIENTS))
	@touch $@

# A build of torch for CUDA wants a triton of its own.
other_triton = $(if $(filter $(PINNED_TORCH),$(TORCH)),,| grep -v '^triton==')

# Rewritten only when it changes, so that another TORCH installs anew and the same one does not.
$(CONSTRAINTS): FORCE | $(BIN)/python
	@{ grep -v '^torch==' constraints.txt $(other_triton); echo '$(TORCH)'; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Headrace needs Python 3.11 or newer; name one with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
