#!/usr/bin/env bash
# up.sh [apionly]: a real Kubernetes control plane in a network namespace of its own, ready in about 3 s.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
mkdir -p "$R"/{pki,log,etcd}
cd "$R"

make_fabric() {
    ip netns add "$CPNS"
    ip -n "$CPNS" link set lo up
    ip -n "$CPNS" link add br0 type bridge mcast_snooping 0
    ip -n "$CPNS" addr add "$CPIP/24" dev br0
    ip -n "$CPNS" addr add fd00:90::1/64 dev br0 nodad
    ip -n "$CPNS" link set br0 up
    in_cp sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

make_key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key" 2>/dev/null; }

# sign NAME SUBJECT EXTENSIONS
sign() {
    make_key "$1"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
        -extfile <(printf '%s\n' "$3" keyUsage=digitalSignature) 2>/dev/null
}

# One authority, a serving and a client certificate, the key pair of service accounts.
make_pki() {
    make_key ca
    openssl req -x509 -new -key ca.key -subj /CN=bowline-test -days 3650 -out ca.crt \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
    local names=DNS:localhost,IP:127.0.0.1,IP:$CPIP,IP:10.96.0.1 service=kubernetes suffix
    for suffix in "" .default .default.svc .default.svc.cluster.local; do names=$names,DNS:$service$suffix; done
    sign apiserver /CN=kube-apiserver "$(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth' "$names")"
    sign kubelet-client /O=system:masters/CN=apiserver-kubelet-client extendedKeyUsage=clientAuth
    openssl genrsa -out sa.key 2048 2>/dev/null
    openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
}

# Nobody but this machine's root reaches the namespace: names are good enough as bearer tokens.
make_tokens() {
    printf '%s-token,%s,%s,"%s"\n' \
        admin admin 1 system:masters kcm system:kube-controller-manager 2 "" \
        sched system:kube-scheduler 3 "" proxy system:kube-proxy 4 "" \
        n1 system:node:n1 11 system:nodes n2 system:node:n2 12 system:nodes n3 system:node:n3 13 system:nodes \
        | sed 's/,""$//' > pki/tokens.csv
    local user
    for user in admin kcm sched proxy n1 n2 n3; do
        cat > "$user.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: $NAME, cluster: {server: "https://$CPIP:6443", certificate-authority: $R/pki/ca.crt}}]
users: [{name: user, user: {token: $user-token}}]
contexts: [{name: $NAME, context: {cluster: $NAME, user: user}}]
current-context: $NAME
Y
    done
}

# What was asked by whom, without contents: the tests compare it with what RBAC grants.
audit_policy() {
    cat > audit.yaml <<'Y'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:bowline-system"]}
- {level: None}
Y
}

start() {
    local name=$1
    shift
    in_cp "$@" > "log/$name.log" 2>&1 9>&- &
    echo $! > "$name.pid"
}
answers() { in_cp curl -sf --max-time 2 "$@" >/dev/null; }
wait_for() { until_ok 60 "$@" || { tail -n 20 "log/$1.log" >&2; exit 1; }; }

start_etcd() {
    # Without fsync: a test's data may die with the machine. ETCD_FLAGS= (empty) measures with it.
    # shellcheck disable=SC2086
    start etcd "$BIN/etcd" --name default --data-dir "$R/etcd" --log-level warn ${ETCD_FLAGS---unsafe-no-fsync} \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster default=http://127.0.0.1:2380
    wait_for etcd answers http://127.0.0.1:2379/health
}

# Aggregator routing: webhooks that are Services are reached by their endpoints, since no kube-proxy runs here.
start_apiserver() {
    # shellcheck disable=SC2086
    start apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
        --advertise-address=$CPIP --secure-port=6443 --tls-cert-file=pki/apiserver.crt \
        --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt --token-auth-file=pki/tokens.csv \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
        --kubelet-client-certificate=pki/kubelet-client.crt --kubelet-client-key=pki/kubelet-client.key \
        --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true \
        --audit-policy-file=audit.yaml --audit-log-path=log/audit.log \
        --service-cluster-ip-range=$SERVICE_CIDR ${APISERVER_FLAGS:-}
    wait_for apiserver answers --cacert pki/ca.crt -H 'Authorization: Bearer admin-token' "https://$CPIP:6443/readyz"
}

# The default of 20 requests per second would be the limit of every test that makes pods.
start_controllers() {
    local limits="--kube-api-qps=300 --kube-api-burst=600 --bind-address=127.0.0.1 --leader-elect=false"
    # shellcheck disable=SC2086
    start kcm "$BIN/kube-controller-manager" --kubeconfig=kcm.kubeconfig --authentication-kubeconfig=kcm.kubeconfig \
        --authorization-kubeconfig=kcm.kubeconfig --service-account-private-key-file=pki/sa.key \
        --root-ca-file=pki/ca.crt --use-service-account-credentials=true --cluster-signing-cert-file=pki/ca.crt \
        --cluster-signing-key-file=pki/ca.key --service-cluster-ip-range=$SERVICE_CIDR $limits \
        --node-monitor-grace-period=20s
    # shellcheck disable=SC2086
    start sched "$BIN/kube-scheduler" --kubeconfig=sched.kubeconfig --authentication-kubeconfig=sched.kubeconfig \
        --authorization-kubeconfig=sched.kubeconfig $limits
    wait_for kcm answers -k https://127.0.0.1:10257/healthz
    wait_for sched answers -k https://127.0.0.1:10259/healthz
}

ip netns list | grep -qw "^$CPNS" || make_fabric
[ -f pki/sa.pub ] || ( cd pki && make_pki )
make_tokens
audit_policy
case ${1:-all} in
    etcd) start_etcd ;;
    apiserver) start_apiserver ;;
    apionly) start_etcd; start_apiserver ;;
    *) start_etcd; start_apiserver; start_controllers ;;
esac
