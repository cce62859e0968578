#!/usr/bin/env bash
# multus.sh N on|off: Multus before Bowline on node N, with Bowline's configuration as its delegate.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
N=$1
conf=/etc/cni/net.d
[ "$2" = on ] || exec "$HERE/in-node.sh" "$N" rm -f $conf/00-multus.conf
delegate=$("$HERE/in-node.sh" "$N" cat $conf/05-bowline.conflist)
"$HERE/in-node.sh" "$N" sh -c "cp $R/admin.kubeconfig /etc/multus.kubeconfig && cat > $conf/00-multus.conf" <<J
{"cniVersion": "1.0.0", "name": "multus", "type": "multus", "kubeconfig": "/etc/multus.kubeconfig",
 "capabilities": {"portMappings": true}, "delegates": [$delegate]}
J
