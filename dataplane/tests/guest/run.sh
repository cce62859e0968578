#!/bin/bash
# Takes a PCI NIC over for real: in a virtual machine with an IOMMU, an e1000e as the node's NIC and a
# virtio NIC as whoever is on the other end of its cable.
#
#   dataplane/tests/guest/run.sh [PROGRAM]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
program=$(realpath "${1:-$top/target/release/bowline-dataplane}")
[ -x "$program" ] || { echo "guest: $program is missing: run 'make build'" >&2; exit 1; }

# A cable between two NICs: each sends to the other's port. Ports that nobody has.
port=$((20000 + $$ % 20000))
cable="-netdev socket,id=n0,udp=127.0.0.1:$port,localaddr=127.0.0.1:$((port + 1))"
cable="$cable -device e1000e,netdev=n0,mac=52:54:00:12:34:56"
cable="$cable -netdev socket,id=n1,udp=127.0.0.1:$((port + 1)),localaddr=127.0.0.1:$port"
cable="$cable -device virtio-net-pci,netdev=n1,mac=52:54:00:12:34:57,disable-legacy=on,iommu_platform=on"
iommu="-machine q35 -cpu max -device intel-iommu,intremap=off,caching-mode=on,aw-bits=48"

"$top/deploy/guest.sh" guest "$iommu $cable" intel_iommu=on "$here/inside.sh $program"
