#!/usr/bin/env bash
# kubectl.sh ARGS…: kubectl for the cluster, inside the control plane's namespace.
. "$(dirname "$(readlink -f "$0")")/env.sh"
exec nsenter --net="/run/netns/$CPNS" "$BIN/kubectl" --kubeconfig "$R/admin.kubeconfig" "$@"
