#!/bin/bash
# The test itself, inside the virtual machine: the NIC up0 is taken over, killed, resumed and given
# back, and the node talks to the other end of the cable all the while.
set -eu
program=$1
state=$(mktemp -d)
log=$state/log

say() { echo "guest: $*"; }
fail() { say "FAILED: $*"; cat "$log" 2>/dev/null; dmesg | tail -20; exit 1; }
# The limits are for an emulated machine on a busy one.
until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
nic_of() { # DRIVER
    basename "$(find /sys/bus/pci/drivers/"$1"/ -name '0000:*' | head -1)"
}
interface_of() { # ADDRESS
    basename "$(find /sys/bus/pci/devices/"$1"/ -maxdepth 4 -path '*/net/*' | head -1)"
}
driver() { basename "$(readlink /sys/bus/pci/devices/"$nic"/driver)"; }
kind() { ip -d -o link show up0 | grep -q " tun "; }
facts() { ip -o addr show dev up0 | sed 's/^[0-9]*: //; s/ nodad//; s/ *\\.*//'; ip route show dev up0; ip -6 route show dev up0; ip -o link show up0 | grep -o 'mtu [0-9]*\|link/ether [0-9a-f:]*'; }
# Routes say so as long as the link is not up again.
same() { [ "$(facts)" = "$before" ]; }
talks() {
    ping -c 1 -W 2 10.55.0.2 && ping -c 1 -W 2 fd55::2 && ip netns exec far ping -c 1 -W 2 10.55.0.1 \
        && ip netns exec far ping -c 1 -W 2 fd55::1 && ping -c 1 -W 2 192.0.2.1
}
start() {
    "$program" --uplink "up0=$nic" --socket "$state/api.sock" --state-dir "$state" --cpus 1 "$@" >>"$log" 2>&1 &
    pid=$!
}
ready() { [ "$(grep -c 'the data plane is ready' "$log")" -ge "$1" ]; }

for module in e1000e virtio_net tun vfio_pci; do modprobe $module; done
modprobe -r vfio_iommu_type1 2>/dev/null || true
modprobe vfio_iommu_type1 allow_unsafe_interrupts=1
echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
echo 128 >/proc/sys/vm/nr_hugepages
nic=$(nic_of e1000e)
ip link set lo up
ip link set "$(interface_of "$nic")" name up0
far=$(interface_of "$(for a in /sys/bus/pci/devices/*; do
    grep -q 0x1041 "$a/device" && basename "$a"; done)")
ip netns add far
ip link set "$far" netns far name far0
ip -n far addr add 10.55.0.2/24 dev far0
ip -n far addr add fd55::2/64 dev far0 nodad
ip -n far addr add 192.0.2.1/32 dev far0
ip -n far link set far0 up
sysctl -q -w net.ipv6.conf.up0.accept_dad=0
ip addr add 10.55.0.1/24 dev up0
ip addr add fd55::1/64 dev up0 nodad
ip link set up0 up mtu 1450
ip route add default via 10.55.0.2
until_true 300 talks || fail "the cable, before anything"
before=$(facts)
faults() { dmesg | grep -c 'fault addr' || true; }
say "$nic is up0, driver $(driver)"

start
until_true 300 ready 1 || fail "the data plane starts"
[ "$(driver)" = vfio-pci ] || fail "driver $(driver) after the takeover"
kind || fail "up0 is no tap"
[ "$(facts)" = "$before" ] || fail "configuration of the tap: $(facts) instead of $before"
until_true 300 talks || fail "traffic by DPDK"
[ "$(faults)" = 0 ] || fail "the NIC was given addresses that it may not read"
say "taken over: vfio-pci, same name, addresses and routes, traffic flows"

kill -9 $pid
wait $pid 2>/dev/null || true
[ "$(driver)" = vfio-pci ] || fail "driver $(driver) after kill -9"
begun=$SECONDS
start
until_true 300 ready 2 || fail "the restart"
until_true 300 talks || fail "traffic after the restart"
[ "$(facts)" = "$before" ] || fail "configuration after the restart"
say "kill -9 and restart: traffic flows after $((SECONDS - begun)) s of emulation"

kill $pid
until_true 300 [ ! -d /proc/$pid ] || fail "the data plane ignores SIGTERM"
[ "$(driver)" = e1000e ] || fail "driver $(driver) after the stop"
kind && fail "up0 is still a tap"
until_true 300 same || fail "configuration after the stop: $(facts) instead of $before"
until_true 300 talks || fail "traffic after the stop"
say "stopped: e1000e, same name, addresses and routes, traffic flows"

start
until_true 300 ready 3 || fail "the third start"
kill -9 $pid
wait $pid 2>/dev/null || true
"$program" --uplink "up0=$nic" --socket "$state/api.sock" --state-dir "$state" --give-back >>"$log" 2>&1 \
    || fail "--give-back"
[ "$(driver)" = e1000e ] || fail "driver $(driver) after --give-back"
until_true 300 same || fail "configuration after --give-back: $(facts) instead of $before"
until_true 300 talks || fail "traffic after --give-back"
say "killed and given back: traffic flows"
say "all holds"
