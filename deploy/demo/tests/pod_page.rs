//! The line of docs/pod.md that a person in a pod pastes, as it stands: `dpdk-testpmd` answers pings. Needs
//! root.

mod typing;

const PAGE: &str = include_str!("../../../docs/pod.md");

/// The text between fences of a kind, after a heading.
fn fenced(after: &str, kind: &str) -> &'static str {
    let text = PAGE.split(after).nth(1).expect("the section");
    let text = text.split(&format!("```{kind}\n")).nth(1).expect("a fence");
    text.split("```").next().expect("its end")
}

#[test]
fn the_line_to_paste_answers_pings() {
    let annotation = fenced("# Inside a pod", "yaml");
    let line = fenced("### A line to paste", "sh");
    for words in ["set fwd icmpecho", "start", "show port info 0"] {
        assert!(PAGE.contains(&format!("`{words}`")), "{words}");
    }
    let script = format!(
        r#"
        mkdir -p /etc/bowline/catalog
        cat >/etc/bowline/catalog/blue.yaml <<'YAML'
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {{name: blue}}
spec: {{vni: 56, namespaceSelector: {{}}, ipPools: {{ipv4: [blue-v4]}}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: blue-v4, labels: {{bowline.dev/network: blue}}}}
spec: {{subnet: 10.0.0.0/24, gateway: 10.0.0.1, ips: [10.0.0.10-10.0.0.200]}}
---
apiVersion: v1
kind: Pod
{annotation}  name: pod1
YAML
        exec 3>&2 2>/run/bowline/log
        bowline-dataplane &
        bowline-agent --node n1 &
        exec 2>&3
        served
        for pod in pod1 pod2; do
            ip netns add $pod
            CNI_COMMAND=ADD CNI_CONTAINERID=$pod CNI_NETNS=/run/netns/$pod CNI_IFNAME=eth0 \
            CNI_PATH=/opt/cni/bin CNI_ARGS="K8S_POD_NAMESPACE=default;K8S_POD_NAME=$pod" \
                bowline-cni <<< '{{"cniVersion": "1.1.0", "name": "blue", "type": "bowline", "network": "blue"}}'
        done
        cat >/run/bowline/line <<'LINE'
{line}LINE
        mkfifo /run/bowline/typed
        ip netns exec pod1 bash /run/bowline/line </run/bowline/typed >/run/bowline/testpmd 2>&1 &
        testpmd=$!
        exec 4>/run/bowline/typed
        echo 'set fwd icmpecho' >&4
        echo start >&4
        address=$(ip -n pod1 -o addr show dev memif1 | grep -o '10[.0-9]*' | head -n 1)
        for _ in $(seq 30); do
            if ip netns exec pod2 ping -c 1 -W 1 $address; then break; fi
        done
        echo 'show port info 0' >&4
        echo quit >&4
        wait $testpmd
        cat /run/bowline/testpmd
        "#
    );
    let (out, err) = typing::by_hand(&script);
    let said = |what: &str| assert!(out.contains(what), "no \"{what}\" in:\n{out}\n{err}");
    said("1 received, 0% packet loss");
    said("Link status: up");
    said("Current number of RX queues: 2");
}
