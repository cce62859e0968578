#!/usr/bin/env bash
# render.sh: the chart as plain YAML for `kubectl apply --server-side -f`, on standard output. The hook that cleans up
# before an uninstall is left out: see docs/kubernetes.md for what to do by hand.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/../e2e/env.sh"
cat <<'Y'
# Made from deploy/chart/bowline by deploy/install/render.sh.
apiVersion: v1
kind: Namespace
metadata: {name: bowline-system}
Y
"$BIN/helm" template bowline "$here/../chart/bowline" -n bowline-system --kube-version "${KUBE_VERSION#v}" \
    2> >(grep -v 'found symbolic link' >&2) \
    | awk 'function flush() { if (block !~ /helm.sh\/hook: pre-delete/) printf "%s", block; block = "" }
        /^---$/ { flush() } { block = block $0 "\n" } END { flush() }'
