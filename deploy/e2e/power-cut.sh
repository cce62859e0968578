#!/usr/bin/env bash
# power-cut.sh N: node N loses its power: all its processes die at once. node.sh N switches it on again.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
init=$(node_init "$1") || { echo "bowline: node n$1 does not run" >&2; exit 1; }
kill -9 "$init"
