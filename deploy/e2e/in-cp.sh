#!/usr/bin/env bash
# in-cp.sh COMMAND…: a command beside the nodes, where the control plane runs: for them it is the world outside.
. "$(dirname "$(readlink -f "$0")")/env.sh"
in_cp "$@"
