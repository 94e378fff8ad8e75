# The images of Punching Fist.
#
#   docker build --tag punching-fist .                        every binary; `fist` is the entry point
#   docker build --tag punching-fist-agent --target agent .   the same and kubectl, for agent-runner
#
# `scripts/images` builds both. Nothing in them needs a shell but the commands of cli steps that cli-runner runs
# beside itself (`cli.executor = "local"`), nor does anything write to the root file system.

# Where the agent's image has kubectl from: any image with it at /bin/kubectl.
ARG KUBECTL_IMAGE=registry.k8s.io/kubectl:v1.34.1

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Symbols are half of a binary's size. rust-toolchain.toml stays outside: it would have rustup fetch this very
# toolchain a second time.
ENV CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols
# Dependencies first: this layer is built again only when Cargo.lock or a manifest changes. A test holds the list
# of crates to the workspace's members.
COPY Cargo.toml Cargo.lock ./
COPY shared/protocol/Cargo.toml shared/protocol/
COPY shared/engine/Cargo.toml shared/engine/
COPY shared/bus/Cargo.toml shared/bus/
COPY shared/service/Cargo.toml shared/service/
COPY shared/cluster/Cargo.toml shared/cluster/
COPY shared/fuzz/Cargo.toml shared/fuzz/
COPY services/ingest/Cargo.toml services/ingest/
COPY services/scheduler/Cargo.toml services/scheduler/
COPY services/cli-runner/Cargo.toml services/cli-runner/
COPY services/agent-runner/Cargo.toml services/agent-runner/
COPY services/store-writer/Cargo.toml services/store-writer/
COPY services/fist/Cargo.toml services/fist/
COPY tests/Cargo.toml tests/
RUN for crate in shared/* services/* tests; do \
      mkdir -p "$crate/src" && : > "$crate/src/lib.rs"; \
    done \
 && cargo build --release --locked --workspace \
 && rm -rf shared/*/src services/*/src
COPY shared shared
COPY services services
# The empty crates above are newer than the sources: without this cargo would take them for built.
RUN find shared services -name '*.rs' -exec touch {} + \
 && cargo build --release --locked \
      --bin fist --bin ingest --bin scheduler --bin cli-runner --bin agent-runner --bin store-writer \
 && mkdir /out \
 && for bin in fist ingest scheduler cli-runner agent-runner store-writer; do \
      cp "target/release/$bin" /out/; \
    done

FROM debian:bookworm-slim AS services
# The authorities that Debian trusts; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/ /usr/local/bin/
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="punching-fist" \
      org.opencontainers.image.description="Turns an alert into an investigation and, where that is safe, a fix" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/fist"]

FROM ${KUBECTL_IMAGE} AS kubectl

FROM services AS agent
COPY --from=kubectl /bin/kubectl /usr/local/bin/kubectl
LABEL org.opencontainers.image.title="punching-fist-agent"

# Last, since it is what a build without a target makes.
FROM services
