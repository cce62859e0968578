#!/usr/bin/env bash
# lan.sh on|off: a LAN beside the nodes' network, with a NIC ens192 on each node and a router: what the documents of
# manifests/documents expect of a data centre.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
if [ "$1" = off ]; then
    ip -n "$CPNS" link del lan0
    for n in 1 2; do ip -n "$CPNS" link del "lan$n-port"; done
    exit
fi
ip -n "$CPNS" link add lan0 type bridge mcast_snooping 0
for router in 172.81.0.1/16 10.6.0.1/16 10.7.0.1/16 10.8.0.1/16; do ip -n "$CPNS" addr add "$router" dev lan0; done
ip -n "$CPNS" link set lan0 up
for n in 1 2; do
    ip link add "lan$n-port" netns "$CPNS" type veth peer name ens192 netns "$(node_ns "$n")"
    ip -n "$CPNS" link set "lan$n-port" master lan0 up
    ip -n "$(node_ns "$n")" link set ens192 up
done
