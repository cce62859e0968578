//! Against DPDK's own memif driver, in Debian's `dpdk-testpmd`, both roles.
//!
//! testpmd with one port in `io` mode sends every frame back on the queue that it came in on, so
//! each test sends numbered frames and compares every byte of what returns. All tests take turns:
//! a testpmd keeps a core busy.

mod common;

use common::{HugePages, accept, finish, listener, offer, payload, unique_name, wait_for};
use memif::{
    Address, Answer, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Notifier,
    Offer, RxQueue, Status, TxQueue,
};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running testpmd; killed when dropped.
struct Testpmd {
    child: Child,
    output: Arc<Mutex<String>>,
}

/// What a case varies.
#[derive(Clone)]
struct Case {
    address: Address,
    queues: u16,
    log2: u8,
    buffer_bytes: u32,
    secret: &'static str,
    zero_copy: bool,
    huge_pages: bool,
    len: usize,
    frames: u32,
}

impl Case {
    fn new(len: usize) -> Self {
        Self {
            address: Address::Abstract(unique_name()),
            queues: 1,
            log2: 10,
            buffer_bytes: 2048,
            secret: "",
            zero_copy: false,
            huge_pages: false,
            len,
            frames: 5000,
        }
    }
}

impl Testpmd {
    fn start(role: &str, case: &Case) -> Self {
        let (socket, is_abstract) = match &case.address {
            Address::Abstract(name) => (name.clone(), "yes"),
            Address::Path(path) => (path.display().to_string(), "no"),
        };
        let mut vdev = format!(
            "net_memif0,role={role},id=7,socket={socket},socket-abstract={is_abstract},rsize={},bsize={}",
            case.log2, case.buffer_bytes
        );
        if !case.secret.is_empty() {
            vdev.push_str(",secret=");
            vdev.push_str(case.secret);
        }
        let mut command = Command::new("dpdk-testpmd");
        let eal = "--lcores 0@0,1@1 --no-pci --no-telemetry";
        let memory = if case.huge_pages { "-m 96 --in-memory" } else { "--no-huge -m 192" };
        command
            .args(eal.split(' '))
            .args(memory.split(' '))
            .arg(format!("--file-prefix={}", unique_name()));
        if case.zero_copy {
            vdev.push_str(",zero-copy=yes");
            command.arg("--single-file-segments");
        }
        command.args([format!("--vdev={vdev}"), "--".to_owned()]);
        let app = "-i --no-flush-rx --forward-mode=io --mbcache=64";
        let queues = [format!("--rxq={}", case.queues), format!("--txq={}", case.queues)];
        // A zero-copy client fills its whole ring with them, or none of it.
        let mbufs = match (case.buffer_bytes, case.log2) {
            (..=2048, 14) => ["--mbuf-size=2176", "--total-num-mbufs=20000"],
            (..=2048, _) => ["--mbuf-size=2176", "--total-num-mbufs=8192"],
            _ => ["--mbuf-size=9600", "--total-num-mbufs=4096"],
        };
        command.args(app.split(' ')).args(queues).args(mbufs);
        let (output, writer) = std::io::pipe().unwrap();
        let child = command
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .unwrap_or_else(|e| panic!("dpdk-testpmd: {e}; install Debian's package dpdk-dev"));
        drop(command);
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        std::thread::spawn(move || collect(output, &sink));
        let mut testpmd = Self { child, output: text };
        testpmd.command("start");
        testpmd
    }

    fn command(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    /// What it has printed, for when something goes wrong.
    fn said(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("testpmd said: {}", self.said());
        }
    }
}

fn collect(mut output: impl Read, sink: &Mutex<String>) {
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = output.read(&mut bytes) {
        sink.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
}

/// Our client's configuration for a case.
fn config(case: &Case) -> ClientConfig {
    let mut config = ClientConfig::new(case.address.clone(), 7);
    (config.s2m_rings, config.m2s_rings) = (case.queues, case.queues);
    (config.log2_ring_size, config.buffer_bytes) = (case.log2, case.buffer_bytes);
    config.huge_pages = case.huge_pages;
    config.secret = case.secret.to_owned();
    config
}

/// Our server with testpmd as the client.
fn serve(case: &Case) -> (Testpmd, Connection) {
    let mut listener = bind(&case.address);
    let testpmd = Testpmd::start("client", case);
    let connection = accept_one(&mut listener, case);
    (testpmd, connection)
}

fn bind(address: &Address) -> memif::Listener {
    match address {
        Address::Abstract(name) => listener(name),
        Address::Path(path) => memif::Listener::bind_path(path).unwrap(),
    }
}

fn accept_one(listener: &mut memif::Listener, case: &Case) -> Connection {
    let handshake = accept(listener);
    // DPDK's zero-copy clients bring memory that nobody can seal.
    let secret = case.secret.to_owned();
    let offer = Offer { require_sealed: !case.zero_copy, secret, ..offer() };
    finish(handshake, &Answer::Accept(offer)).unwrap()
}

/// Our client with testpmd as the server.
fn attach(case: &Case) -> (Testpmd, Connector, Connection) {
    let testpmd = Testpmd::start("server", case);
    let mut connector = Connector::new(config(case));
    let connection = connector.connect_blocking(common::PATIENCE).unwrap();
    (testpmd, connector, connection)
}

/// Sends numbered frames on one queue and expects each of them back, byte for byte, in order.
fn echo(rx: &mut RxQueue, tx: &mut TxQueue, case: &Case) {
    let mut notifier = Notifier::new().unwrap();
    let mut buffer = vec![0; 16 << 10];
    // testpmd's pool and rings must hold what is under way.
    let slots = (case.len as u32).div_ceil(case.buffer_bytes);
    let window = (tx.slots() / slots / 2).clamp(1, 128);
    let (mut sent, mut received) = (0, 0);
    let mut last = Instant::now();
    while received < case.frames {
        while sent < case.frames && sent - received < window {
            if !tx.send(&payload(sent, case.len)).unwrap() {
                break;
            }
            sent += 1;
        }
        tx.flush(&mut notifier).unwrap();
        while let Some(n) = rx.recv(&mut buffer).unwrap() {
            let same = buffer[..n] == payload(received, case.len);
            assert!(same, "frame {received} of {} bytes came back as {n} others", case.len);
            received += 1;
            last = Instant::now();
        }
        assert!(last.elapsed() < common::PATIENCE, "{received} of {} came back", case.frames);
    }
}

fn echo_all(connection: &mut Connection, case: &Case) {
    let (mut rx, mut tx) = connection.take_queues();
    assert_eq!((rx.len(), tx.len()), (usize::from(case.queues), usize::from(case.queues)));
    for (rx, tx) in rx.iter_mut().zip(&mut tx) {
        echo(rx, tx, case);
    }
    assert_eq!(connection.on_readable(), Status::Up);
}

fn run_server(case: &Case) {
    let _turn = turn();
    let (_testpmd, mut connection) = serve(case);
    echo_all(&mut connection, case);
}

fn run_client(case: &Case) {
    let _turn = turn();
    let (_testpmd, _connector, mut connection) = attach(case);
    echo_all(&mut connection, case);
}

fn path() -> PathBuf {
    std::env::temp_dir().join(unique_name())
}

#[test]
fn small_frames() {
    run_server(&Case::new(64));
    run_client(&Case::new(64));
}

#[test]
fn full_frames_on_four_queues_over_a_path() {
    for run in [run_server, run_client] {
        let path = path();
        let address = Address::Path(path.clone());
        run(&Case { address, queues: 4, log2: 8, frames: 1500, ..Case::new(1500) });
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn zero_copy_clients() {
    for len in [64, 1500] {
        run_server(&Case { zero_copy: true, ..Case::new(len) });
    }
    run_server(&Case { zero_copy: true, queues: 4, log2: 9, frames: 1000, ..Case::new(512) });
}

#[test]
fn zero_copy_clients_are_refused_where_memory_must_be_sealed() {
    let _turn = turn();
    let case = Case { zero_copy: true, ..Case::new(64) };
    let mut listener = bind(&case.address);
    let _testpmd = Testpmd::start("client", &case);
    let reason = finish(accept(&mut listener), &Answer::Accept(offer())).unwrap_err().to_string();
    assert!(reason.contains("not sealed against shrinking"), "{reason}");
}

#[test]
fn large_rings_of_small_buffers() {
    let case = || Case { log2: 14, buffer_bytes: 512, frames: 40_000, ..Case::new(64) };
    run_server(&case());
    run_client(&case());
}

#[test]
fn jumbo_frames_in_one_buffer() {
    let case = || Case { buffer_bytes: 9216, log2: 8, frames: 1500, ..Case::new(9000) };
    run_server(&case());
    run_client(&case());
}

#[test]
fn frames_longer_than_a_buffer() {
    for (len, buffer_bytes) in [(1500, 512), (9000, 2048)] {
        // DPDK 22.11 leaves NEXT set in the descriptors of a client's chains when its ring wraps, so
        // no more frames than fit into one turn of the ring.
        let slots = len as u32 / buffer_bytes + 1;
        let case = || Case { buffer_bytes, frames: 1024 / slots, ..Case::new(len) };
        run_server(&case());
        run_client(&Case { frames: 3000, ..case() });
    }
}

#[test]
fn a_killed_testpmd_client_is_noticed_and_welcome_again() {
    let _turn = turn();
    let case = Case { frames: 500, ..Case::new(1500) };
    let mut listener = bind(&case.address);
    for _ in 0..3 {
        let mut testpmd = Testpmd::start("client", &case);
        let mut connection = accept_one(&mut listener, &case);
        echo_all(&mut connection, &case);
        testpmd.kill();
        let down = connection.wait(Duration::from_secs(2)).unwrap();
        assert_eq!(down, Status::Down(CloseReason::PeerClosed));
    }
}

#[test]
fn a_killed_testpmd_server_is_found_again() {
    let _turn = turn();
    let case = Case { frames: 500, ..Case::new(64) };
    let (mut testpmd, mut connector, mut connection) = attach(&case);
    for _ in 0..2 {
        echo_all(&mut connection, &case);
        testpmd.kill();
        let down = connection.wait(Duration::from_secs(2)).unwrap();
        assert_eq!(down, Status::Down(CloseReason::PeerClosed));
        connector.lost(Instant::now());
        testpmd = Testpmd::start("server", &case);
        connection = connector.connect_blocking(common::PATIENCE).unwrap();
    }
    echo_all(&mut connection, &case);
}

/// The example program as a pod, killed without warning.
#[test]
fn a_killed_pod_of_ours_comes_back() {
    let name = unique_name();
    let mut listener = listener(&name);
    let mut binary = std::env::current_exe().unwrap();
    binary.pop();
    binary.pop();
    binary.push("examples/echo");
    let mut mac = payload(3, 300);
    for _ in 0..3 {
        let mut pod = Command::new(&binary)
            .arg(format!("@{name}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{}: {e}; build it by `cargo build --examples`", binary.display())
            });
        let answer = Answer::Accept(offer());
        let mut connection = finish(accept(&mut listener), &answer).unwrap();
        let mut buffer = [0; 512];
        assert!(wait_for("room", || connection.tx()[0].send(&mac).unwrap().then_some(true)));
        connection.tx()[0].publish();
        let n = wait_for("the echo", || connection.rx()[0].recv(&mut buffer).unwrap());
        let (destination, rest) = mac.split_at_mut(6);
        destination.swap_with_slice(&mut rest[..6]);
        assert!(buffer[..n] == mac);
        pod.kill().unwrap();
        pod.wait().unwrap();
        let down = connection.wait(Duration::from_secs(2)).unwrap();
        assert_eq!(down, Status::Down(CloseReason::PeerClosed));
    }
}

/// Our client differs from testpmd's server in this, and is refused with these words. (A server that has
/// just started may not know its interface yet.)
fn refused(case: &Case, words: &str, differs: impl Fn(&mut ClientConfig)) {
    let _server = Testpmd::start("server", case);
    let mut config = config(case);
    differs(&mut config);
    let mut connector = Connector::new(config);
    wait_for(words, || match connector.poll(Instant::now()) {
        ClientEvent::Failed(CloseReason::PeerDisconnected(reason)) => {
            (reason == words).then_some(())
        }
        ClientEvent::Connected(_) => panic!("let in instead of: {words}"),
        _ => None,
    });
}

#[test]
fn secrets_must_agree() {
    let case = || Case { secret: "hush", frames: 200, ..Case::new(64) };
    run_server(&case());
    run_client(&case());
    let _turn = turn();
    let missing = Case::new(64);
    for (case, expected) in
        [(case(), CloseReason::SecretWrong), (missing, CloseReason::SecretRequired)]
    {
        let mut listener = bind(&case.address);
        let _testpmd = Testpmd::start("client", &case);
        let other = Offer { secret: "hash".to_owned(), ..offer() };
        let refused = finish(accept(&mut listener), &Answer::Accept(other)).unwrap_err();
        assert_eq!(refused, expected);
    }
    let says =
        |secret: &'static str| move |config: &mut ClientConfig| config.secret = secret.to_owned();
    refused(&case(), "Incorrect secret", says("hash"));
    refused(&case(), "Secret required", says(""));
    refused(&Case::new(64), "ID not found", |config| config.id = 8);
}

/// For one testpmd and one client of ours.
const HUGE_PAGES: u32 = 96;

#[test]
fn huge_pages() {
    let _pages = HugePages::reserve(HUGE_PAGES);
    let case = || Case { huge_pages: true, frames: 2000, ..Case::new(1500) };
    run_server(&case());
    run_client(&case());
    run_server(&Case { zero_copy: true, ..case() });
}

/// Who testpmd is in a row of [`MATRIX`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Peer {
    Client,
    ZeroCopyClient,
    Server,
}

use Peer::{Client, Server, ZeroCopyClient};

/// Every two values of any two columns meet in a row: testpmd, path (or abstract), queues, slots as a
/// power of two, bytes of a buffer, bytes of a frame, huge pages. DPDK's client lays more than 2^16
/// buffers over one another, so four queues of 2^14 slots are for ours; 9000 bytes in buffers of 512
/// are more segments than a frame may have.
const MATRIX: [(Peer, bool, u16, u8, u32, usize, bool); 12] = [
    (Server, false, 1, 14, 2048, 9000, true),
    (Server, true, 4, 14, 512, 64, false),
    (Server, true, 1, 10, 2048, 1500, false),
    (Server, true, 1, 8, 9216, 1500, true),
    (Client, true, 1, 8, 2048, 64, false),
    (Client, true, 4, 10, 9216, 9000, false),
    (Client, true, 1, 14, 9216, 1500, true),
    (Client, false, 1, 10, 512, 64, false),
    (ZeroCopyClient, false, 4, 8, 512, 1500, true),
    (ZeroCopyClient, false, 1, 10, 9216, 64, true),
    (ZeroCopyClient, false, 4, 8, 2048, 9000, false),
    (ZeroCopyClient, true, 1, 14, 2048, 64, true),
];

#[test]
fn every_two_settings_meet() {
    let _pages = HugePages::reserve(HUGE_PAGES);
    for row in MATRIX {
        println!("{row:?}");
        let (peer, over_a_path, queues, log2, buffer_bytes, len, huge_pages) = row;
        let file = path();
        let address =
            if over_a_path { Address::Path(file.clone()) } else { Case::new(len).address };
        let zero_copy = peer == ZeroCopyClient;
        // See `frames_longer_than_a_buffer`.
        let one_turn = (1 << log2) / (len as u32).div_ceil(buffer_bytes);
        let frames = one_turn.min(300);
        let case = Case {
            address,
            queues,
            log2,
            buffer_bytes,
            zero_copy,
            huge_pages,
            frames,
            ..Case::new(len)
        };
        let run = if peer == Server { run_client } else { run_server };
        run(&case);
        let _ = std::fs::remove_file(file);
    }
}

/// A peer that stands still costs nothing but its own frames, and goes on where it stopped.
#[test]
fn a_stopped_testpmd_goes_on() {
    use nix::sys::signal::{Signal, kill};
    let _turn = turn();
    let case = Case { frames: 200, ..Case::new(64) };
    let (testpmd, mut connection) = serve(&case);
    let (mut rx, mut tx) = connection.take_queues();
    echo(&mut rx[0], &mut tx[0], &case);
    let pid = nix::unistd::Pid::from_raw(testpmd.child.id().cast_signed());
    let before = common::resources();
    kill(pid, Signal::SIGSTOP).unwrap();
    // The signal takes its time to reach a thread that runs on the other core.
    wait_for("testpmd to stand still", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(())
    });
    let stopped = Instant::now();
    let (mut sent, mut buffer) = (0, [0; 2048]);
    // Longer than any time-out of ours.
    while stopped.elapsed() < Duration::from_secs(5) {
        while tx[0].send(&payload(sent, case.len)).unwrap() {
            sent += 1;
        }
        tx[0].publish();
        // What testpmd had under way may still come.
        while rx[0].recv(&mut buffer).unwrap().is_some() {}
        rx[0].check_stall(Instant::now()).unwrap();
        assert_eq!(connection.on_readable(), Status::Up);
    }
    assert_eq!(sent, tx[0].slots(), "a full ring, and no more");
    assert_eq!(common::resources(), before);
    kill(pid, Signal::SIGCONT).unwrap();
    for number in 0..sent {
        let n = wait_for("a frame that was under way", || rx[0].recv(&mut buffer).unwrap());
        assert!(buffer[..n] == payload(number, case.len));
    }
    echo(&mut rx[0], &mut tx[0], &case);
}
