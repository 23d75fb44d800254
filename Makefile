# make demo   the whole system on one machine: real model, real text, real processes (sets itself up on first use)
# make small  the same, smaller: a quick look in two minutes
# make test   every test
# make check  format, lint, types, import contracts, stubs and tests: what CI runs
SHELL := /bin/bash
CLIENTS ?= 3
SEED ?=
PUBLIC ?=
ARGS ?=
BIN := .venv/bin
override RUN_FLAGS := --clients $(CLIENTS) $(if $(SEED),--seed $(SEED)) $(if $(PUBLIC),--set data.public=$(PUBLIC)) $(ARGS)

.PHONY: demo small test check setup protos clean
demo: setup
	$(BIN)/hushtune testbed run scenarios/demo.toml $(RUN_FLAGS)

small: setup
	$(BIN)/hushtune testbed run scenarios/small.toml $(RUN_FLAGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	scripts/check $(ARGS)

setup:
	@scripts/setup

protos:
	scripts/protos

clean:
	rm -rf .venv .venv-protos runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
