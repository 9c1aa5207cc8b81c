# make setup | demo | cluster | test | lint | bench | soak | fuzz: all in .venv, which the first of them makes.
.DEFAULT_GOAL := help
.PHONY: help setup demo cluster test test-all lint bench bench-peers soak fuzz clean

# The first that is there, works (a version manager's stand-in may not) and is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
WORKERS ?= 2
SECONDS ?= 60
MINUTES ?= 30
RUNTIME := $(VENV)/.runtime
CLUSTER := $(VENV)/.cluster
DEVELOPMENT := $(VENV)/.development
PEERS := $(VENV)/.peers

help:
	@echo "make demo      run the example chat and say where to open it (HOST=0.0.0.0 for a phone;"
	@echo "               ARGS='--http 8080 --ws 8081 --tcp 8082' for other ports)"
	@echo "make cluster   run three nodes of it, with NATS (ARGS=--kafka: Kafka's protocol) and Valkey"
	@echo "make test      run every test"
	@echo "make test-all  the same with each Python of PYTHONS that is here"
	@echo "make lint      ruff and mypy"
	@echo "make bench     measure, and print the table (ARGS=--quick for a short one)"
	@echo "make bench-peers   the same room with other WebSocket libraries (ARGS=--quick for a short one)"
	@echo "make soak      load and faults for MINUTES=30: memory, lost, reordered, latency (Linux)"
	@echo "make fuzz      fuzz each target for a minute (SECONDS=20, TARGET=frames; Linux)"
	@echo "make setup     make .venv with everything for development"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "goim_core needs Python 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(CLUSTER): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster]'
	@touch $@ $(RUNTIME)

$(DEVELOPMENT): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(RUNTIME) $(CLUSTER)

$(PEERS): $(DEVELOPMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@

setup: $(DEVELOPMENT)

demo: $(RUNTIME)
	$(BIN)/python -m examples.chat.app --host $(HOST) $(ARGS)

cluster: $(CLUSTER)
	$(BIN)/python -m examples.cluster $(ARGS)

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all:
	@for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
			|| { echo "$$python is not here"; continue; }; \
		echo "Python $$version"; \
		$(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON=$$python || exit 1; \
	done

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-peers: $(PEERS)
	$(BIN)/python -m benchmarks.peers $(ARGS)

soak: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

fuzz: $(DEVELOPMENT)
	$(BIN)/python -m fuzz.run --seconds $(SECONDS) $(TARGET) $(ARGS)

clean:
	rm -rf fuzz/found fuzz/broken .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
