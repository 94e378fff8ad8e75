# One small image with every binary. `fist` is the entry point; the services are beside it.
#
#   docker build -t punching-fist .

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Dependencies first: this layer is built again only when Cargo.lock or a manifest changes.
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY shared/protocol/Cargo.toml shared/protocol/
COPY shared/engine/Cargo.toml shared/engine/
COPY shared/bus/Cargo.toml shared/bus/
COPY shared/service/Cargo.toml shared/service/
COPY shared/cluster/Cargo.toml shared/cluster/
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
 && rm -rf shared services tests
COPY . .
# The empty crates above are newer than the sources: without this cargo would take them for built.
RUN find shared services tests -name '*.rs' -exec touch {} + \
 && cargo build --release --locked \
      --bin fist --bin ingest --bin scheduler --bin cli-runner --bin agent-runner --bin store-writer \
 && mkdir /out \
 && for bin in fist ingest scheduler cli-runner agent-runner store-writer; do \
      cp "target/release/$bin" /out/; \
    done

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
LABEL org.opencontainers.image.title="punching-fist" \
      org.opencontainers.image.description="Turns an alert into an investigation and, where that is safe, a fix" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/fist"]
