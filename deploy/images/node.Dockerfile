# A node's image: data plane, agent, CNI plugin and command-line tool. From the repository's top:
#   docker build -f deploy/images/node.Dockerfile -t bowline .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY deploy/deps.sh deploy/deps.sh
RUN deploy/deps.sh build && apt-get install -y --no-install-recommends binutils nftables
COPY . .
RUN cargo build --release -p bowline-dataplane -p bowline-agent -p bowline-cni
RUN deploy/images/rootfs.sh node target/release /rootfs

FROM scratch
COPY --from=build /rootfs/ /
# Root: it moves NICs between namespaces and makes taps in pods' (see the DaemonSets for what else it is allowed).
ENTRYPOINT ["/usr/bin/bowline"]
