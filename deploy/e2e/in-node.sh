#!/usr/bin/env bash
# in-node.sh N COMMAND…: a command on node N, in all its namespaces.
. "$(dirname "$(readlink -f "$0")")/env.sh"
init=$(node_init "$1") || { echo "bowline: node n$1 does not run" >&2; exit 1; }
shift
exec nsenter -t "$init" -n -m -p -u env "PATH=$DEB/usr/bin:$DEB/usr/sbin:$DEB/bin:$BIN:$PATH" \
    "LD_LIBRARY_PATH=$DEB/usr/lib/x86_64-linux-gnu" "$@"
