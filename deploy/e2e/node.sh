#!/usr/bin/env bash
# node.sh N [keep] (N = 1..3): a real Kubernetes node nN (containerd, kubelet, kube-proxy) in network, mount, pid and uts
# namespaces of its own. `kill -9` of the pid namespace's first process is a power cut (power-cut.sh), node.sh N again
# is a reboot.
#
#   keep            networks and mounts survive: a crash of everything but the kernel
#   REFERENCE=1     with the reference plugins (bridge, host-local, portmap) and static routes instead of Bowline
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
N=$1
NS=$(node_ns "$N")
D=$R/n$N

# After a power cut the last processes take a moment to go.
node_is_off() { ! kill -0 "$(cat "$D/pid" 2>/dev/null)" 2>/dev/null; }

make_netns() {
    ip netns add "$NS"
    ip link add "v$N" netns "$CPNS" type veth peer name eth0 netns "$NS"
    ip -n "$CPNS" link set "v$N" master br0 up
    ip -n "$NS" link set lo up
    ip -n "$NS" link set eth0 up
    ip -n "$NS" addr add "$(node_ip "$N")/24" dev eth0
    ip -n "$NS" route add default via "$CPIP"
    ip -n "$NS" addr add "$(node_ip6 "$N")/64" dev eth0 nodad
    ip -n "$NS" route add default via fd00:90::1
    nsenter --net="/run/netns/$NS" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

# The peer in comparisons, and the proof that the machine carries a cluster.
use_reference() {
    cat > "$D/reference.conflist" <<J
{"cniVersion": "0.4.0", "name": "reference", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
  "ranges": [[{"subnet": "10.244.$N.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
J
    ip -n "$CPNS" route replace "10.244.$N.0/24" via "$(node_ip "$N")"
    local other
    for other in 1 2 3; do
        [ "$other" = "$N" ] || ip -n "$NS" route replace "10.244.$other.0/24" via "$(node_ip "$other")"
    done
}

# Held by a file: what was mounted in the node, networks of pods under /run/netns among it, lives as long as a kernel
# would hold it.
make_mounts() {
    umount "$D/ns/mnt" 2>/dev/null || true
    # A mount namespace can be bound to a file on a private mount only.
    mountpoint -q "$D/ns" || { mount --bind "$D/ns" "$D/ns"; mount --make-private "$D/ns"; }
    touch "$D/ns/mnt"
    unshare --mount="$D/ns/mnt" --propagation private true
}

# A reboot leaves none; the kubelet would ask after each for seconds.
no_cgroups() {
    find /sys/fs/cgroup/*/"$NS" -depth -type d -exec rmdir {} + 2>/dev/null
    ! ls -d /sys/fs/cgroup/*/"$NS" >/dev/null 2>&1
}

make_cgroups() {   # version 1: the root of this kubelet's in each hierarchy
    local hierarchy file
    for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "${hierarchy%/}/$NS"; done
    for file in cpuset.cpus cpuset.mems; do
        cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/$NS/$file"
    done
}

mkdir -p "$D"/{ov,containerd,kubelet,log,ns}
until_ok 10 "end of the running node n$N" node_is_off || { echo "bowline: n$N runs; power-cut.sh $N ends it" >&2; exit 1; }
if [ "${2:-}" != keep ]; then
    make_mounts
    ip netns del "$NS" 2>/dev/null || true
    until_ok 10 "end of the cgroups of n$N" no_cgroups
fi
ip netns list | grep -qw "^$NS" || { until_ok 10 "free link v$N" sh -c "! ip -n $CPNS link show v$N"; make_netns; }
[ -z "${REFERENCE:-}" ] || use_reference
make_cgroups
nohup nsenter --net="/run/netns/$NS" --mount="$D/ns/mnt" unshare --pid --fork --kill-child --uts \
    "$HERE/node-init.sh" "$N" > "$D/log/node.log" 2>&1 9>&- &
echo $! > "$D/pid"
until_ok 10 "first process of n$N" node_init "$N"
