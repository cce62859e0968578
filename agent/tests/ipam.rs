//! `bowline ipam`: what people see of pools and addresses, and do about them, over a directory of objects.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use agent::catalog::Directory;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};

const OBJECTS: &str = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: blue}
spec: {vni: 56, namespaceSelector: {}, ipPools: {ipv4: [blue-v4]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v4}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.2-10.0.0.5], gateway: 10.0.0.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-a}
spec: {subnet: 10.60.0.0/24, ips: [10.60.0.2-10.60.0.4]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-b}
spec: {subnet: 10.61.0.0/24, ips: [10.61.0.2-10.61.0.4]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-c}
spec: {subnet: 10.62.0.0/24, ips: [10.62.0.2-10.62.0.4], multusName: [test/macvlan-c]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: router}
spec: {ips: [10.60.0.2]}
---
apiVersion: v1
kind: Pod
metadata:
  name: unnamed
  namespace: test
  uid: u1
  annotations:
    ipam.spidernet.io/ippools: '[{"ipv4": ["lan-a"]}, {"ipv4": ["lan-b"]}]'
    k8s.v1.cni.cncf.io/networks: macvlan
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata:
  name: exact
  namespace: test
  uid: u2
  annotations:
    bowline.dev/interfaces: '[{"name": "eth1", "network": "blue", "ips": ["10.0.0.4"]}]'
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata:
  name: defined
  namespace: test
  uid: u3
  annotations:
    ipam.spidernet.io/ippool: '{"ipv4": ["lan-c"]}'
    k8s.v1.cni.cncf.io/networks: macvlan-c
spec: {nodeName: n1}
"#;

struct Objects(tempfile::TempDir);

impl Objects {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("objects.yaml"), OBJECTS).unwrap();
        let objects = Self(directory);
        // A file counts as complete a moment after its last write.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !objects.says("pools").contains("lan-c") {
            assert!(Instant::now() < deadline, "the objects are never read");
        }
        objects
    }

    fn ask(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bowline"));
        command.arg("ipam").arg("--catalog").arg(self.0.path()).args(words.split(' '));
        command.output().unwrap()
    }

    /// What it prints when all is well.
    fn says(&self, words: &str) -> String {
        let output = self.ask(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{words}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// All that it prints when it fails.
    fn fails(&self, words: &str) -> String {
        let output = self.ask(words);
        let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(!output.status.success(), "{words}: {}", texts.concat());
        texts.concat()
    }

    /// Another pod has an address of blue.
    fn hold(&self, address: &str) {
        let mut block = AddressBlock::around("blue", address.parse().unwrap());
        let owner = Owner::Pod { namespace: "test".into(), name: "other".into(), uid: "u9".into() };
        block.put(Entry {
            address: address.parse().unwrap(),
            state: EntryState::Allocated,
            owner: Some(owner),
            interface: "eth0".into(),
            pool: "blue-v4".into(),
            sandbox_id: "sandbox-9".into(),
            node: "n2".into(),
            since_ms: 1,
            until_ms: None,
            reason: String::new(),
        });
        let store = Directory::open(self.0.path()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(store.create(&block)).unwrap();
    }
}

#[test]
fn a_trial_follows_the_rules_of_an_add() {
    let objects = Objects::new();
    let eth0 = objects.says("try test/unnamed --network -");
    assert!(eth0.contains("lan-a gives 10.60.0.3"), "{eth0}");
    for second in ["net1", "data7"] {
        let said = objects.says(&format!("try test/unnamed --network - --interface {second}"));
        assert!(said.contains("lan-b gives 10.61.0.2"), "{second}: {said}");
    }
    let exact = objects.says("try test/exact --interface eth1");
    assert!(exact.contains("blue-v4 gives 10.0.0.4"), "{exact}");
    objects.hold("10.0.0.4");
    let taken = objects.fails("try test/exact --interface eth1");
    assert!(taken.contains("blue-v4") && taken.contains("test/other"), "{taken}");

    let defined = objects.says("try test/defined --network - --interface net1");
    assert!(defined.contains("lan-c gives 10.62.0.2"), "{defined}");
    let elsewhere = objects.fails("try test/defined --network -");
    assert!(elsewhere.contains("lan-c") && elsewhere.contains("multusName"), "{elsewhere}");
    let nobody = objects.fails("try test/nobody");
    assert!(nobody.contains("there is no pod test/nobody"), "{nobody}");
}

#[test]
fn pools_and_holders_are_shown_and_an_address_is_taken_away_by_hand() {
    let objects = Objects::new();
    objects.hold("10.0.0.4");
    let pools = objects.says("pools");
    let cells = |pool: &str| -> Vec<&str> {
        let line = pools.lines().find(|line| line.contains(pool)).expect("the pool's line");
        line.split_whitespace().filter(|word| word.chars().all(char::is_alphanumeric)).collect()
    };
    // Addresses, held, resting, free.
    assert!(cells("blue-v4").ends_with(&["4", "1", "0", "3"]), "{pools}");
    assert!(cells("lan-a").ends_with(&["2", "0", "0", "2"]), "one is reserved: {pools}");
    let free = objects.says("free blue-v4");
    assert!(free.contains("10.0.0.2-10.0.0.3") && free.contains("10.0.0.5"), "{free}");
    assert!(!free.contains("10.0.0.4"), "{free}");
    assert!(objects.fails("free lan-z").contains("lan-b"), "those that there are are named");
    for whom in ["10.0.0.4", "test/other"] {
        let said = objects.says(&format!("who {whom}"));
        assert!(said.contains("test/other") && said.contains("n2"), "{whom}: {said}");
    }

    assert!(objects.fails("release 10.0.0.4").contains("--yes"));
    assert!(objects.says("free blue-v4").lines().all(|line| !line.contains("10.0.0.4")));
    assert!(objects.says("release 10.0.0.4 --yes").contains("is released"));
    assert!(objects.says("free blue-v4").contains("10.0.0.2-10.0.0.5"));
    assert!(objects.fails("release 10.0.0.4 --yes").contains("nobody holds 10.0.0.4"));
}
