# What one does here. CI calls the same.

SHELL := /bin/sh
NATS = NATS_SERVER_BIN="$$(scripts/nats-server)"

.PHONY: help demo test test-kube test-compose bench bench-kube sim sim-nightly chaos fuzz lint generate fmt deny ci nats-server images \
	compose-up compose-demo compose-down clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F '\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: ## an alert, an investigation of this machine, a report: about a minute after the build
	@scripts/demo

test: ## every test that needs no cluster; starts what it talks to by itself
	$(NATS) cargo test --workspace --no-fail-fast

test-compose: ## only the compose stack, on a Docker daemon: kills every service in turn
	DOCKER_HOST="$${DOCKER_HOST:-$$(docker context inspect --format '{{.Endpoints.docker.Host}}')}" \
		cargo test --package e2e --test e2e compose -- --nocapture

test-kube: ## every test that needs a cluster, in the one that TEST_KUBECONFIG (else KUBECONFIG) names
	$(NATS) TEST_KUBECONFIG="$${TEST_KUBECONFIG:-$${KUBECONFIG:-$$HOME/.kube/config}}" scripts/test-kube

bench: ## what the product does in a second, beside the bare protocol: a table, and JSON; BENCH_QUICK=1 for a short one
	$(NATS) cargo bench --package fist --bench product

bench-kube: ## what a step in a pod costs beside a bare pod, in the cluster of TEST_KUBECONFIG (else KUBECONFIG)
	$(NATS) TEST_KUBECONFIG="$${TEST_KUBECONFIG:-$${KUBECONFIG:-$$HOME/.kube/config}}" \
		cargo bench --package fist --bench kube --profile dev

sim: ## the simulation, longer: make sim FIST_SIM_SEEDS=200000
	FIST_SIM_SEEDS="$${FIST_SIM_SEEDS:-20000}" cargo test --profile sim --package scheduler --test simulation -- --nocapture

sim-nightly: ## a million histories, and ten thousand storms of runners with gated commands
	FIST_SIM_SEEDS=1000000 cargo test --profile sim --package scheduler --test simulation -- --nocapture
	FIST_SIM_SEEDS=10000 cargo test --package cli-runner --lib simulation -- --nocapture

fuzz: ## every fuzz target for FUZZ_SECONDS (300), or those that FUZZ_TARGET is a part of the name of
	FUZZ_SECONDS="$${FUZZ_SECONDS:-300}" FUZZ_SEED="$${FUZZ_SEED:-$$(date +%s)}" \
		cargo test --profile "$${FUZZ_PROFILE:-dev}" --workspace --test fuzz --no-fail-fast -- --nocapture

chaos: ## the fault campaign, longer: make chaos CHAOS_MINUTES=30 CHAOS_SERVERS=3 CHAOS_SEED=7; see docs/chaos.md
	cargo build --workspace --bins
	$(NATS) CHAOS_MINUTES="$${CHAOS_MINUTES:-5}" CHAOS_SEED="$${CHAOS_SEED:-$$(date +%s)}" \
		cargo test --package e2e --test e2e chaos:: -- --nocapture

lint: ## formatting and clippy, as CI wants them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

generate: ## write what is made of the code and of other files: the CRD, the users of NATS, the chart's copies
	cargo run --quiet --package fist -- crd > deploy/crds/workflows.punching-fist.io.yaml.part
	mv deploy/crds/workflows.punching-fist.io.yaml.part deploy/crds/workflows.punching-fist.io.yaml
	cargo run --quiet --package fist -- nats users > deploy/nats/users.conf.part
	mv deploy/nats/users.conf.part deploy/nats/users.conf
	@scripts/generate-deploy

fmt: ## format everything
	cargo fmt --all

deny: ## licences, banned crates and, where their database can be fetched, advisories; installs cargo-deny if need be
	@scripts/deny

ci: lint deny test demo ## what must be green before a change lands

nats-server: ## install nats-server, if there is none, and print where it is
	@scripts/nats-server

images: ## build the images: make images IMAGES="--tag v1 --save images"
	@scripts/images $(IMAGES)

compose-up: ## build the images and start everything in containers; says where to look
	@scripts/compose-up

compose-demo: ## a Prometheus rule fires by itself, a workflow investigates, its report is printed
	@scripts/compose-demo

compose-down: ## stop the containers; what they stored stays in volumes
	@docker compose down --remove-orphans
	@echo "What was stored is kept. To remove it, too: docker compose down --volumes"

clean: ## remove what the build made
	cargo clean
