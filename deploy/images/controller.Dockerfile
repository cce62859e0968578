# The controller's image. From the repository's top:
#   docker build -f deploy/images/controller.Dockerfile -t bowline-controller .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY deploy/deps.sh deploy/deps.sh
RUN deploy/deps.sh build && apt-get install -y --no-install-recommends binutils
COPY . .
RUN cargo build --release -p bowline-controller
RUN deploy/images/rootfs.sh controller target/release /rootfs

FROM scratch
COPY --from=build /rootfs/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/bowline-controller"]
