#!/usr/bin/env bash
# helm.sh ARGS…: helm for the cluster.
. "$(dirname "$(readlink -f "$0")")/env.sh"
exec nsenter --net="/run/netns/$CPNS" "$BIN/helm" --kubeconfig "$R/admin.kubeconfig" "$@" 2> >(grep -v 'found symbolic link' >&2)
