#!/bin/bash
# The plugin `ifacer` on a kernel that has VLAN devices and bonds, in a virtual machine: the test of
# agent/tests/coordinator.rs, of which this machine's kernel may lack both.
#
#   agent/tests/guest/run.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
cd "$top"
cargo build --quiet --workspace --bin bowline-cni
# All of the workspace, so that nothing is built again with other features.
tests=$(cargo test --quiet --workspace --test coordinator --no-run --message-format=json |
    grep -o '"executable":"[^"]*/coordinator-[^"]*"' | cut -d'"' -f4)
[ -x "$tests" ] || { echo "guest: the test program is missing" >&2; exit 1; }

"$top/deploy/guest.sh" ifacer "-cpu max" "" "$here/inside.sh $tests $(dirname "$tests")/../bowline-cni"
