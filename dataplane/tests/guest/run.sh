#!/bin/bash
# Takes a PCI NIC over for real: in a virtual machine with an IOMMU, an e1000e as the node's NIC and a
# virtio NIC as whoever is on the other end of its cable. The machine is emulated, so that this runs
# without KVM; expect two to five minutes, more beside others.
#
#   dataplane/tests/guest/run.sh [PROGRAM]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
program=$(realpath "${1:-$top/target/release/bowline-dataplane}")
out=$top/target/guest
mkdir -p "$out"

[ -x "$program" ] || { echo "guest: $program is missing: run 'make build'" >&2; exit 1; }
kernel=$(ls -1v /boot/vmlinuz-* 2>/dev/null | tail -1)
[ -n "$kernel" ] || { echo "guest: no kernel in /boot: run 'apt-get install linux-image-amd64'" >&2; exit 1; }
if ! [ -x "$out/venv/bin/vng" ]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet virtme-ng==1.42
fi

# vng calls its parts by name.
export PATH=$out/venv/bin:$PATH

# A cable between two NICs: each sends to the other's port. Ports that nobody has.
port=$((20000 + $$ % 20000))
cable="-netdev socket,id=n0,udp=127.0.0.1:$port,localaddr=127.0.0.1:$((port + 1))"
cable="$cable -device e1000e,netdev=n0,mac=52:54:00:12:34:56"
cable="$cable -netdev socket,id=n1,udp=127.0.0.1:$((port + 1)),localaddr=127.0.0.1:$port"
cable="$cable -device virtio-net-pci,netdev=n1,mac=52:54:00:12:34:57,disable-legacy=on,iommu_platform=on"
iommu="-machine q35 -cpu max -device intel-iommu,intremap=off,caching-mode=on,aw-bits=48"

echo "guest: booting $kernel; log in $out/guest.log"
timeout 2400 vng --run "$kernel" --disable-kvm --disable-microvm --force-9p \
    --cpus 2 --memory 2G --user root --append intel_iommu=on --qemu-opts="$iommu $cable" \
    -- "$here/inside.sh $program" >"$out/guest.log" 2>&1 </dev/null || true
grep -a '^guest: ' "$out/guest.log" || true
if ! grep -aq '^guest: all holds' "$out/guest.log"; then
    tail -60 "$out/guest.log" >&2
    exit 1
fi
