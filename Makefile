# Everything runs from .venv, made from the hash-pinned lock; nothing is installed elsewhere.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(if $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo y),$(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
WORKERS ?= 2
STEPS ?= 10000
STACK_ARGS ?=
TRIALS ?= 48
SEED ?=
ONLY ?=
BROKEN ?=
PODS ?=
SETTINGS ?=
RUNS ?= 5
SMALL ?=
BASE ?=
FUNCTION ?=
WRITE ?=
DOCKER ?= docker
IMAGES := $(if $(FUNCTION),$(FUNCTION),archive erase on-connect on-rank-change on-wager query tournament tools)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Of the commit: the same tree gives the same layers.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: help
help: ## List these targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.PHONY: run
run: $(STAMP) ## Embedded stack with sample players; prints the board's address; Ctrl-C stops all.
	@exec $(BIN)/leaderboard run

.PHONY: stack
stack: $(STAMP) kafka ## Local stack: real Kafka, Redis, PostgreSQL, nginx + Nchan; writes .stack.env.
	@exec $(BIN)/leaderboard stack --kind local $(STACK_ARGS)

.PHONY: test
test: check kafka connect deploy-tools ## Everything that CI runs, with real servers (WORKERS=, PYTEST_ARGS=).
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: faults
faults: $(STAMP) kafka ## Kill, cut, empty, fill: trials on a local stack (TRIALS=, SEED=, ONLY=).
	@PYTHONPATH=tests $(BIN)/python -m faults --trials $(TRIALS) \
		$(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only "$(ONLY)")

.PHONY: simulate
simulate: $(STAMP) ## The functions in a simulated world, 10,000 steps (STEPS=, SIMULATION_SEED=).
	@PYTHONPATH=tests $(BIN)/python -m simulation --steps $(STEPS)

.PHONY: security
security: $(STAMP) kafka ## Every promise of docs/security.md tried on a local stack (WORKERS=, WRITE=1: its table).
	@PYTHONPATH=tests $(BIN)/python -m security --workers $(WORKERS) $(if $(WRITE),--write)

.PHONY: audit
audit: sbom ## Bills of materials, and the lock looked up in a source of advisories.
	@PYTHONPATH=tests $(BIN)/python -m security.audit

.PHONY: bench
bench: $(STAMP) kafka ## Every figure beside its rivals (ONLY=, RUNS=, SMALL=1); writes bench.json.
	@PYTHONPATH=tests $(BIN)/python -m bench --runs $(RUNS) $(if $(SMALL),--small) \
		$(if $(ONLY),--only "$(ONLY)")

.PHONY: bench-compare
bench-compare: $(STAMP) kafka ## This tree against another commit, in turns (BASE=, ONLY=, RUNS=).
	@PYTHONPATH=tests $(BIN)/python -m bench.compare --base "$(or $(BASE),HEAD)" --runs $(RUNS) \
		$(if $(SMALL),--small) $(if $(ONLY),--only "$(ONLY)")

.PHONY: images
images: ## Images of all functions, or one (BASE=image@sha256:… is wanted, FUNCTION=, DOCKER=podman).
	@functions/pinned "$(BASE)" "$(DOCKER)"
	@for name in $(IMAGES); do \
		echo "leaderboard/$$name:$(VERSION)"; \
		$(DOCKER) build -q --network host -f functions/Dockerfile -t "leaderboard/$$name:$(VERSION)" \
			--build-arg BASE="$(BASE)" --build-arg FUNCTION="$$name" --build-arg VERSION="$(VERSION)" \
			--build-arg SOURCE_DATE_EPOCH="$(SOURCE_DATE_EPOCH)" $(BUILD_ARGS) .; \
	done

.PHONY: images-check
images-check: $(STAMP) kafka ## Run every image against a local stack: ready in time, confined, at work.
	@PYTHONPATH=tests $(BIN)/python -m images --docker "$(DOCKER)" --version "$(VERSION)" $(IMAGES)

.PHONY: sbom
sbom: $(STAMP) ## Bills of materials (CycloneDX 1.6) of all images, or one, from the lock, into build/sbom.
	@mkdir -p build/sbom
	@for name in $(IMAGES); do \
		$(BIN)/python functions/locked.py "$$name" > "build/sbom/$$name.txt"; \
		$(BIN)/cyclonedx-py requirements "build/sbom/$$name.txt" --pyproject pyproject.toml --sv 1.6 \
			--output-reproducible --of JSON -o "build/sbom/$$name.cdx.json"; \
		rm "build/sbom/$$name.txt"; echo "build/sbom/$$name.cdx.json"; \
	done

.PHONY: lock
lock: $(STAMP) ## Make requirements.lock anew from pyproject.toml; keeps the versions that still fit.
	@$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes \
		--no-header -q -o requirements.lock

.PHONY: check
check: $(STAMP) ## Style, types, generated files: verifies, changes nothing.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy shared
	@$(BIN)/mypy tests
	@# Several modules are called main: one run each.
	@for main in functions/*/main.py; do echo "mypy $$main"; \
		MYPYPATH="$$(dirname "$$main")" $(BIN)/mypy "$$main"; done
	@$(BIN)/leaderboard schemas --check
	@$(BIN)/leaderboard openapi --check
	@$(BIN)/leaderboard asyncapi --check
	@$(BIN)/leaderboard observability --check
	@$(BIN)/leaderboard manifests --check

.PHONY: lint
lint: $(STAMP) ## Fix what can be fixed by itself.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(MAKE) --no-print-directory docs

.PHONY: docs
docs: $(STAMP) ## Write what is generated in docs/ and platform/: schemas, metrics, manifests.
	@$(BIN)/leaderboard schemas
	@$(BIN)/leaderboard openapi
	@$(BIN)/leaderboard asyncapi
	@$(BIN)/leaderboard observability
	@$(BIN)/leaderboard manifests

.PHONY: deploy-check
deploy-check: $(STAMP) ## Every manifest built, against schemas, policies and the code; no cluster (SETTINGS=my-settings.yaml).
	@PYTHONPATH=tests $(BIN)/python -m deploy.checking $(SETTINGS)

.PHONY: cluster-test
cluster-test: $(STAMP) kafka deploy-tools ## The manifests on the real cluster in KUBECONFIG, filled and emptied (PODS=1, ONLY=, BROKEN=).
	@PYTHONPATH=tests $(BIN)/python -m cluster $(if $(PODS),--pods) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(BROKEN),--broken "$(BROKEN)")

.PHONY: deploy-tools
deploy-tools: $(STAMP) ## Fetch kustomize and the schemas into .cache and check their sums.
	@PYTHONPATH=tests $(BIN)/python -m deploy.checking fetch

.PHONY: kafka
kafka: $(STAMP) ## Fetch Apache Kafka's jars into .cache and check their sums.
	@$(BIN)/python -m leaderboard.stack.kafka_jars

.PHONY: connect
connect: $(STAMP) ## Fetch the jars of Kafka Connect and Debezium into .cache and check their sums.
	@$(BIN)/python -m leaderboard.stack.kafka_jars connect

.PHONY: install
install: $(STAMP) ## Make .venv (all other targets do it by themselves).

.PHONY: clean
clean: ## Remove everything that was made here, .venv too.
	@rm -rf $(VENV) .cache .stack .stack.env .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
ifeq ($(strip $(PYTHON)),)
	@echo "error: Python 3.11 or later is wanted; python3 here is older or missing (set PYTHON)" >&2
	@exit 1
endif
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "error: $(PYTHON) can't make a venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
