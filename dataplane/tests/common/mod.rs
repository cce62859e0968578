//! A node in a network namespace, pods in others, and the real process between them.
//!
//! Everything that is made goes away when its guard is dropped, whichever way the test ends.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of this")]

use std::io::{IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::dataplane_client::DataplaneClient;
use dataplane::sys::{netns, tun};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    sendmsg, socket,
};
use prost::Message;
use tonic::transport::Channel;

/// A machine under load is slow, not broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `what` gives something.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program and expects it to succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program exists");
    assert!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
    pub fd: OwnedFd,
}

impl Netns {
    pub fn new(hint: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("blt-{}-{n}-{hint}", std::process::id());
        let fd = netns::create(&name).expect("root can make namespaces");
        let made = Self { name, fd };
        made.ip("link set lo up");
        made
    }

    /// `ip -n … `
    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        run("ip", &all)
    }

    /// A program inside.
    pub fn command(&self, program: &str, args: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    pub fn exec(&self, program: &str, args: &str) -> Output {
        self.command(program, args).output().expect("ip netns exec works")
    }

    /// Whether one ping of `count` comes back, all of them.
    pub fn pings(&self, to: &str, args: &str) -> bool {
        self.exec("ping", &format!("-n -c 3 -i 0.2 -W 2 {args} {to}")).status.success()
    }

    /// Does `work` inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(self.fd.as_fd(), work).expect("the namespace can be entered")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = netns::remove(&self.name) {
            eprintln!("{}: {error}", self.name);
        }
    }
}

/// A running data plane.
#[derive(Debug)]
pub struct Node {
    pub child: Child,
    pub folder: tempfile::TempDir,
    args: Vec<String>,
    netns: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    /// Starts the real process without uplink.
    pub fn start(args: &str) -> Self {
        Self::start_in(None, args)
    }

    /// Starts it in a namespace and waits until its API answers.
    pub fn start_in(netns: Option<&Netns>, args: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args: Vec<_> = args.split_whitespace().map(str::to_owned).collect();
        let netns = netns.map(|netns| netns.name.clone());
        let child = spawn(netns.as_deref(), folder.path(), &args);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut node = Self { child, folder, args, netns, runtime };
        node.wait_until_ready();
        node
    }

    /// The first answer that there is.
    fn wait_until_ready(&mut self) -> api::HelloReply {
        let start = Instant::now();
        loop {
            if let Some(hello) = self.try_hello() {
                return hello;
            }
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("the data plane ended: {status}");
            }
            assert!(start.elapsed() < PATIENCE, "the API does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child");
    }

    /// Starts it again with the same folder and arguments. The answer to the first greeting.
    pub fn restart(&mut self) -> api::HelloReply {
        self.child = spawn(self.netns.as_deref(), self.folder.path(), &self.args);
        self.wait_until_ready()
    }

    /// Asks it to stop and waits. The exit status.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        wait_for("the data plane to stop", || self.child.try_wait().expect("a child"))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("dataplane.sock")
    }

    async fn client(socket: PathBuf) -> Result<DataplaneClient<Channel>, tonic::transport::Error> {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("unix:{}", socket.display()));
        Ok(DataplaneClient::new(endpoint?.connect().await?))
    }

    /// One call with a fresh connection.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(
            &mut DataplaneClient<Channel>,
        ) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, tonic::Status> {
        let socket = self.socket();
        self.runtime.block_on(async move {
            let client = Self::client(socket).await;
            let mut client = client.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            call(&mut client).await.map(tonic::Response::into_inner)
        })
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub async fn connect(&self) -> DataplaneClient<Channel> {
        Self::client(self.socket()).await.expect("the API answers")
    }

    fn try_hello(&self) -> Option<api::HelloReply> {
        self.call(async |c| c.hello(api::HelloRequest::default()).await).ok()
    }

    pub fn hello(&self) -> api::HelloReply {
        self.try_hello().expect("the API answers")
    }

    pub fn apply(&self, state: api::State) -> Result<api::ApplyReply, tonic::Status> {
        let request = api::ApplyRequest { state: Some(state), ..api::ApplyRequest::default() };
        self.call(async |c| c.apply(request).await)
    }

    pub fn apply_part(&self, request: api::ApplyRequest) -> Result<api::ApplyReply, tonic::Status> {
        self.call(async |c| c.apply(request).await)
    }

    pub fn state(&self) -> api::ActualState {
        self.call(async |c| c.get_state(api::GetStateRequest {}).await).expect("the API answers")
    }

    pub fn counters(&self) -> api::Counters {
        self.call(async |c| c.get_counters(api::GetCountersRequest {}).await)
            .expect("the API answers")
    }

    pub fn interface(&self, id: &str) -> api::InterfaceStatus {
        let state = self.state();
        let found = state.interfaces.into_iter().find(|i| i.id == id);
        found.unwrap_or_else(|| panic!("there is no interface {id}"))
    }

    /// Sum over the node of one drop reason.
    pub fn drops(&self, reason: &str) -> u64 {
        let node = self.counters().node.expect("a sum");
        node.drops.iter().filter(|d| d.reason == reason).map(|d| d.pkts).sum()
    }

    /// Both account equations, for every interface, network and the node.
    pub fn check_accounts(&self) -> api::Counters {
        let counters = self.counters();
        for interface in &counters.interfaces {
            check_account(&interface.id, interface.account.as_ref().expect("an account"));
        }
        for network in &counters.networks {
            check_account(&network.network, network.account.as_ref().expect("an account"));
        }
        check_account("the node", counters.node.as_ref().expect("an account"));
        counters
    }

    /// Offers descriptors; the answer is why they were refused.
    pub fn offer(
        &self,
        id: &str,
        kind: api::descriptor_offer::Kind,
        fds: &[OwnedFd],
    ) -> Result<(), String> {
        let count = fds.len() as u32;
        let offer = api::DescriptorOffer { interface_id: id.into(), kind: kind as i32, count };
        let path = dataplane::control::start::fds_path(&self.socket());
        let error = offer_raw(&path, &offer.encode_to_vec(), fds);
        if error.is_empty() { Ok(()) } else { Err(error) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that is killed leaves the namespace of its uplink behind.
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let over = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < over {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(netns: Option<&str>, folder: &Path, args: &[String]) -> Child {
    let binary = env!("CARGO_BIN_EXE_bowline-dataplane");
    let mut command = match netns {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, binary]);
            command
        }
        None => Command::new(binary),
    };
    command.arg("--socket").arg(folder.join("dataplane.sock"));
    command.arg("--state-dir").arg(folder.join("state"));
    command.args(args).stdin(Stdio::null());
    command.spawn().expect("the data plane starts")
}

pub fn check_account(whose: &str, a: &api::Account) {
    let sum = |drops: &[api::Drop]| drops.iter().map(|d| d.pkts).sum::<u64>();
    let fates = a.forwarded + a.consumed + a.punted + sum(&a.drops);
    assert_eq!(a.rx_pkts, fates, "rx account of {whose}: {a:?}");
    let handed = a.tx_forwarded + a.generated + a.split_extra;
    let left = a.tx_pkts + a.coalesced + sum(&a.tx_drops);
    assert_eq!(left, handed, "tx account of {whose}: {a:?}");
}

/// Sends one message with descriptors and returns the reply's error.
pub fn offer_raw(path: &Path, bytes: &[u8], fds: &[OwnedFd]) -> String {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).expect("the socket is served");
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let pieces = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &pieces, rights, MsgFlags::empty(), None).unwrap();
    let mut reply = [0; 4096];
    let mut pieces = [IoSliceMut::new(&mut reply)];
    let count = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, None, MsgFlags::empty())
        .unwrap()
        .bytes;
    api::DescriptorReply::decode(&reply[..count]).expect("a reply").error
}

pub fn ip(text: &str) -> api::Ip {
    dataplane::control::read::said_ip(text.parse::<IpAddr>().expect("an address"))
}

pub fn prefix(text: &str) -> api::Prefix {
    let (addr, len) = text.split_once('/').expect("a prefix");
    api::Prefix { addr: ip(addr).addr, len: len.parse().expect("bits") }
}

/// A dual-stack network with the gateways .1 and ::1.
pub fn network(name: &str, vni: u32) -> api::Network {
    let gateway = |text: &str| api::Gateway { ip: Some(ip(text)) };
    api::Network {
        name: name.into(),
        vni,
        mtu: 1450,
        gateways: vec![gateway("10.1.0.1"), gateway("fd00:1::1")],
        prefixes: vec![prefix("10.1.0.0/24"), prefix("fd00:1::/64")],
        ..api::Network::default()
    }
}

/// A pod's namespace with one tap: `10.1.0.N/24` and `fd00:1::N/64`.
#[derive(Debug)]
pub struct TapPod {
    pub netns: Netns,
    pub id: String,
    pub network: String,
    pub host: u8,
    pub queues: Vec<OwnedFd>,
}

impl TapPod {
    pub fn new(network: &str, host: u8, queues: u16) -> Self {
        Self::with_mtu(network, host, queues, 1450)
    }

    pub fn with_mtu(network: &str, host: u8, queues: u16, mtu: u32) -> Self {
        let netns = Netns::new(&format!("{network}{host}"));
        let fds = netns.inside(move || tun::open_tap("eth1", queues)).expect("root can make taps");
        let pod = Self {
            id: format!("{}/eth1", netns.name),
            netns,
            network: network.into(),
            host,
            queues: fds,
        };
        let sysctl = pod
            .netns
            .exec("sysctl", "-qw net.ipv6.conf.eth1.accept_ra=0 net.ipv6.conf.eth1.accept_dad=0");
        assert!(sysctl.status.success());
        let mac = pod.mac_text();
        pod.netns.ip(&format!("link set eth1 address {mac} mtu {mtu} up"));
        pod.netns.ip(&format!("addr add {}/24 dev eth1", pod.v4()));
        pod.netns.ip(&format!("addr add {}/64 dev eth1 nodad", pod.v6()));
        pod.netns.ip("route add default via 10.1.0.1");
        pod.netns.ip("-6 route add default via fd00:1::1");
        pod
    }

    pub fn v4(&self) -> String {
        format!("10.1.0.{}", self.host)
    }

    pub fn v6(&self) -> String {
        format!("fd00:1::{:x}", self.host)
    }

    fn mac(&self) -> [u8; 6] {
        let kind = self.network.bytes().next().unwrap_or(0);
        [0x0e, 0, 0, 0, kind, self.host]
    }

    pub fn mac_text(&self) -> String {
        self.mac().map(|b| format!("{b:02x}")).join(":")
    }

    /// What the data plane is told.
    pub fn interface(&self) -> api::Interface {
        let queues = self.queues.len() as u32;
        api::Interface {
            id: self.id.clone(),
            network: self.network.clone(),
            name: "eth1".into(),
            mac: self.mac().to_vec(),
            addresses: vec![ip(&self.v4()), ip(&self.v6())],
            port: Some(api::interface::Port::Tap(api::TapPort { queues })),
            pod_namespace: "tests".into(),
            pod_name: self.netns.name.clone(),
            ..api::Interface::default()
        }
    }

    /// Gives its queues to the node.
    pub fn offer_to(&self, node: &Node) {
        let kind = api::descriptor_offer::Kind::TapQueues;
        node.offer(&self.id, kind, &self.queues).expect("a tap's queues are taken");
    }
}

/// A state of these networks and interfaces.
pub fn state(
    revision: u64,
    networks: Vec<api::Network>,
    interfaces: Vec<api::Interface>,
) -> api::State {
    api::State { revision, networks, interfaces, ..api::State::default() }
}
