PYTHON ?= python3
ENGINE ?= openai
ARGS ?=
STAGE ?= beta
SOURCES = pulsartasks apps benchmarks cdk examples tools tests setup.py

.PHONY: help run reset test test-pulsar test-tls k8s-server-check faults pulsar check format guarantees bench bench-large deploy-infra deploy-apps tokens lock

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

run: ## BabbleBox at http://127.0.0.1:8000 [ENGINE=openai|faster] [WHISPER_MODEL=name|path] [PORT=8000]
	@exec $(PYTHON) -m tools run --engine=$(ENGINE)

reset: ## forget all that BabbleBox has stored here
	@rm -rf .babblebox

test: ## everything, against real services [ARGS="-k word"]
	@exec $(PYTHON) -m tools test $(ARGS)

test-pulsar: ## only what needs the Pulsar server
	@exec $(PYTHON) -m tools test -m "pulsar or tls" $(ARGS)

test-tls: ## the conformance suite on a Pulsar with TLS, tokens and permissions
	@PULSARTASKS_TEST_TLS=1 exec $(PYTHON) -m tools test tests/conformance tests/integration/test_secure.py -m tls $(ARGS)

k8s-server-check: ## what a real Kubernetes API server, built for it, says to k8s/ [PULSAR_CHART_DIR=folder]
	@exec nice $(PYTHON) -m tools python -m tests.deploy.server_check

faults: ## kill, cut and fill up what 20,000 tasks need, and count what that cost [ARGS="--broker local"]
	@exec $(PYTHON) -m tools python -m tests.faults $(ARGS)

pulsar: ## a Pulsar to try things with, at pulsar://127.0.0.1:6650, until Ctrl-C
	@exec $(PYTHON) -m tools python -m tests.services

check: ## format, lint, types, layers and fast tests; then the sizes
	@$(PYTHON) -m tools python -m ruff format --check --quiet $(SOURCES)
	@$(PYTHON) -m tools python -m ruff check --quiet $(SOURCES)
	@$(PYTHON) -m tools python -m mypy
	@$(PYTHON) -m tools python -m pytest -q tests/unit tests/typing $(ARGS)
	@$(PYTHON) -m tools python -m tools.sizes

format: ## rewrite the sources as `make check` wants them
	@$(PYTHON) -m tools python -m ruff check --fix --quiet $(SOURCES) || true
	@$(PYTHON) -m tools python -m ruff format $(SOURCES)

guarantees: ## count the tests of each guarantee anew, in docs/guarantees.md
	@$(PYTHON) -m tools python -m tests.guarantees

bench: ## what it costs on this machine, beside the bare client and other frameworks [ARGS="--only huey"]
	@exec $(PYTHON) -m tools python -m benchmarks $(ARGS)

bench-large: ## how fast a backlog of a million is worked off, beside one of ten thousand
	@exec $(PYTHON) -m tools python -m benchmarks --large $(ARGS)

deploy-infra: ## bring the AWS stacks of a stage to what cdk/ says [STAGE=beta|prod] [DRY_RUN=1]
	@exec $(PYTHON) -m tools deploy infra --stage $(STAGE) $(if $(DRY_RUN),--dry-run) $(ARGS)

deploy-apps: ## images, workers, web and relay of this commit [STAGE=beta|prod] [TAG=commit] [DRY_RUN=1]
	@exec $(PYTHON) -m tools deploy apps --stage $(STAGE) $(if $(TAG),--tag $(TAG)) $(if $(DRY_RUN),--dry-run) $(ARGS)

tokens: ## the keys and tokens of a stage in AWS Secrets Manager: make what is missing [STAGE=beta|prod] [ARGS=--new-tokens]
	@exec $(PYTHON) -m tools tokens --stage $(STAGE) $(ARGS)

lock: ## resolve requirements/*.txt anew [ARGS=--upgrade]
	@exec $(PYTHON) -m tools lock $(ARGS)
