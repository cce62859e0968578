# Settings shared by the scripts beside this file. What is built goes to $CACHE, what runs to $R.
HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
ROOT=$(readlink -f "$HERE/../..")
CACHE=${BOWLINE_KUBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bowline-kube}
BIN=$CACHE/bin                  # kube and its links, helm, multus …
DEB=$CACHE/debroot              # Debian packages, unpacked and not installed: containerd, runc, CNI plugins, busybox
IMG=$CACHE/images               # *.tar: imported into every node's containerd
NAME=${BOWLINE_CLUSTER:-bowline}  # names everything on the machine: two clusters may run beside each other
R=$CACHE/run/$NAME              # must not lie on an overlay file system: containerd's snapshots are overlays
CPNS=$NAME-cp                   # the control plane's network namespace; its bridge br0 joins the nodes
CPIP=10.90.0.1
SERVICE_CIDR=10.96.0.0/16,fd00:96::/112
POD_CIDR=10.244.0.0/16,fd00:244::/48
DNS_IP=10.96.0.10
KUBE_VERSION=v1.35.4
VERSION=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")

in_cp() { nsenter --net="/run/netns/$CPNS" "$@"; }   # `ip netns exec` would hide the cgroups
node_ns() { echo "$NAME-n$1"; }
node_ip() { echo "10.90.0.$((10 + $1))"; }
node_ip6() { echo "fd00:90::$((10 + $1))"; }
# The first process of a node's pid namespace, by its number outside: the child of `unshare`.
node_init() {
    local unshare
    unshare=$(cat "$R/n$1/pid" 2>/dev/null) || return 1
    cut -d' ' -f1 "/proc/$unshare/task/$unshare/children" 2>/dev/null | grep .
}
# Waits until COMMAND succeeds: until_ok SECONDS WHAT COMMAND…
until_ok() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "bowline: no $what in time; logs: $R/log and $R/n*/log" >&2; return 1; }
        sleep 0.1
    done
}
