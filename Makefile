# What one does here. CI calls the same.

SHELL := /bin/sh
NATS = NATS_SERVER_BIN="$$(scripts/nats-server)"

.PHONY: help demo test sim lint generate fmt deny ci nats-server clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F '\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: ## an alert, an investigation of this machine, a report: about a minute after the build
	@scripts/demo

test: ## every test that needs no cluster; starts what it talks to by itself
	$(NATS) cargo test --workspace --no-fail-fast

sim: ## the simulation, longer: make sim FIST_SIM_SEEDS=20000
	FIST_SIM_SEEDS="$${FIST_SIM_SEEDS:-5000}" cargo test --package scheduler --test simulation -- --nocapture

lint: ## formatting and clippy, as CI wants them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

generate: ## write what is made of the code and of other files: the CRD, the chart's copies, plain manifests
	cargo run --quiet --package fist -- crd > deploy/crds/workflows.punching-fist.io.yaml.part
	mv deploy/crds/workflows.punching-fist.io.yaml.part deploy/crds/workflows.punching-fist.io.yaml
	@scripts/generate-deploy

fmt: ## format everything
	cargo fmt --all

deny: ## licences, advisories and banned crates; needs cargo-deny
	cargo deny check

ci: lint test demo ## what must be green before a change lands

nats-server: ## install nats-server, if there is none, and print where it is
	@scripts/nats-server

clean: ## remove what the build made
	cargo clean
