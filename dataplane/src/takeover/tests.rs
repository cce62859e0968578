//! A node (a namespace) with a veth to a peer (another one). Needs root.

mod pci;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::link::{Change, Link};
use super::netlink::Netlink;
use super::*;
use crate::sys::ethtool;

/// The calling thread becomes the node.
struct Rig {
    spec: Spec,
    /// The veth plays a NIC on this.
    bus: Option<pci::Bus>,
    peer: OwnedFd,
    state: tempfile::TempDir,
    /// What the node's interface looked like at first.
    before: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        Self::build(Self::spec(), |_| None)
    }

    fn on_pci() -> Self {
        let spec = Spec { purpose: Use::Pci(pci::address()), ..Self::spec() };
        Self::build(spec, |peer| Some(pci::Bus::new(peer)))
    }

    fn build(spec: Spec, bus: impl FnOnce(OwnedFd) -> Option<pci::Bus>) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        let peer = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            netns::current().expect("/proc")
        });
        let peer = peer.join().expect("no panic");
        run("ip link set lo up");
        plug_in("eth0", &peer);
        // Duplicate address detection would take a second of each test.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").expect("sysctl");
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_ignore", "2").expect("sysctl");
        for command in [
            "ip link set eth0 mtu 1400 txqueuelen 321 up",
            "ip addr add 10.9.0.1/24 dev eth0",
            "ip addr add 10.9.0.7/24 dev eth0",
            "ip addr add 10.9.1.1/32 dev eth0",
            "ip addr add fd09::1/64 dev eth0 nodad",
            "ip addr add fd09::77/64 dev eth0 nodad noprefixroute valid_lft 9000 preferred_lft 8000",
        ] {
            run(command);
        }
        for command in [
            "ip route add default via 10.9.0.2 metric 50",
            "ip route add 192.0.2.0/24 via 10.9.0.2 table 100 mtu 1300",
            "ip route add 198.51.100.0/24 dev eth0 src 10.9.0.7",
            "ip -6 route add default via fd09::2",
            "ip -6 route add fd77::/64 via fd09::2 metric 5 table 100",
            "ip neigh add 10.9.0.99 lladdr 02:00:00:00:00:99 nud permanent dev eth0",
        ] {
            run(command);
        }
        let bus = bus(peer.try_clone().expect("a descriptor"));
        let state = tempfile::tempdir().expect("a folder");
        let mut rig = Self { spec, bus, peer, state, before: vec![] };
        rig.peer_reaches_node();
        // The kernel finishes IPv6 addresses beside the command that adds them.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !facts().iter().any(|fact| fact.starts_with("local fd09::77")) {
            assert!(Instant::now() < deadline, "{:#?}", facts());
            std::thread::sleep(Duration::from_millis(1));
        }
        rig.before = facts();
        assert!(rig.before.iter().any(|line| line.contains("fe80::")), "{:#?}", rig.before);
        rig
    }

    fn spec() -> Spec {
        Spec { interface: "eth0".to_owned(), purpose: Use::Packet, queues: 2 }
    }

    fn state(&self) -> &Path {
        self.state.path()
    }

    fn begin(&self) -> Result<Taken, Error> {
        begin(&self.spec, self.state())
    }

    /// Begins and dies right after `step`; whether it came that far.
    fn begin_until(&self, step: Step) -> bool {
        match begin_with(&self.spec, self.state(), &mut crash_after(step)) {
            Ok(_) => false,
            Err(error) => died(&error),
        }
    }

    fn rollback_until(&self, step: Step) -> bool {
        match rollback_with("eth0", self.state(), &mut crash_after(step)) {
            Ok(_) => false,
            Err(error) => died(&error),
        }
    }

    fn unchanged(&self) {
        // The kernel finishes IPv6 addresses beside whoever adds them, on a busy machine much later.
        let deadline = Instant::now() + Duration::from_secs(5);
        while facts() != self.before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(facts(), self.before);
    }

    fn taken(&self, taken: &Taken) {
        self.unchanged();
        let mut netlink = Netlink::open().expect("netlink");
        let tap = Link::by_name(&mut netlink, "eth0").expect("the tap");
        assert_eq!((tap.kind.as_str(), tap.carrier), ("tun", true));
        assert_eq!((tap.mac, tap.mtu), (taken.mac, taken.mtu));
        match (&self.bus, &taken.moved) {
            (Some(bus), None) => {
                assert_eq!((bus.driver().as_str(), bus.is_clean()), ("vfio-pci", true));
            }
            (None, Some(moved)) => silent(moved, taken.mac),
            (bus, moved) => panic!("{} and {moved:?}", bus.is_some()),
        }
    }

    fn given_back(&self) {
        self.unchanged();
        let mut netlink = Netlink::open().expect("netlink");
        let nic = Link::by_name(&mut netlink, "eth0").expect("the NIC");
        assert_eq!((nic.kind.as_str(), nic.rx_queues), ("veth", 2));
        self.peer_reaches_node();
        if let Some(bus) = &self.bus {
            assert_eq!((bus.driver().as_str(), bus.is_clean()), ("e1000e", true));
        }
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert!(!self.state().join("takeover-eth0.json").exists());
    }

    fn peer_reaches_node(&self) {
        for address in ["10.9.0.1", "10.9.0.7", "fd09::1"] {
            in_peer(&self.peer, &format!("ping -c 1 -W 2 -q {address}"));
        }
    }

    /// Named namespaces of this node's takeovers.
    fn namespaces(&self) -> Vec<String> {
        let prefix = format!("bowline-eth0-{:x}", netns::cookie());
        let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in self.namespaces() {
            let _ = netns::remove(&name);
        }
    }
}

/// The NIC, which must answer for nobody.
fn silent(moved: &Moved, mac: [u8; 6]) {
    let (nic, addresses) = netns::run_in(moved.netns.as_fd(), || {
        let mut netlink = Netlink::open().expect("netlink");
        (Link::by_name(&mut netlink, "eth0").expect("the NIC"), lines("ip -o addr show"))
    })
    .expect("entered");
    assert_eq!((nic.index, nic.up, nic.mac), (moved.ifindex, true, mac));
    assert_eq!(addresses, Vec::<String>::new(), "the NIC answers for nobody");
}

/// A new NIC of the node, wired to the peer.
fn plug_in(name: &str, peer: &OwnedFd) {
    let queues = "numrxqueues 2 numtxqueues 2";
    run(&format!(
        "ip link add {name} address 02:00:00:00:09:01 {queues} type veth peer name peer0"
    ));
    let mut netlink = Netlink::open().expect("netlink");
    let end = Link::by_name(&mut netlink, "peer0").expect("made");
    Change::of(end.index).namespace(peer.as_fd()).send(&mut netlink).expect("moves");
    in_peer(peer, "ip link set peer0 up");
    in_peer(peer, "ip addr add 10.9.0.2/24 dev peer0");
    in_peer(peer, "ip addr add fd09::2/64 dev peer0 nodad");
}

fn crash_after(crash: Step) -> impl FnMut(Step) -> Result<(), Error> {
    move |step| {
        if step != crash {
            return Ok(());
        }
        Err(Error::Refused { interface: "eth0".to_owned(), reason: "crash".to_owned() })
    }
}

fn died(error: &Error) -> bool {
    assert!(matches!(error, Error::Refused { reason, .. } if reason == "crash"), "{error}");
    true
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.expect("the program exists");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn in_peer(peer: &OwnedFd, line: &str) {
    netns::run_in(peer.as_fd(), || run(line)).expect("entered");
}

fn lines(line: &str) -> Vec<String> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let text = String::from_utf8(output.expect("the program exists").stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

/// What iproute2 and sysctl say about eth0, without numbers that may differ.
fn facts() -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    for line in lines("ip -o addr show dev eth0") {
        // Without the device's number, time that passed, and how the address was checked.
        let words = line.split_whitespace().skip(1);
        let words = words.map(|w| if w.ends_with("sec") { "some-seconds" } else { w });
        facts.push(words.filter(|w| *w != "nodad").collect::<Vec<_>>().join(" "));
    }
    for family in ["-4", "-6"] {
        facts.extend(lines(&format!("ip {family} route show table all dev eth0")));
    }
    facts.extend(lines("ip neigh show nud permanent dev eth0"));
    for line in lines("ip -o link show dev eth0") {
        let words: Vec<&str> = line.split_whitespace().collect();
        for key in ["mtu", "qlen", "link/ether"] {
            let at = words.iter().position(|w| w.trim_start_matches('\\') == key);
            facts.push(format!("{key} {}", at.map_or("?", |at| words[at + 1])));
        }
    }
    for setting in
        ["ipv4/conf/eth0/arp_ignore", "ipv6/conf/eth0/accept_dad", "ipv6/conf/eth0/addr_gen_mode"]
    {
        let value = std::fs::read_to_string(format!("/proc/sys/net/{setting}")).expect("sysctl");
        facts.push(format!("{setting} {}", value.trim()));
    }
    facts.iter_mut().for_each(|fact| *fact = fact.trim().to_owned());
    facts.sort();
    facts
}

const FORWARD: &[Step] = &[
    Step::JournalWritten,
    Step::TapMade,
    Step::NamespaceMade,
    Step::NicMoved,
    Step::NicPrepared,
    Step::TapNamed,
    Step::TapConfigured,
    Step::Committed,
];

const BACK: &[Step] = &[
    Step::GivingBack,
    Step::TapDeleted,
    Step::NicReturned,
    Step::NicConfigured,
    Step::NamespaceRemoved,
    Step::JournalRemoved,
];

#[test]
fn the_tap_takes_the_nics_place_and_gives_it_back() {
    let rig = Rig::new();
    let taken = rig.begin().expect("taken");
    assert!(!taken.resumed);
    assert_eq!(taken.host_tap.len(), 2);
    rig.taken(&taken);
    taken.restore().expect("given back");
    rig.given_back();
}

#[test]
fn what_the_node_changed_meanwhile_comes_back_too() {
    let mut rig = Rig::new();
    let taken = rig.begin().expect("taken");
    run("ip addr add 10.9.5.5/24 dev eth0");
    run("ip addr del 10.9.1.1/32 dev eth0");
    run("ip route add 203.0.113.0/24 via 10.9.0.2");
    rig.before = facts();
    taken.restore().expect("given back");
    rig.given_back();
}

#[test]
fn after_a_kill_it_resumes_without_touching_an_address() {
    let rig = Rig::new();
    drop(rig.begin().expect("taken"));
    run("ip addr add 10.9.6.6/24 dev eth0");
    let start = Instant::now();
    let taken = rig.begin().expect("resumed");
    let took = start.elapsed();
    assert!(taken.resumed);
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert!(facts().iter().any(|fact| fact.contains("10.9.6.6/24")));
    run("ip addr del 10.9.6.6/24 dev eth0");
    rig.taken(&taken);
    taken.restore().expect("given back");
    rig.given_back();
}

/// The far end's frames come by any of them.
#[test]
fn a_nic_for_xdp_has_no_queue_that_nobody_reads() {
    let queues = |place: &OwnedFd| {
        let inside = || ethtool::rx_queues(&ethtool::open().expect("a socket"), "eth0");
        let found = netns::run_in(place.as_fd(), inside).expect("entered").expect("it says");
        (found.count, found.paired)
    };
    let rig = Rig::build(Spec { purpose: Use::AfXdp, ..Rig::spec() }, |_| None);
    let node = netns::current().expect("/proc");
    assert_eq!(queues(&node), (2, false), "of a veth that was made so");
    for resumed in [false, true] {
        let taken = rig.begin().expect("taken");
        let moved = taken.moved.as_ref().expect("the kernel drives it");
        assert_eq!(taken.resumed, resumed);
        // DPDK's driver opens one queue of a NIC whose queues are not paired.
        assert_eq!((moved.rx_queues, queues(&moved.netns)), (1, (1, false)));
    }
    assert!(rollback("eth0", rig.state()).expect("given back"));
    rig.given_back();
    assert_eq!(queues(&node), (2, false));
}

/// The kernel asks for a forgotten neighbour once a second, and the first time in vain.
#[test]
fn while_nobody_has_the_tap_the_node_keeps_its_neighbours() {
    let rig = Rig::new();
    let known = || lines("ip neigh show 10.9.0.2 dev eth0").iter().any(|n| n.contains("lladdr"));
    drop(rig.begin().expect("taken"));
    let deadline = Instant::now() + Duration::from_secs(5);
    // The kernel takes note of a lost carrier at its leisure.
    while !lines("ip -o link show dev eth0").iter().any(|line| line.contains("NO-CARRIER")) {
        assert!(Instant::now() < deadline, "the tap never lost its carrier");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(known(), "{:?}", lines("ip neigh show dev eth0"));
    rig.begin().expect("resumed").restore().expect("given back");
    let evicts = std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_evict_nocarrier");
    assert_eq!(evicts.expect("sysctl").trim(), "1", "the NIC's own setting");
    rig.given_back();
}

#[test]
fn a_crash_at_any_step_is_healed_by_the_next_start() {
    for step in FORWARD {
        let rig = Rig::new();
        assert!(rig.begin_until(*step), "{step:?} is a step");
        let taken = rig.begin().unwrap_or_else(|error| panic!("after {step:?}: {error}"));
        rig.taken(&taken);
        taken.restore().expect("given back");
        rig.given_back();
    }
}

#[test]
fn a_crash_at_any_step_is_undone_by_a_rollback() {
    for step in FORWARD {
        let rig = Rig::new();
        assert!(rig.begin_until(*step));
        assert!(rollback("eth0", rig.state()).unwrap_or_else(|e| panic!("after {step:?}: {e}")));
        rig.given_back();
        assert!(!rollback("eth0", rig.state()).expect("nothing to do"));
    }
}

#[test]
fn crashes_on_both_ways_are_healed_by_start_and_by_rollback() {
    for forward in &[Step::NicMoved, Step::TapNamed, Step::Committed] {
        for back in BACK {
            let rig = Rig::new();
            assert!(rig.begin_until(*forward));
            assert!(rig.rollback_until(*back), "{back:?} after {forward:?}");
            if back == &Step::JournalRemoved {
                rig.given_back();
                continue;
            }
            let again = rig.begin();
            let taken = again.unwrap_or_else(|e| panic!("after {forward:?}, {back:?}: {e}"));
            rig.taken(&taken);
            drop(taken);
            assert!(rig.rollback_until(*back));
            assert!(rollback("eth0", rig.state()).expect("given back"));
            rig.given_back();
        }
    }
}

#[test]
fn one_process_at_a_time() {
    let rig = Rig::new();
    let taken = rig.begin().expect("taken");
    assert!(matches!(rig.begin(), Err(Error::Running { .. })));
    assert!(matches!(rollback("eth0", rig.state()), Err(Error::Running { .. })));
    rig.taken(&taken);
    taken.restore().expect("given back");
}

#[test]
fn a_nic_that_died_leaves_nothing_behind() {
    let rig = Rig::new();
    drop(rig.begin().expect("taken"));
    in_peer(&rig.peer, "ip link del peer0");
    assert!(matches!(rig.begin(), Err(Error::NicLost { .. })));
    let mut netlink = Netlink::open().expect("netlink");
    assert_eq!(Link::find(&mut netlink, "eth0").expect("netlink"), None);
    assert_eq!(rig.namespaces(), Vec::<String>::new());
    assert!(!rollback("eth0", rig.state()).expect("nothing is left"));
}

#[test]
fn another_nodes_journal_is_refused() {
    let rig = Rig::new();
    drop(rig.begin().expect("taken"));
    let journal = rig.state().join("takeover-eth0.json");
    let other = Rig::new();
    std::fs::copy(&journal, other.state().join("takeover-eth0.json")).expect("copied");
    assert!(matches!(other.begin(), Err(Error::ForeignJournal { .. })));
    other.unchanged();
    std::fs::remove_file(other.state().join("takeover-eth0.json")).expect("removed");
    // The first node died with its namespace; what is left of it is only a name.
    for name in std::fs::read_dir("/run/netns").expect("folder").flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&journal).expect("journal");
        if text.contains(&format!("\"{name}\"")) {
            netns::remove(&name).expect("removed");
        }
    }
}

#[test]
fn a_journal_from_before_the_last_boot_is_void() {
    let rig = Rig::new();
    assert!(rig.begin_until(Step::JournalWritten));
    let path = rig.state().join("takeover-eth0.json");
    let text = std::fs::read_to_string(&path).expect("journal");
    std::fs::write(&path, text.replace(&boot_id(), "another-boot")).expect("written");
    let taken = rig.begin().expect("taken");
    rig.taken(&taken);
    taken.restore().expect("given back");
    rig.given_back();
}

#[test]
fn without_tun_nothing_changes_and_the_remedy_is_said() {
    let rig = Rig::new();
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("root");
    mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), none).expect("root");
    let error = rig.begin().map(drop).expect_err("no tap").to_string();
    assert!(error.contains("/dev/net/tun is missing: run 'modprobe tun'"), "{error}");
    rig.given_back();
}

#[test]
fn what_cannot_move_is_refused_in_words() {
    let rig = Rig::new();
    let refused = |interface: &str| {
        let spec = Spec { interface: interface.to_owned(), ..Rig::spec() };
        begin(&spec, rig.state()).expect_err("refused").to_string()
    };
    assert!(refused("lo").contains("loopback"));
    assert!(refused("nowhere").contains("no such interface"));
    run("ip link add br7 type bridge");
    run("ip link set eth0 master br7");
    assert!(refused("eth0").contains("belongs to br7"));
    run("ip link set eth0 nomaster");
    run("ip link add link eth0 name above7 type macvlan");
    assert!(refused("eth0").contains("above7 sits on top"));
    run("ip link del above7");
    assert_eq!(rig.namespaces(), Vec::<String>::new());
}
