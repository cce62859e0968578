#!/usr/bin/env bash
# node-init.sh N: the first process of a node, in its namespaces (see node.sh). The machine's /etc, /opt and /var are
# seen through overlays and /run is the node's own, so that what pods write to a hostPath never reaches the machine.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
N=$1
D=$R/n$N
SOCKET=/run/containerd/containerd.sock

mount_own_files() {
    [ ! -e /run/is-a-node ] || return 0        # mounts survived
    mount --make-rshared /
    local folder
    for folder in etc opt var; do
        rm -rf "$D/ov/$folder.work"
        mkdir -p "$D/ov/$folder.up" "$D/ov/$folder.work"
        mount -t overlay -o "lowerdir=/$folder,upperdir=$D/ov/$folder.up,workdir=$D/ov/$folder.work" overlay "/$folder"
    done
    mount -t tmpfs -o mode=755 tmpfs /run
    touch /run/is-a-node
    mkdir -p /run/{netns,containerd,lock} /var/lib/kubelet /etc/cni/net.d /opt/cni/bin /etc/containerd
    mount --make-shared --bind "$D/kubelet" /var/lib/kubelet
    cp -n "$DEB"/usr/lib/cni/* "$BIN/multus" /opt/cni/bin/
    [ ! -f "$D/reference.conflist" ] || cp "$D/reference.conflist" /etc/cni/net.d/10-reference.conflist
    echo "nameserver $DNS_IP" > /etc/resolv.conf
    echo "127.0.0.1 localhost" > /etc/hosts
}

# Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj ("can't get final child's PID from pipe").
configure_containerd() {
    cat > /etc/containerd/config.toml <<Y
version = 2
root = "$D/containerd"
state = "/run/containerd"
[grpc]
  address = "$SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$DEB/usr/sbin/runc"
      SystemdCgroup = false
Y
}

configure_kubelet() {
    cat > /etc/kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$SOCKET
cgroupDriver: cgroupfs
cgroupRoot: /$NAME-n$N
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $R/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
makeIPTablesUtilChains: false
nodeStatusUpdateFrequency: 5s
registerWithTaints: [{key: bowline.dev/not-ready, effect: NoSchedule}]
Y
}

ctr() { command ctr -a "$SOCKET" "$@"; }

import_images() {
    local image
    for image in "$IMG"/*.tar "$R"/images/*.tar; do
        [ -e "$image" ] || continue
        # An image that the node has from before a reboot is not read again.
        [ "$image" -ot "$D/imported" ] || ctr -n k8s.io images import "$image"
    done
    touch "$D/imported"
}

hostname "n$N"
mount_own_files
mount -t proc proc /proc
configure_containerd
configure_kubelet
export PATH=$DEB/usr/bin:$DEB/usr/sbin:$PATH LD_LIBRARY_PATH=$DEB/usr/lib/x86_64-linux-gnu
export XTABLES_LIBDIR=$LD_LIBRARY_PATH/xtables
containerd -c /etc/containerd/config.toml > "$D/log/containerd.log" 2>&1 &
until_ok 60 containerd ctr version
import_images
"$BIN/kubelet" --config /etc/kubelet.yaml --kubeconfig "$R/n$N.kubeconfig" --hostname-override "n$N" \
    --node-ip "$(node_ip "$N"),$(node_ip6 "$N")" --root-dir /var/lib/kubelet > "$D/log/kubelet.log" 2>&1 &
# Replies of a Service's pods must come back through the node that translated the address: masquerade all.
"$BIN/kube-proxy" --kubeconfig "$R/proxy.kubeconfig" --hostname-override "n$N" --proxy-mode nftables \
    --cluster-cidr "$POD_CIDR" --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 \
    --conntrack-tcp-timeout-close-wait 0 --masquerade-all > "$D/log/kube-proxy.log" 2>&1 &
wait
