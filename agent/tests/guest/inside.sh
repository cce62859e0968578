#!/bin/bash
# The test itself, inside the virtual machine.
set -eu
tests=$1 plugin=$(realpath "$2")
for module in 8021q bonding macvlan veth; do modprobe $module; done
ip link set lo up
cd "$(dirname "$0")/../.."
said=$(BOWLINE_CNI=$plugin "$tests" ifacer --nocapture 2>&1) || { echo "$said"; exit 1; }
echo "$said"
# What it left out, it did not show.
case $said in *SKIPPED*) exit 1 ;; *"1 passed"*) echo "guest: all holds" ;; esac
