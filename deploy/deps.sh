#!/bin/bash
# Checks for what a make target needs and installs what Debian has of it.
#
#   deploy/deps.sh build|run|demo|bench|test|kube|guest ...
#
# Says what it does; what it cannot cure itself it names in one sentence with the remedy.
set -eu

build_packages="build-essential pkg-config clang libclang-dev libdpdk-dev"
run_packages="iproute2 iputils-ping"
demo_packages="$run_packages ethtool nftables iperf3"
test_packages="$demo_packages tcpdump tshark dpdk-dev containernetworking-plugins systemd"
kube_packages="gcc libc6-dev python3 openssl curl ethtool iproute2 procps"
guest_packages="qemu-system-x86 linux-image-amd64 python3-venv iproute2 iputils-ping kmod pciutils busybox-static"
bench_packages="$demo_packages dpdk-dev openvswitch-switch-dpdk"

die() { echo "bowline: $*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root for network namespaces and devices: run it as root (sudo make $MAKE_GOAL)."
}

install_missing() {
    local missing=""
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "these Debian packages are missing:$missing; install their equivalents here."
    [ "$(id -u)" = 0 ] || die "these packages are missing: run 'apt-get install$missing' as root."
    echo "bowline: installing$missing"
    apt-get update -qq || die "'apt-get update' failed: look at the network and at /etc/apt/sources.list."
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null \
        || die "'apt-get install$missing' failed: run it by hand to see why."
}

need_toolchain() {
    command -v cargo >/dev/null || die "no Rust toolchain: install one from https://rustup.rs (1.89 or newer), then open a new shell."
    local have want=1.89
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ] \
        || die "Rust $have is too old: run 'rustup update stable' for $want or newer."
}

need_go() {
    command -v go >/dev/null || die "no Go toolchain, which builds Kubernetes: install Go 1.25 or newer from https://go.dev/dl."
    local have want=1.25
    have=$(go env GOVERSION | sed 's/^go//')
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ] \
        || die "Go $have is too old: install $want or newer from https://go.dev/dl."
}

need_tun() {
    [ -e /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200 2>/dev/null; } || true
    [ -c /dev/net/tun ] || die "/dev/net/tun is missing: run 'modprobe tun', or start the container with --device /dev/net/tun."
}

need_namespaces() {
    local probe="bowline-probe-$$"
    ip netns add "$probe" 2>/dev/null || die "network namespaces cannot be made: run on a host, or in a container with --privileged."
    ip netns del "$probe"
}

need_cargo_parts() {
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt || die "rustfmt is missing: run 'rustup component add rustfmt'."
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy || die "clippy is missing: run 'rustup component add clippy'."
}

say_hugepages() {
    local free
    free=$(awk '/^HugePages_Free/ {print $2}' /proc/meminfo)
    [ "${free:-0}" -gt 0 ] || echo "bowline: no hugepages are free, ordinary memory is used; for more speed: echo 512 > /proc/sys/vm/nr_hugepages"
}

MAKE_GOAL=${MAKE_GOAL:-$*}
for goal in "$@"; do
    case $goal in
        build)
            need_toolchain
            # shellcheck disable=SC2086
            install_missing $build_packages ;;
        test)
            need_root; need_cargo_parts
            # shellcheck disable=SC2086
            install_missing $test_packages
            need_tun; need_namespaces ;;
        demo)
            need_root
            # shellcheck disable=SC2086
            install_missing $demo_packages
            need_tun; need_namespaces; say_hugepages ;;
        bench)
            need_root
            # shellcheck disable=SC2086
            install_missing $bench_packages
            need_tun; need_namespaces; say_hugepages ;;
        kube)
            need_root; need_go
            # shellcheck disable=SC2086
            install_missing $kube_packages
            need_tun; need_namespaces ;;
        guest)
            need_root
            # shellcheck disable=SC2086
            install_missing $guest_packages ;;
        *) die "deploy/deps.sh: '$goal' is not one of build, test, demo, bench, kube, guest." ;;
    esac
done
