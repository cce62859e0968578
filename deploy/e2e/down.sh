#!/usr/bin/env bash
# down.sh: ends everything that belongs to the cluster, whatever was killed before, and removes what it left.
#
# Whoever lives in the cluster's network namespaces belongs to it; pods die with their node's pid namespace.
set -uo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"

namespaces() { ip netns list | cut -d' ' -f1 | grep -xE "$NAME-(cp|n[1-3])"; }
for netns in $(namespaces | sort -r); do
    for _ in $(seq 100); do
        pids=$(ip netns pids "$netns")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086
        kill -9 $pids 2>/dev/null
        sleep 0.1
    done
    ip netns del "$netns"
done
for netns in n1 n2 n3; do
    umount "$R/$netns/ns/mnt" "$R/$netns/ns" 2>/dev/null
    # A folder goes when its last process is gone, which the kernel does in its own time.
    for _ in $(seq 50); do
        find /sys/fs/cgroup/*/"$NAME-$netns" -depth -type d -exec rmdir {} + 2>/dev/null
        ls -d /sys/fs/cgroup/*/"$NAME-$netns" >/dev/null 2>&1 || break
        sleep 0.1
    done
done
rm -rf "$R"
