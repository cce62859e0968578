//! A node: a namespace with a data plane in it, told what to do over its API.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use api::dataplane_client::DataplaneClient;
use api::descriptor_offer::Kind;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    socket,
};
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use super::{Netns, Proc, wait};

/// The data plane under test: another build can be put in its place (`deploy/mutants`).
const BINARY: &str = env!("CARGO_BIN_EXE_bowline-dataplane");

/// How the data plane is started.
#[derive(Clone, Default)]
pub struct Start {
    /// Worker threads; 0 = 1.
    pub workers: u32,
    /// The value of `--uplink`, when there is one.
    pub uplink: Option<String>,
    /// Further arguments.
    pub more: Vec<String>,
}

/// One node.
pub struct Node {
    /// Where the data plane runs.
    pub netns: Netns,
    /// The data plane.
    pub process: RefCell<Proc>,
    /// What it has been told.
    pub state: api::State,
    start: Start,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    client: DataplaneClient<Channel>,
    /// Duplicates, as the agent keeps them: names, carrier and listeners survive a restart.
    held: BTreeMap<String, (Kind, Vec<OwnedFd>)>,
    accounts_at_end: bool,
    /// What a removed interface counted is in the node's account alone.
    has_removed: bool,
    /// Goes after the data plane: `process` is dropped before.
    uplink: Option<super::Uplink>,
}

/// A Network as tests want it.
#[derive(Clone, Debug)]
pub struct Realm {
    /// Its name.
    pub name: &'static str,
    /// Its VNI.
    pub vni: u32,
    /// Of its interfaces.
    pub mtu: u32,
}

impl Realm {
    /// The Network; all tests use the same addresses in all Networks.
    pub fn new(name: &'static str, vni: u32, mtu: u32) -> Self {
        Self { name, vni, mtu }
    }

    /// Host number `n` of the realm's prefixes.
    pub fn ip4(n: u16) -> IpAddr {
        format!("10.56.{}.{}", n >> 8, n & 255).parse().expect("an address")
    }

    /// The same.
    pub fn ip6(n: u16) -> IpAddr {
        format!("fd56::{n:x}").parse().expect("an address")
    }

    /// Of the gateway, on every node.
    pub fn gateway_mac(&self) -> [u8; 6] {
        let [_, a, b, c] = self.vni.to_be_bytes();
        [0x0a, 0xb0, a, b, c, 1]
    }

    fn network(&self) -> api::Network {
        let gateway = |ip| api::Gateway { ip: Some(message(ip)) };
        api::Network {
            name: self.name.to_owned(),
            vni: self.vni,
            mtu: self.mtu,
            gateways: vec![gateway(Self::ip4(1)), gateway(Self::ip6(1))],
            prefixes: vec![prefix("10.56.0.0", 16), prefix("fd56::", 64)],
            ..api::Network::default()
        }
    }
}

/// An address as the API has it.
pub fn message(ip: IpAddr) -> api::Ip {
    api::Ip { addr: super::frame::octets(ip) }
}

/// A prefix as the API has it.
pub fn prefix(address: &str, len: u32) -> api::Prefix {
    api::Prefix { addr: message(address.parse().expect("an address")).addr, len }
}

impl Node {
    /// Without an uplink.
    pub fn local(workers: u32) -> Self {
        Self::start(Netns::new("node"), Start { workers, ..Start::default() })
    }

    /// A data plane in `netns`.
    pub fn start(netns: Netns, start: Start) -> Self {
        let folder = tempfile::tempdir().expect("a folder for sockets");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let process = launch(&netns, folder.path(), &start);
        let (process, client) = greet(process, &runtime, folder.path());
        Self {
            netns,
            process: RefCell::new(process),
            state: api::State { revision: 1, ..api::State::default() },
            start,
            folder,
            runtime,
            client,
            held: BTreeMap::new(),
            accounts_at_end: true,
            has_removed: false,
            uplink: None,
        }
    }

    /// Starts a data plane that is to give up at once; what it says.
    pub fn refused(netns: &Netns, start: &Start) -> String {
        let folder = tempfile::tempdir().expect("a folder for sockets");
        let mut process = launch(netns, folder.path(), start);
        let status = process.wait_end(20.0);
        assert!(!status.success(), "it ended well:\n{}", process.output());
        process.output()
    }

    /// A data plane that takes `uplink` over.
    pub fn with_uplink(netns: Netns, uplink: super::Uplink, workers: u32) -> Self {
        let start = Start { workers, uplink: Some(uplink.argument()), ..Start::default() };
        let mut node = Self::start(netns, start);
        let ends = [super::uplink::NODE4, super::uplink::NODE6]
            .map(|ip| message(ip.parse().expect("an address")));
        node.state.local_vteps = ends.to_vec();
        node.state.cluster_vteps = ends.to_vec();
        node.uplink = Some(uplink);
        node
    }

    /// The uplink's name, which the host tap has now.
    pub fn uplink_name(&self) -> &str {
        &self.uplink.as_ref().expect("a node with an uplink").name
    }

    /// A clean stop: SIGTERM, and the end.
    pub fn stop(&mut self) {
        let process = self.process.get_mut();
        process.signal(nix::sys::signal::Signal::SIGTERM);
        let status = process.wait_end(10.0);
        assert!(status.success(), "{status}:\n{}", process.output());
        self.accounts_at_end = false;
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    /// Adds a Network.
    pub fn add_realm(&mut self, realm: &Realm) {
        self.state.networks.push(realm.network());
        self.apply().expect("a sound network");
    }

    /// Changes a Network and applies it.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut api::Network)) {
        let network = self.state.networks.iter_mut().find(|n| n.name == name);
        change(network.expect("a network of that name"));
        self.apply().expect("a sound network");
    }

    /// Offers an interface's descriptors, keeps them, and applies the interface.
    pub fn add_interface(&mut self, interface: api::Interface, kind: Kind, fds: Vec<OwnedFd>) {
        offer(&self.fds_socket(), &interface.id, kind, &fds);
        self.held.insert(interface.id.clone(), (kind, fds));
        self.state.interfaces.push(interface);
        self.apply().expect("a sound interface");
    }

    /// Removes an interface.
    pub fn remove_interface(&mut self, id: &str) {
        self.has_removed = true;
        self.state.interfaces.retain(|interface| interface.id != id);
        self.apply().expect("nothing against that");
        self.held.remove(id);
    }

    /// Puts the whole state in force.
    pub fn apply(&mut self) -> Result<api::ApplyReply, tonic::Status> {
        self.state.revision += 1;
        let request = api::ApplyRequest { state: Some(self.state.clone()), ..Default::default() };
        let mut client = self.client.clone();
        self.runtime.block_on(client.apply(request)).map(tonic::Response::into_inner)
    }

    /// What the node says of itself.
    pub fn hello(&self) -> api::HelloReply {
        let mut client = self.client.clone();
        let request = api::HelloRequest { client: "tests".to_owned(), needs: Vec::new() };
        self.runtime.block_on(client.hello(request)).expect("an answer").into_inner()
    }

    /// What became of everything.
    pub fn actual(&self) -> api::ActualState {
        let mut client = self.client.clone();
        let call = client.get_state(api::GetStateRequest {});
        self.runtime.block_on(call).expect("an answer").into_inner()
    }

    /// All counters.
    pub fn counters(&self) -> api::Counters {
        let mut client = self.client.clone();
        let call = client.get_counters(api::GetCountersRequest {});
        self.runtime.block_on(call).expect("an answer").into_inner()
    }

    /// Underlay neighbours.
    pub fn neighbours(&self) -> Vec<api::Neighbour> {
        let mut client = self.client.clone();
        let call = client.get_neighbours(api::GetNeighboursRequest {});
        self.runtime.block_on(call).expect("an answer").into_inner().entries
    }

    /// The account of one interface.
    pub fn account(&self, id: &str) -> api::Account {
        let counters = self.counters();
        let found = counters.interfaces.into_iter().find(|i| i.id == id);
        found.and_then(|i| i.account).unwrap_or_else(|| panic!("no account of interface {id}"))
    }

    /// The account of the first interface of a kind: "uplink", "host-tap".
    pub fn account_of_kind(&self, kind: &str) -> api::Account {
        let counters = self.counters();
        let found = counters.interfaces.into_iter().find(|i| i.kind == kind);
        found.and_then(|i| i.account).unwrap_or_else(|| panic!("no account of a {kind}"))
    }

    /// The link of an interface.
    pub fn link(&self, id: &str) -> api::interface_status::Link {
        self.status(id).map_or(api::interface_status::Link::Down, |status| status.link())
    }

    /// What the data plane says of an interface.
    pub fn status(&self, id: &str) -> Option<api::InterfaceStatus> {
        self.actual().interfaces.into_iter().find(|i| i.id == id)
    }

    /// Waits until the interface forwards.
    pub fn wait_up(&self, id: &str) {
        wait(&format!("interface {id} up"), 5.0, || {
            (self.link(id) == api::interface_status::Link::Up).then_some(())
        });
    }

    /// kill -9 and a new start, as supervisor and agent do it: descriptors are offered again, and
    /// the state is applied.
    pub fn kill_and_restart(&mut self) {
        self.process.borrow_mut().kill();
        self.start_again();
    }

    /// Starts the data plane again after its end.
    pub fn start_again(&mut self) {
        let process = launch(&self.netns, self.folder.path(), &self.start);
        let (process, client) = greet(process, &self.runtime, self.folder.path());
        self.client = client;
        *self.process.borrow_mut() = process;
        let fds_socket = self.fds_socket();
        for (id, (kind, fds)) in &self.held {
            offer(&fds_socket, id, *kind, fds);
        }
        self.apply().expect("the state that was in force before");
    }

    /// Leaves the account check at the end out: for tests that end with the data plane dead.
    pub fn skip_accounts(&mut self) {
        self.accounts_at_end = false;
    }

    /// Both equations of every interface, Network and the node, and that the node is the sum of
    /// its interfaces. Frames under way are given a moment.
    pub fn check_accounts(&self) {
        let mut last = String::new();
        for _ in 0..200 {
            match imbalance(&self.counters(), self.has_removed) {
                None => return,
                Some(what) => last = what,
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{last}");
    }

    fn fds_socket(&self) -> PathBuf {
        let mut path = self.socket().into_os_string();
        path.push(".fds");
        path.into()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- counters of {}\n{:#?}",
                self.netns.name(),
                nonzero(&self.counters_or_none())
            );
            return;
        }
        if self.accounts_at_end {
            let process = self.process.get_mut();
            assert!(!process.ended(), "the data plane ended by itself:\n{}", process.output());
            self.check_accounts();
        }
    }
}

impl Node {
    fn counters_or_none(&self) -> api::Counters {
        let mut client = self.client.clone();
        let call = client.get_counters(api::GetCountersRequest {});
        let limited = async { tokio::time::timeout(std::time::Duration::from_secs(1), call).await };
        match self.runtime.block_on(limited) {
            Ok(Ok(reply)) => reply.into_inner(),
            _ => api::Counters::default(),
        }
    }
}

/// One line for each account, zeros left out.
fn nonzero(counters: &api::Counters) -> Vec<String> {
    let line = |name: &str, account: &api::Account| {
        let text = format!("{account:?}");
        let parts: Vec<_> = text
            .trim_start_matches("Account { ")
            .split(", ")
            .filter(|part| !part.ends_with(": 0"))
            .collect();
        format!("{name}: {}", parts.join(", "))
    };
    counters
        .interfaces
        .iter()
        .map(|i| line(&i.id, i.account.as_ref().unwrap_or(&api::Account::default())))
        .collect()
}

fn sum(drops: &[api::Drop]) -> u64 {
    drops.iter().map(|drop| drop.pkts).sum()
}

/// Received packets dropped for a reason.
pub fn drops(account: &api::Account, reason: &str) -> u64 {
    account.drops.iter().find(|drop| drop.reason == reason).map_or(0, |drop| drop.pkts)
}

/// Packets for this interface dropped for a reason.
pub fn tx_drops(account: &api::Account, reason: &str) -> u64 {
    account.tx_drops.iter().find(|drop| drop.reason == reason).map_or(0, |drop| drop.pkts)
}

fn imbalance(counters: &api::Counters, has_removed: bool) -> Option<String> {
    let of_interfaces = counters.interfaces.iter().map(|i| (i.id.clone(), &i.account));
    let of_networks = counters.networks.iter().map(|n| (n.network.clone(), &n.account));
    let node = std::iter::once(("the node".to_owned(), &counters.node));
    for (name, account) in of_interfaces.chain(of_networks).chain(node) {
        let Some(a) = account else { return Some(format!("{name} has no account")) };
        let rx = a.forwarded + a.consumed + a.punted + sum(&a.drops);
        if a.rx_pkts != rx {
            return Some(format!("{name}: rx {} ≠ {rx}: {a:?}", a.rx_pkts));
        }
        let tx = a.tx_forwarded + a.generated + a.split_extra;
        let out = a.tx_pkts + a.coalesced + sum(&a.tx_drops);
        if out != tx {
            return Some(format!("{name}: tx {out} ≠ {tx}: {a:?}"));
        }
    }
    let total: u64 = counters.interfaces.iter().flat_map(|i| &i.account).map(|a| a.rx_pkts).sum();
    let node = counters.node.as_ref().map_or(0, |a| a.rx_pkts);
    let fits = if has_removed { total <= node } else { total == node };
    (!fits).then(|| format!("interfaces received {total}, the node {node}"))
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("api.sock")
}

fn launch(netns: &Netns, folder: &Path, start: &Start) -> Proc {
    let binary = std::env::var("BOWLINE_DATAPLANE").unwrap_or_else(|_| BINARY.to_owned());
    let mut command = Command::new(binary);
    command.arg("--socket").arg(socket_in(folder));
    command.arg("--state-dir").arg(folder.join("state"));
    command.arg("--workers").arg(start.workers.max(1).to_string());
    if let Some(uplink) = &start.uplink {
        command.arg("--uplink").arg(uplink);
    }
    command.args(&start.more);
    command.arg("--log").arg(std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
    netns.spawn_command(command)
}

/// Waits until the data plane answers.
fn greet(
    mut process: Proc,
    runtime: &tokio::runtime::Runtime,
    folder: &Path,
) -> (Proc, DataplaneClient<Channel>) {
    let path = socket_in(folder);
    // The URI is required and unused: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://dataplane");
    let client = wait("the data plane's API", 20.0, || {
        assert!(!process.ended(), "the data plane ended at once:\n{}", process.output());
        let path = path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = runtime.block_on(endpoint.connect_with_connector(connector)).ok()?;
        let mut client = DataplaneClient::new(channel);
        let hello = client.hello(api::HelloRequest::default());
        runtime.block_on(hello).ok().map(|_| client)
    });
    (process, client)
}

/// Offers descriptors, as the agent does.
fn offer(path: &Path, id: &str, kind: Kind, fds: &[OwnedFd]) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    connect(socket.as_raw_fd(), &UnixAddr::new(path).expect("a short path")).expect("a listener");
    let count = fds.len() as u32;
    let offer = api::DescriptorOffer { interface_id: id.to_owned(), kind: kind.into(), count };
    let bytes = offer.encode_to_vec();
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let pieces = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &pieces, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .expect("the offer goes out");
    let mut buffer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("a reply");
    let reply = api::DescriptorReply::decode(&buffer[..length]).expect("a DescriptorReply");
    assert_eq!(reply.error, "", "descriptors of {id}");
}
