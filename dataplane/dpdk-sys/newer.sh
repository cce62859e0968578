#!/bin/bash
# Checks the DPDK crates against the headers and libraries of Debian 13 (DPDK 24.11) on a machine that
# has another DPDK: the C side compiles, the bindings are generated and the crates type-check, and
# every function that they use is in the stable part of the libraries.
#
#   dataplane/dpdk-sys/newer.sh [SUITE]      SUITE: trixie by default; nothing is installed
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
suite=${1:-trixie}
out=$top/target/dpdk-$suite
mkdir -p "$out"/lists/partial "$out"/cache/archives/partial "$out"/root
cd "$out"
cat >apt.conf <<CONF
Dir::State::Lists "$out/lists";
Dir::Cache "$out/cache";
Dir::Etc::sourcelist "$out/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >sources.list
export APT_CONFIG=$out/apt.conf
apt-get update -qq
libraries=$(apt-cache depends libdpdk-dev | awk '/librte-(eal|ethdev|mbuf|mempool|dmadev)[0-9]/ {print $2}')
rm -f ./*.deb
# shellcheck disable=SC2086
apt-get download -qq libdpdk-dev $libraries
for package in *.deb; do dpkg-deb -x "$package" root; done

cd "$top"
export PKG_CONFIG_PATH=$out/root/usr/lib/x86_64-linux-gnu/pkgconfig PKG_CONFIG_SYSROOT_DIR=$out/root
echo "DPDK $(pkg-config --modversion libdpdk): checking"
CARGO_TARGET_DIR=$out/target cargo check --quiet -p bowline-dpdk
shim=$(find "$out/target" -name 'libbowline_dpdk_shim.a' | head -1)
exported=$(find "$out/root" -name 'librte_*.so.*' -type f -exec nm -D --defined-only {} + | awk '{print $3}')
missing=0
for name in $( { nm -u "$shim" | awk '/ U rte_/ {print $2}'; sed -n '/^const FUNCTIONS/,/^];/p' \
    dataplane/dpdk-sys/build.rs | grep -o 'rte_[a-z_]*'; } | sort -u); do
    # What DPDK's own inline functions read may be internal; what is called may not.
    if ! grep -Eq "^$name@@(DPDK_[0-9]+|INTERNAL)$" <<<"$exported"; then
        echo "not stable, or gone: $name" >&2
        missing=1
    fi
done
[ $missing = 0 ] && echo "DPDK $(pkg-config --modversion libdpdk): all functions are there and stable"
exit $missing
