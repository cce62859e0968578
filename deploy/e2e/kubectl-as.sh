#!/usr/bin/env bash
# kubectl-as.sh --token TOKEN ARGS…: kubectl with no credentials but these.
. "$(dirname "$(readlink -f "$0")")/env.sh"
exec nsenter --net="/run/netns/$CPNS" "$BIN/kubectl" --kubeconfig /dev/null --server "https://$CPIP:6443" \
    --certificate-authority "$R/pki/ca.crt" "$@"
