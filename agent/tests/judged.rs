//! Whole agents before the judge: it reads the raw history of a real API server, what ADDs returned, and
//! `ip -j address` of the pods' namespaces. One request of the agent is lost on its way, before it took
//! place or after, the first, the second and so on until a pod comes and goes untouched.
//! `BOWLINE_STORE_FULL=1`: every request; else every fourth.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::path::PathBuf;

use cluster::{Cluster, Node, request};
use cni::result::CniResult;
use cni::rpc::{Command, Outcome};
use common::{Netns, Pod, eventually};
use judge::{Event, Judge, Told, Version};
use testapi::{History, Loss, LossyProxy};

/// Far above the requests of a pod's life.
const MOST_REQUESTS: u32 = 500;
/// So many sandboxes in a row do not fail for one lost request.
const MOST_SANDBOXES: u32 = 20;
const THREE_INTERFACES: &str =
    r#"[{"name": "eth1", "network": "blue"}, {"name": "eth2", "network": "red"}]"#;

/// A node whose way to the API server leads through the proxy, and the judge.
struct Court {
    cluster: Cluster,
    history: History,
    judge: Judge,
    proxy: LossyProxy,
    node: Node,
    _dir: tempfile::TempDir,
}

impl Court {
    fn new() -> Self {
        let cluster = Cluster::start();
        let (history, proxy) = cluster.runtime.block_on(async {
            let history = History::follow(cluster.api.client("admin").await).await;
            (history, LossyProxy::start(cluster.api.client("admin").await).await)
        });
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(&dir, &proxy);
        let node = Node::start_with(&kubeconfig, "n1", [192, 0, 2, 1]);
        Self { cluster, history, judge: Judge::default(), proxy, node, _dir: dir }
    }

    /// A pod comes and goes while a request is lost. Whether it came to that.
    fn one_life(&mut self, n: u32, loss: Loss) -> bool {
        let name = format!("p-{n}-{loss:?}").to_lowercase();
        let annotations = serde_json::json!({"bowline.dev/interfaces": THREE_INTERFACES});
        let uid = self.cluster.pod(&name, &annotations);
        let netns = Netns::new();
        self.proxy.lose(n, loss);
        let (pod, result) = self.add(&Pod::new(&name, &netns, "", "eth0"), &uid);
        let told = told(&result, &uid, &pod.container_id);
        assert_eq!(told.len(), 6, "three interfaces of two families: {result:?}");
        told.iter().for_each(|told| self.judge.note(Event::Told(told.clone())));
        let shown = netns.ip(&["-j", "address"]);
        judge::namespace(&shown, &told).unwrap_or_else(|wrong| panic!("{wrong}"));
        self.expect(&uid, Some(&told));

        self.del(&pod, &uid);
        judge::namespace(&netns.ip(&["-j", "address"]), &[]).unwrap_or_else(|w| panic!("{w}"));
        self.expect(&uid, None);
        self.proxy.has_lost()
    }

    /// As the kubelet does: after a failed ADD the DEL of its sandbox, and another sandbox.
    fn add(&mut self, pod: &Pod, uid: &str) -> (Pod, CniResult) {
        for number in 0..MOST_SANDBOXES {
            let container_id = format!("{}-{number}", pod.container_id);
            let pod = Pod { container_id, ..pod.clone() };
            match self.node.agent.call(&request(&pod, uid, Command::Add)).outcome {
                Outcome::Result(result) => return (pod, result),
                Outcome::Error(_) => self.del(&pod, uid),
                Outcome::Done => panic!("an ADD without result"),
            }
        }
        panic!("{MOST_SANDBOXES} sandboxes failed: {}", self.node.agent.log());
    }

    fn del(&mut self, pod: &Pod, uid: &str) {
        let sandbox = pod.container_id.clone();
        self.judge.note(Event::MayRelease { uid: uid.to_owned(), sandbox });
        let outcome = self.node.agent.call(&request(pod, uid, Command::Del)).outcome;
        assert_eq!(outcome, Outcome::Done, "a DEL succeeds");
    }

    /// What the pod holds comes to be what it was told; never does anything happen that must not.
    fn expect(&mut self, uid: &str, told: Option<&[Told]>) {
        let wanted = told.map_or(0, <[Told]>::len);
        eventually("the records say what the pod was told", || {
            for line in self.cluster.runtime.block_on(self.history.take()) {
                if let Some(version) = Version::of_watch(&line) {
                    self.judge.note(Event::Seen(version));
                }
            }
            let holders = self.judge.verdict();
            let mut holders = holders.unwrap_or_else(|wrong| panic!("{wrong}")).clone();
            // The node's own addresses have no UID.
            holders.retain(|_, (holder, _)| !holder.is_empty());
            assert!(holders.values().all(|(holder, _)| holder == uid), "leaked: {holders:?}");
            (holders.len() == wanted
                && judge::settled(&holders, told.into_iter().flatten()).is_ok())
            .then_some(())
        });
    }
}

fn kubeconfig(dir: &tempfile::TempDir, proxy: &LossyProxy) -> PathBuf {
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", proxy.address())}}],
        "users": [{"name": "user", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
    });
    let path = dir.path().join("proxy.kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// The addresses of a result, each with its interface's Network.
fn told(result: &CniResult, uid: &str, sandbox: &str) -> Vec<Told> {
    let ips = result.ips.iter().map(|ip| {
        let interface = ip.interface.and_then(|n| result.interfaces.get(n));
        let network = match interface.map(|i| i.name.as_str()) {
            Some("eth1") => "blue",
            Some("eth2") => "red",
            _ => "default",
        };
        Told {
            uid: uid.to_owned(),
            sandbox: sandbox.to_owned(),
            network: network.to_owned(),
            address: ip.address.split('/').next().unwrap_or_default().to_owned(),
        }
    });
    ips.collect()
}

#[test]
fn a_request_lost_anywhere_loses_no_address_and_gives_none_twice() {
    let step = if std::env::var_os("BOWLINE_STORE_FULL").is_some() { 1 } else { 4 };
    let mut court = Court::new();
    for loss in [Loss::BeforeCommit, Loss::AfterCommit] {
        let mut requests = (1..MOST_REQUESTS).step_by(step);
        let untouched = requests.find(|n| !court.one_life(*n, loss));
        let n = untouched.expect("a life without loss ends the search");
        assert!(n > 8, "only {n} requests in a life: the loss was never looked at");
    }
}

/// The DEL of a pod's first sandbox comes after the ADD of its second.
#[test]
fn a_late_del_of_an_old_sandbox_takes_nothing_from_the_new_one() {
    let mut court = Court::new();
    let annotations = serde_json::json!({"bowline.dev/interfaces": THREE_INTERFACES});
    let uid = court.cluster.pod("late", &annotations);
    let (old, new) = (Netns::new(), Netns::new());
    let (first, before) = court.add(&Pod::new("late", &old, "", "eth0"), &uid);
    let again = Pod { container_id: "second".into(), ..Pod::new("late", &new, "", "eth0") };
    let (second, result) = court.add(&again, &uid);
    assert_eq!(addresses(&before), addresses(&result), "the pod keeps its addresses");
    court.del(&first, &uid);
    let told = told(&result, &uid, &second.container_id);
    told.iter().for_each(|told| court.judge.note(Event::Told(told.clone())));
    court.expect(&uid, Some(&told));
    let shown = new.ip(&["-j", "address"]);
    judge::namespace(&shown, &told).unwrap_or_else(|wrong| panic!("{wrong}"));
}

fn addresses(result: &CniResult) -> Vec<&str> {
    result.ips.iter().map(|ip| ip.address.as_str()).collect()
}
