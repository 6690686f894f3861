SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter: that of the environment, if there is one. A pyenv shim may exist and fail, so
# each one is tried.
PYTHONS := $(if $(wildcard .venv/convoy.stamp),.venv/bin/python) python3.11 python3.12 python3
PYTHON ?= $(shell for python in $(PYTHONS); do \
	if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	then echo $$python; exit; fi; done; echo python3)
AGENT ?= bev_fusion_agent
VARIANT ?= auto
PYTEST_ARGS ?=

# Of `make submit` and `make cluster-up`.
NODES ?= 1
ARGS ?=
SUBMIT ?=
CLUSTER ?=

# Of `make chaos`.
ROUNDS ?= 20
CHAOS ?=

# Of `make image` and `make docker`; the empty ones say: as the recipe has it.
SIF ?= build/convoy.sif
BASE ?=
CA ?=
APT_MIRROR ?=
EXTRA ?=
WEIGHTS ?=
COMPAT ?=
DOCKER ?= docker
DOCKER_FLAGS ?=
IMAGE_VARIANT = $(if $(filter auto,$(VARIANT)),cuda,$(VARIANT))
IMAGE_OPTIONS = --variant $(IMAGE_VARIANT) $(if $(BASE),--base '$(BASE)') $(if $(CA),--ca '$(CA)') \
	$(if $(APT_MIRROR),--apt-mirror '$(APT_MIRROR)') $(if $(EXTRA),--extra '$(EXTRA)') \
	$(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(COMPAT),--compat '$(COMPAT)')

.PHONY: help
help:  ## list the targets
	@echo "Convoy: make TARGET [PYTHON=python3.12] [VARIANT=cpu|cuda] [AGENT=$(AGENT)] [PYTEST_ARGS=...]"
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  %-18s %s\n", $$1, $$2}' Makefile

.PHONY: venv
venv:  ## make .venv with the hash-locked requirements and Convoy
	@$(PYTHON) image/environment.py .venv --variant $(VARIANT)

.PHONY: demo
demo: venv  ## train AGENT on synthetic data as two nodes on this machine: build/demo
	@.venv/bin/python -m convoy.commands.demo --agent $(AGENT) --out build/demo

.PHONY: test
test: venv  ## run the test suite
	@.venv/bin/pytest $(PYTEST_ARGS)

.PHONY: navsim
navsim: venv  ## check out NAVSIM and nuplan-devkit at their pinned commits: build/
	@.venv/bin/python image/checkout.py build

.PHONY: image
image:  ## build the Apptainer image build/convoy.sif [BASE= CA= APT_MIRROR= EXTRA= WEIGHTS= COMPAT=]
	@$(PYTHON) image/build_image.py apptainer $(IMAGE_OPTIONS) --output '$(SIF)'

.PHONY: image-reproducible
image-reproducible:  ## build the Apptainer image twice from nothing and compare
	@$(PYTHON) image/reproduce.py $(IMAGE_OPTIONS)

.PHONY: docker
docker:  ## build its Docker twin convoy:cuda or convoy:cpu [DOCKER_FLAGS='--network host']
	@$(PYTHON) image/build_image.py docker $(IMAGE_OPTIONS) --docker '$(DOCKER)' --docker-flags '$(DOCKER_FLAGS)'

.PHONY: shell
shell:  ## open a shell in the Apptainer image, with this checkout's src/ over the installed package
	@apptainer exec --mount 'type=bind,"source=$(CURDIR)/src",destination=/opt/convoy/src' \
		$(if $(NAVSIM_DEVKIT_ROOT),--bind '$(NAVSIM_DEVKIT_ROOT):/opt/navsim' --env NAVSIM_DEVKIT_ROOT=/opt/navsim) '$(SIF)' bash

.PHONY: submit
submit:  ## check a training and submit it: NODES=2 ARGS='agent=… cache_path=… global_batch=176' [SUBMIT='--time 24:00:00']
	@PYTHONPATH=src $(PYTHON) -m convoy.commands submit --nodes $(NODES) $(SUBMIT) -- $(value ARGS)

.PHONY: cluster-up
cluster-up:  ## start a SLURM cluster in Docker containers [CLUSTER='--nodes 4']; testbed/run COMMAND runs a command there
	@$(PYTHON) testbed/cluster.py up $(CLUSTER)

.PHONY: cluster-down
cluster-down:  ## remove it, its /scratch too
	@$(PYTHON) testbed/cluster.py down

.PHONY: chaos
chaos:  ## faults at random moments on a cluster of its own, ROUNDS of each [CHAOS='--seed 1 --json FILE']
	@$(PYTHON) testbed/chaos.py --image '$(SIF)' --rounds $(ROUNDS) $(CHAOS)

.PHONY: check
check: venv  ## check the sources: ruff, mypy, shellcheck, codespell
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@command -v shellcheck > /dev/null || { echo 'make check: shellcheck is not installed' >&2; exit 1; }
	@git grep -lzE '^#! ?/.*\bbash$$|^# shellcheck shell=' -- ':!*.golden' | xargs -0 shellcheck --external-sources
	@git ls-files -z | xargs -0 .venv/bin/codespell

.PHONY: lock
lock:  ## resolve pyproject.toml into image/requirements/{cpu,cuda}.txt
	@$(PYTHON) image/lock.py

.PHONY: clean
clean:  ## remove .venv and build
	rm -rf .venv build
