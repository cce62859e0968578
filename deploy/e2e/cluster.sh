#!/usr/bin/env bash
# cluster.sh [bare|installed|all]: a two-node Kubernetes with Bowline from its chart as the only CNI.
#
#   bare       images in the nodes, nothing installed
#   installed  and Bowline, every node Ready
#   all        and the Networks blue and red with some pods, and what to try (the default)
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
until=${1:-all}
kubectl() { "$HERE/kubectl.sh" "$@"; }
step() { echo "bowline: $* (after $SECONDS s)"; }

make_images() {
    mkdir -p "$R/images"
    local binaries=${BOWLINE_BINARIES:-$ROOT/target/release}
    "$HERE/../images/build.sh" node "$binaries" "$R/images/bowline.tar"
    "$HERE/../images/build.sh" controller "$binaries" "$R/images/bowline-controller.tar"
    # A memif client for pods, and a shell beside it.
    # shellcheck disable=SC2046
    python3 "$HERE/image.py" "$R/images/pktgen.tar" localhost/pktgen:1 '[]' '["sh"]' "$DEB/bin/busybox=/bin/busybox" \
        link:busybox=/bin/sh link:busybox=/bin/cat "$binaries/bowline-pktgen=/usr/bin/bowline-pktgen" \
        $("$HERE/../images/libraries.sh" "$binaries/bowline-pktgen")
}

nodes_ready() { [ "$(kubectl get nodes --no-headers | grep -c ' Ready')" = 2 ]; }

install_bowline() {
    kubectl create namespace bowline-system
    "$HERE/helm.sh" install bowline "$HERE/../chart/bowline" -n bowline-system -f "$HERE/values.yaml" >/dev/null
    until_ok 60 "ready nodes" nodes_ready
    kubectl -n bowline-system wait --for=condition=Ready pod --all --timeout=60s >/dev/null
}

make_pods() {
    # The API server would have Spiderpool's finalizer named otherwise; nobody here can do anything about it.
    kubectl apply -f "$HERE/manifests/networks.yaml" -f "$HERE/manifests/pods.yaml" 2>&1 >/dev/null \
        | { grep -v 'prefer a domain-qualified finalizer' >&2 || true; }
    kubectl wait --for=condition=Ready pod --all --timeout=60s >/dev/null
}

say_what_to_try() {
    local k="deploy/e2e/kubectl.sh" first
    first=$(kubectl -n bowline-system get pod -l app.kubernetes.io/component=dataplane --field-selector spec.nodeName=n1 -o name)
    cat <<T

KUBECONFIG=$R/admin.kubeconfig   (inside the namespace $CPNS; $k enters it)

Five things to try:
  $k get networks,nodestates,pods -A -o wide
  $k exec blue-1 -- ping -c 3 10.0.0.12              # blue to blue, across the nodes
  $k exec blue-1 -- ping -c 3 -W 1 10.0.0.13         # that address is red's: no answer
  $k -n bowline-system exec $first -- bowline get drops     # what n1 dropped, and why
  deploy/e2e/power-cut.sh 2; deploy/e2e/node.sh 2    # node n2 loses its power, and comes back

make cluster-down removes all of it.
T
}

"$HERE/down.sh"
"$HERE/build.sh" cluster
step "images of Bowline's programs"
make_images
step "API server, controllers, scheduler"
"$HERE/up.sh"
step "nodes n1 and n2, with kubelet and containerd"
"$HERE/node.sh" 1
"$HERE/node.sh" 2
[ "$until" != bare ] || exit 0
step "Bowline from its chart; the nodes become ready by it"
install_bowline
[ "$until" != installed ] || exit 0
step "Networks blue and red, and pods on them"
make_pods
say_what_to_try
