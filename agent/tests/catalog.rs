//! The directory catalog: bad and half-written files, full disks, and several agents at once.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::catalog::{Catalog, Directory};
use cni::error::code;
use common::dataplane::FakeDataplane;
use common::{Agent, Netns, Pod, TWO_NETWORKS, eventually, held, write};
use multinet::ipam;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use multinet::types::network::{Network, NetworkSpec};

const BLUE: &str = "apiVersion: bowline.dev/v1alpha1
kind: Network
metadata:
  name: blue
spec:
  vni: 56
  namespaceSelector: {}
";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

fn catalog(dir: &Path) -> Arc<Catalog> {
    Catalog::open(Directory::open(dir).unwrap()).unwrap()
}

fn vni(catalog: &Catalog, name: &str) -> Option<u32> {
    catalog.snapshot().get::<Network>(None, name)?.spec.vni
}

#[test]
fn a_bad_file_is_named_by_field_and_line_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "blue.yaml", BLUE);
    let catalog = catalog(dir.path());
    catalog.look_settled().unwrap();
    for (bad, line, field, part) in [
        (BLUE.replace("56", "0x"), 6, "spec.vni", "yaml:6: Network blue: spec.vni: invalid type: "),
        (BLUE.replace("56", "99999999"), 6, "spec.vni", "16777215"),
        (BLUE.replace("vni: 56", "vni: [56"), 7, "spec", "did not find"),
        (BLUE.replace("kind: Network", "kind: Netwrok"), 2, "kind", "Netwrok"),
        (BLUE.replace("  name: blue", "  labels: {}"), 3, "metadata.name", "missing"),
        (String::new(), 0, "", "empty"),
    ] {
        write(dir.path(), "blue.yaml", &bad);
        let snapshot = catalog.look_settled().unwrap();
        let [problem] = snapshot.problems() else { panic!("{bad}: {:?}", snapshot.problems()) };
        assert_eq!((problem.line, problem.field.as_str()), (line, field), "{problem}");
        let said = problem.to_string();
        assert!(said.contains(part), "{said}");
        assert!(field.is_empty() || said.matches(&format!("{field}: ")).count() == 1, "{said}");
        assert!(problem.file.ends_with("blue.yaml"), "{problem}");
        assert_eq!(vni(&catalog, "blue"), Some(56), "{bad}: the last good version stays");
    }
    write(dir.path(), "blue.yaml", &BLUE.replace("56", "58"));
    assert_eq!(catalog.look_settled().unwrap().problems(), []);
    assert_eq!(vni(&catalog, "blue"), Some(58));
    std::fs::remove_file(dir.path().join("blue.yaml")).unwrap();
    catalog.look_settled().unwrap();
    assert_eq!(vni(&catalog, "blue"), None, "a deleted file takes its objects along");
}

#[test]
fn a_bad_document_leaves_its_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let two = format!("{BLUE}---\n{}", BLUE.replace("blue", "red").replace("56", "57"));
    write(dir.path(), "all.yaml", &two);
    let catalog = catalog(dir.path());
    catalog.look_settled().unwrap();
    let changed = two.replace("vni: 56", "vni: nonsense").replace("vni: 57", "vni: 59");
    write(dir.path(), "all.yaml", &changed);
    let snapshot = catalog.look_settled().unwrap();
    assert_eq!(snapshot.problems().len(), 1, "{:?}", snapshot.problems());
    assert_eq!(snapshot.problems()[0].object, "Network blue");
    assert_eq!((vni(&catalog, "blue"), vni(&catalog, "red")), (Some(56), Some(59)));
    // The line is that of the document at fault, not of its twin above.
    write(dir.path(), "all.yaml", &two.replace("vni: 57", "vni: 99999999"));
    let snapshot = catalog.look_settled().unwrap();
    assert_eq!(snapshot.problems()[0].line, 14, "{}", snapshot.problems()[0]);
}

#[test]
fn a_misspelt_field_is_named_and_the_rest_serves() {
    let dir = tempfile::tempdir().unwrap();
    let pool = "---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v4, labels: {bowline.dev/network: blue}, selfLink: written by somebody's tool}
spec:
  subnet: 10.7.0.0/24
  gatewy: 10.7.0.1
status: {whatever: 1}
";
    let network = BLUE.replace("vni: 56", "vni: 56\n  mttu: 1400\n  interface: {maxQueus: 2}");
    write(dir.path(), "blue.yaml", &format!("{network}{pool}"));
    let snapshot = catalog(dir.path()).look_settled().unwrap();
    let problems = snapshot.problems().iter();
    let found: Vec<_> =
        problems.map(|p| (p.line, p.object.as_str(), p.field.as_str(), p.refused)).collect();
    let expected = [
        (7, "Network blue", "spec.mttu", false),
        (8, "Network blue", "spec.interface.maxQueus", false),
        (16, "SpiderIPPool blue-v4", "spec.gatewy", false),
    ];
    assert_eq!(found, expected, "{:?}", snapshot.problems());
    let said = snapshot.problems()[0].to_string();
    assert!(said.contains("blue.yaml:7: Network blue: spec.mttu: is no field"), "{said}");
    assert_eq!(snapshot.get::<Network>(None, "blue").unwrap().spec.vni, Some(56));
}

#[test]
fn a_file_that_is_being_written_is_taken_when_it_is_whole() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "blue.yaml", BLUE);
    let catalog = catalog(dir.path());
    catalog.look_settled().unwrap();
    // An editor that truncates: the first half is valid YAML without its selector and its VNI.
    let mut file = std::fs::File::create(dir.path().join("blue.yaml")).unwrap();
    file.write_all(&BLUE.as_bytes()[..BLUE.find("spec").unwrap()]).unwrap();
    catalog.look().unwrap();
    assert_eq!(vni(&catalog, "blue"), Some(56), "half a file changes nothing");
    file.write_all(&BLUE.replace("56", "60").as_bytes()[BLUE.find("spec").unwrap()..]).unwrap();
    drop(file);
    catalog.look_settled().unwrap();
    assert_eq!(vni(&catalog, "blue"), Some(60));
}

#[test]
fn of_two_definitions_the_one_in_force_stays() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "z.yaml", BLUE);
    let catalog = catalog(dir.path());
    catalog.look_settled().unwrap();
    write(dir.path(), "a.yaml", &BLUE.replace("56", "61"));
    let snapshot = catalog.look_settled().unwrap();
    assert_eq!(vni(&catalog, "blue"), Some(56));
    assert!(snapshot.problems()[0].to_string().contains("z.yaml"), "{}", snapshot.problems()[0]);
    // In one file as well: the second one is named by its line.
    write(dir.path(), "z.yaml", &format!("{BLUE}---\n{}", BLUE.replace("56", "62")));
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    let snapshot = catalog.look_settled().unwrap();
    let [problem] = snapshot.problems() else { panic!("{:?}", snapshot.problems()) };
    assert_eq!((problem.line, problem.object.as_str()), (9, "Network blue"), "{problem}");
    assert_eq!(vni(&catalog, "blue"), Some(56));
}

#[test]
fn a_networks_realm_does_not_change_under_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "blue.yaml", BLUE);
    let catalog = catalog(dir.path());
    catalog.look_settled().unwrap();
    let mut block = AddressBlock::around("blue", "10.7.0.2".parse().unwrap());
    block.put(Entry {
        address: "10.7.0.2".parse().unwrap(),
        state: EntryState::Allocated,
        owner: Some(Owner::Node { name: "n1".into() }),
        interface: "bowline0".into(),
        pool: "blue-v4".into(),
        sandbox_id: String::new(),
        node: "n1".into(),
        since_ms: 1,
        until_ms: None,
        reason: String::new(),
    });
    let block = block_on(catalog.directory().create(&block)).unwrap();
    let more = "  physicalNetwork: dc2\n";
    for (changed, line, field) in [
        (BLUE.replace("56", "57"), 6, "spec.vni"),
        (format!("{BLUE}{more}"), 8, "spec.physicalNetwork"),
    ] {
        write(dir.path(), "blue.yaml", &changed);
        // It is said as long as it is so, not once.
        for _ in 0..2 {
            let snapshot = catalog.look_settled().unwrap();
            let [problem] = snapshot.problems() else { panic!("{:?}", snapshot.problems()) };
            assert_eq!((problem.line, problem.field.as_str()), (line, field), "{problem}");
            assert_eq!(problem.object, "Network blue");
            assert!(problem.file.ends_with("blue.yaml"), "{problem}");
            assert!(problem.message.contains("stays in force"), "{problem}");
            let blue = snapshot.get::<Network>(None, "blue").unwrap();
            assert_eq!(blue.spec.vni, Some(56));
            assert_ne!(blue.spec.physical_network, "dc2");
        }
    }
    // What does not make the realm may change.
    write(dir.path(), "blue.yaml", &format!("{BLUE}  mtu: 1400\n"));
    let snapshot = catalog.look_settled().unwrap();
    assert_eq!(snapshot.problems(), []);
    assert_eq!(snapshot.get::<Network>(None, "blue").unwrap().spec.mtu, 1400);
    // Without pods everything may.
    write(dir.path(), "blue.yaml", &BLUE.replace("56", "57"));
    assert_eq!(vni_after_look(&catalog), Some(56));
    block_on(catalog.directory().delete(&block)).unwrap();
    assert_eq!(vni_after_look(&catalog), Some(57));
}

fn vni_after_look(catalog: &Arc<Catalog>) -> Option<u32> {
    catalog.look_settled().unwrap().get::<Network>(None, "blue")?.spec.vni
}

#[test]
fn a_network_without_vni_is_refused_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "blue.yaml", &BLUE.replace("  vni: 56\n", ""));
    let snapshot = catalog(dir.path()).look_settled().unwrap();
    let [problem] = snapshot.problems() else { panic!("{:?}", snapshot.problems()) };
    assert_eq!((problem.line, problem.field.as_str()), (5, "spec.vni"), "{problem}");
    assert!(problem.message.contains("write a number"), "{problem}");
    assert!(snapshot.get::<Network>(None, "blue").is_none());
}

#[test]
fn changes_are_followed_live() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let catalog = catalog(dir.path());
    let follow = catalog.follow().unwrap();
    write(dir.path(), "blue.yaml", BLUE);
    eventually("blue is seen", || vni(&catalog, "blue").filter(|v| *v == 56));
    // In a directory that did not exist when the watch began.
    write(&dir.path().join("Network"), "red.yaml", &BLUE.replace("blue", "red"));
    eventually("red is seen", || vni(&catalog, "red"));
    follow.abort();
}

#[test]
fn writes_are_compared_and_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::open(dir.path()).unwrap();
    let other = Directory::open(dir.path()).unwrap();
    block_on(async {
        let new = Network::new("blue", NetworkSpec { vni: Some(1), ..NetworkSpec::default() });
        let first = store.create(&new).await.unwrap();
        assert!(first.metadata.uid.is_some());
        let kind = "Network";
        let name = || "blue".to_owned();
        let exists = other.create(&new).await.unwrap_err();
        assert_eq!(exists, StoreError::Exists { kind, name: name() });
        let mut mine = other.get::<Network>(None, "blue").await.unwrap().unwrap();
        mine.spec.vni = Some(2);
        let second = other.update(&mine).await.unwrap();
        // The first reader is too late, in whatever way.
        let late = store.update(&first).await.unwrap_err();
        assert_eq!(late, StoreError::Conflict { kind, name: name() });
        assert_eq!(
            store.delete(&first).await.unwrap_err(),
            StoreError::Conflict { kind, name: name() }
        );
        assert_eq!(
            store.update(&new).await.unwrap_err(),
            StoreError::Conflict { kind, name: name() },
            "an object without version"
        );
        // A person's edit counts as well.
        let path = dir.path().join("Network/blue.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("vni: 2", "vni: 3")).unwrap();
        assert!(store.update(&second).await.is_err());
        let now = store.get::<Network>(None, "blue").await.unwrap().unwrap();
        assert_eq!(now.spec.vni, Some(3));
        store.delete(&now).await.unwrap();
        assert_eq!(
            store.delete(&now).await.unwrap_err(),
            StoreError::NotFound { kind, name: name() }
        );
    });
}

#[test]
fn a_file_of_several_objects_is_never_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let two = format!("{BLUE}---\n{}", BLUE.replace("blue", "red"));
    write(&dir.path().join("Network"), "blue.yaml", &two);
    let store = Directory::open(dir.path()).unwrap();
    block_on(async {
        let blue = store.get::<Network>(None, "blue").await.unwrap().unwrap();
        let error = store.update(&blue).await.unwrap_err();
        assert!(error.to_string().contains("several objects"), "{error}");
    });
    assert_eq!(std::fs::read_to_string(dir.path().join("Network/blue.yaml")).unwrap(), two);
}

/// Agents of several nodes claim from one small directory at once, each through a store of its own.
#[test]
fn no_address_is_given_twice_to_writers_of_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "networks.yaml", TWO_NETWORKS);
    let claimed: Vec<String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|node| {
                let root = dir.path();
                scope.spawn(move || claim_as(root, node, 25))
            })
            .collect();
        writers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    let distinct: BTreeSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (100, 100));
    let stored: BTreeSet<_> = held(dir.path()).into_iter().map(|(address, ..)| address).collect();
    assert_eq!(stored.iter().collect::<BTreeSet<_>>(), distinct, "the files say the same");
}

fn claim_as(root: &Path, node: usize, count: usize) -> Vec<String> {
    use multinet::ipam::{Candidate, Request};
    use multinet::range::Family;
    use multinet::rules::{Catalog as Objects, Checked, Home};
    use multinet::types::block::Owner;
    use multinet::types::pool::SpiderIPPool;
    let catalog = catalog(root);
    let snapshot = catalog.look_settled().unwrap();
    let objects = Objects {
        networks: snapshot.list::<Network>().map(|n| (n.name().into(), (*n).clone())).collect(),
        pools: snapshot.list::<SpiderIPPool>().map(|p| (p.name().into(), (*p).clone())).collect(),
        ..Objects::default()
    };
    let checked = Checked::new(&objects);
    let (home, pool) = &checked.pools["blue-v4"];
    assert_eq!(*home, Home::Network("blue".into()));
    let claim = |n: usize| {
        let uid = format!("{node}-{n}");
        let request = Request {
            owner: Owner::Pod { namespace: "ns".into(), name: uid.clone(), uid: uid.clone() },
            interface: "eth0".into(),
            family: Family::V4,
            sandbox_id: uid,
            node: format!("node{node}"),
            candidates: vec![Candidate::new(&checked, home, pool)],
            exact: None,
            sticky: false,
            moves: false,
            cluster_nodes: 4,
        };
        let claims = block_on(ipam::claim(catalog.directory(), "blue", &[request], 1)).unwrap();
        claims[0].address.to_string()
    };
    (0..count).map(claim).collect()
}

#[test]
fn agents_of_three_nodes_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("catalog");
    write(&shared, "networks.yaml", TWO_NETWORKS);
    let mut nodes: Vec<_> = (1..=3)
        .map(|n| {
            let agent = Agent::prepare(&dir.path().join(n.to_string()), &format!("n{n}"), &shared);
            let dataplane = FakeDataplane::start(&agent.dataplane_socket(), [192, 0, 2, n]);
            (agent, dataplane)
        })
        .collect();
    for (agent, _) in &mut nodes {
        agent.start(&[]);
    }
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = nodes
            .iter()
            .flat_map(|(agent, _)| (0..4).map(move |n| (agent, n)))
            .map(|(agent, n)| {
                scope.spawn(move || {
                    let netns = Netns::new();
                    let pod = Pod::new(&format!("{}p{n}", agent.node), &netns, "blue", "eth0");
                    let result = agent.add(&pod);
                    (netns, result.ips[0].address.clone())
                })
            })
            .collect();
        let made: Vec<_> = calls.into_iter().map(|c| c.join().unwrap()).collect();
        // What one node attached, the others route to.
        for (agent, dataplane) in &nodes {
            eventually(&format!("{} knows the others", agent.node), || {
                let told = dataplane.told.lock().unwrap();
                (told.cluster_vteps.len() == 2 && remote_hosts(&told) == 16).then_some(())
            });
        }
        made.into_iter().map(|(_, address)| address).collect()
    });
    let distinct: BTreeSet<_> = addresses.iter().collect();
    assert_eq!(distinct.len(), 12, "{addresses:?}");
}

/// Addresses of both families that lead into tunnels: a route to a block counts what is in it.
fn remote_hosts(told: &common::dataplane::Told) -> usize {
    let Some(blue) = told.networks.get("blue") else { return 0 };
    let tunnels = blue.routes.iter().filter(|r| matches!(r.via, Some(api::route::Via::Tunnel(_))));
    tunnels.count()
}

/// A tmpfs so small that it can be filled.
struct SmallDisk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        common::run("mount", &["-t", "tmpfs", "-o", "size=128k", "tmpfs", path.to_str().unwrap()]);
        Self { path, _dir: dir }
    }

    /// Writes until nothing fits.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let ballast = self.path.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 1024]).is_ok() {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        common::run("umount", &["-l", self.path.to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let disk = SmallDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::prepare(dir.path(), "n1", &disk.path.join("catalog"));
    write(&agent.catalog, "networks.yaml", TWO_NETWORKS);
    let dataplane = FakeDataplane::start(&agent.dataplane_socket(), [192, 0, 2, 1]);
    agent.start(&[]);
    let (one, two) = (Netns::new(), Netns::new());
    let first = Pod::new("a", &one, "blue", "eth0");
    let second = Pod::new("b", &two, "blue", "eth0");
    let result = agent.add(&first);
    // The claim's confirmation is written in the background.
    eventually("the claim is confirmed", || agent_confirmed(&agent.catalog).then_some(()));
    let before = held(&agent.catalog);
    let ballast = disk.fill();

    let error = agent.add_refused(&second);
    assert_eq!(error.code, code::TRY_AGAIN_LATER, "{error:?}");
    assert!(error.msg.contains("nothing was changed: free some space"), "{}", error.msg);
    assert_eq!(held(&agent.catalog), before, "the old content is whole");
    assert_eq!(two.devices(), Vec::<String>::new());
    assert_eq!(agent.add(&first), result, "what runs is still answered for");

    // A DEL succeeds all the same, and its addresses follow when there is space.
    agent.del(&first);
    assert_eq!(dataplane.interface_ids(), Vec::<String>::new());
    std::fs::remove_file(ballast).unwrap();
    eventually("the addresses are released", || held(&agent.catalog).is_empty().then_some(()));
    // Written after them.
    eventually("the attachment is forgotten", || agent.journal().is_empty().then_some(()));
    agent.add(&second);
}

fn agent_confirmed(catalog: &Path) -> bool {
    let entries = std::fs::read_dir(catalog.join("AddressBlock")).unwrap();
    let texts = entries.map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap_or_default());
    texts.into_iter().all(|text| !text.contains("Intent"))
}

#[test]
fn a_corrupt_block_serves_nobody_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
    write(&agent.catalog, "networks.yaml", TWO_NETWORKS);
    let _dataplane = FakeDataplane::start(&agent.dataplane_socket(), [192, 0, 2, 1]);
    agent.start(&[]);
    let netns = Netns::new();
    agent.add(&Pod::new("a", &netns, "blue", "eth0"));
    eventually("the claim is confirmed", || agent_confirmed(&agent.catalog).then_some(()));
    let blocks = agent.catalog.join("AddressBlock");
    let path = std::fs::read_dir(&blocks).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read_to_string(&path).unwrap();
    // YAML that is cut off where what is left is a valid block that holds nothing.
    let json: serde_json::Value = serde_json::from_str(whole.trim_end_matches("...\n")).unwrap();
    let yaml = serde_yaml_ng::to_string(&json).unwrap();
    std::fs::write(&path, &yaml[..yaml.find("  entries:").unwrap()]).unwrap();
    let other = Netns::new();
    let error = agent.add_refused(&Pod::new("b", &other, "blue", "eth0"));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.msg.contains(name) && error.msg.contains("cut off"), "{}", error.msg);
    std::fs::write(&path, &whole).unwrap();
    let result = agent.add(&Pod::new("b", &other, "blue", "eth0"));
    assert_eq!(result.ips[0].address, "10.7.0.3/24", "the first pod's address is its own still");
}
