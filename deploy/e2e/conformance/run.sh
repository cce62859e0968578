#!/usr/bin/env bash
# run.sh all|one-of-each [FLAGS of e2e.test…]: Kubernetes' own [sig-network] [Conformance] tests against the running
# cluster (cluster.sh installed), with Bowline as the only CNI and kube-proxy for Services.
#
# Leaves target/conformance/junit.xml and summary.txt (commit, versions, what was skipped). Fails unless every wanted
# test ran and passed: 47 for `all`.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/../env.sh"
which=$1
shift
out=$ROOT/target/conformance
mkdir -p "$out"
rm -f "$out"/*
case $which in
    all) wanted=47 focus='\[sig-network\].*\[Conformance\]' ;;
    one-of-each)
        wanted=5
        focus='(HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol'
        focus=$focus'|Services should have session affinity work for service with type clusterIP \['
        focus=$focus'|Services should be able to create a functioning NodePort service'
        focus=$focus'|Proxy version v1 should proxy through a service and a pod '
        focus=$focus'|DNS should provide DNS for the cluster ).*\[Conformance\]' ;;
    *) echo "run.sh: '$which' is neither all nor one-of-each" >&2; exit 2 ;;
esac

# The API server reaches pods (10 tests go through its proxy) by a node, which masquerades.
ip -n "$CPNS" route replace 10.244.0.0/16 via "$(node_ip 1)"
"$HERE/kubectl.sh" apply -f "$HERE/conformance/coredns.yaml" >/dev/null
"$HERE/kubectl.sh" -n kube-system rollout status deployment/coredns --timeout=90s >/dev/null

echo "bowline: $wanted of Kubernetes' tests; they tell how far they are in $out/log.txt"
status=0
begun=$SECONDS
in_cp env "PATH=$BIN:$PATH" "$BIN/e2e.test" --kubeconfig "$R/admin.kubeconfig" --provider skeleton \
    --ginkgo.no-color --ginkgo.focus "$focus" --allowed-not-ready-nodes 0 --node-os-distro custom \
    --prepull-images=false --dns-domain cluster.local --system-pods-startup-timeout 1m --minStartupPods 0 \
    --ginkgo.junit-report "$out/junit.xml" "$@" > "$out/log.txt" 2>&1 || status=$?

python3 - "$out/junit.xml" "$wanted" "$(git -C "$ROOT" rev-parse HEAD 2>/dev/null || echo unknown)" "$KUBE_VERSION" "$((SECONDS - begun))" \
    > "$out/summary.txt" <<'P' || status=1
import sys
import xml.etree.ElementTree as tree

path, wanted, commit, kubernetes, seconds = sys.argv[1:]
cases = [c for c in tree.parse(path).iter("testcase") if c.get("name", "").startswith("[It]")]
ran = [c for c in cases if c.find("skipped") is None]
failed = [c for c in ran if c.find("failure") is not None or c.find("error") is not None]
skipped = [c for c in cases if c.find("skipped") is not None and "[Conformance]" in c.get("name")
           and "[sig-network]" in c.get("name")]
print(f"commit {commit}\nKubernetes {kubernetes}, kube-proxy in nftables mode with --masquerade-all")
for case in ran:
    print("FAILED" if case in failed else "passed", case.get("name"))
for case in skipped:
    print("skipped", case.get("name"))
print(f"conformance: {len(ran) - len(failed)} of {wanted} passed, {len(failed)} failed, {seconds} s")
sys.exit(0 if len(ran) == int(wanted) and not failed else 1)
P
cat "$out/summary.txt"
[ "$status" = 0 ] || { echo "conformance: see $out/log.txt" >&2; exit "$status"; }
