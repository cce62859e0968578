//! Uplink ports on real interfaces: veth pairs in namespaces that each test makes. Needs root.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use super::packet::{PacketRx, PacketTx};
use super::vnet::{VnetRx, VnetTx};
use super::*;
use crate::control::UplinkPort;
use crate::control::uplink::{self, Opened, Request};
use crate::copy::{complete_checksum, tests_seg};
use crate::path::{Checksum, Gso, HEADROOM_BYTES};
use crate::sys::netns;

const DEADLINE: Duration = Duration::from_secs(20);
const IFACE: IfaceId = IfaceId(1);

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.expect("the program exists");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The thread enters a new namespace with a veth pair, `left` and `right`, and no other traffic.
fn veth() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("sysctl");
    run("ip link add left type veth peer name right");
    run("ip link set left up");
    run("ip link set right up");
}

fn index_of(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("exists")
}

fn open(name: &str, queues: u16) -> (Vec<PacketRx>, PacketTx) {
    let here = netns::current().expect("/proc");
    let (rx, mut tx) =
        packet::open(here.as_fd(), index_of(name), queues, 1).expect("packet sockets");
    (rx, tx.pop().expect("one"))
}

/// One frame from the sender's view: the head private, the rest elsewhere.
fn send(tx: &mut PacketTx, frame: &[u8], meta: &Meta) -> Result<u32, TxDropReason> {
    let (head, body) = frame.split_at(frame.len().min(66));
    let meta = Meta { body_bytes: body.len() as u32, ..*meta };
    let middle = body.len() / 2;
    let body = [tests_seg(&body[..middle]), tests_seg(&body[middle..])];
    tx.send(&Outgoing { head: &mut head.to_vec(), body: &body, meta: &meta })
}

/// Polls until `wanted` frames came or none comes any more; frames and what was said about them.
fn receive(rx: &mut PacketRx, wanted: usize) -> Vec<(Vec<u8>, Meta)> {
    let (mut burst, mut pool) = (Burst::default(), BufferPool::default());
    let mut frames = Vec::new();
    while frames.len() < wanted {
        let mut fds = [PollFd::new(rx.wake_fd().expect("a socket"), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(500_u16)).expect("poll") == 0 {
            break;
        }
        burst.clear();
        assert_eq!(rx.poll(IFACE, &mut burst, &mut pool, 64), Health::Good);
        for at in 0..burst.len() {
            let (slot, meta, body) = burst.slot_mut(at);
            let mut frame = slot.0[HEADROOM_BYTES..usize::from(meta.end)].to_vec();
            for seg in body {
                let mut part = vec![0; seg.len()];
                seg.read(&mut part);
                frame.extend(part);
            }
            let meta = *meta;
            pool.put(meta.claim);
            frames.push((frame, meta));
        }
        assert_eq!(pool.taken(), 0, "no buffer is lost");
    }
    frames
}

/// Ethernet, IPv4, UDP with ports that tell the flow; `len` bytes in all.
fn datagram(flow: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let ip = [0x45, 0, ((len - 14) >> 8) as u8, (len - 14) as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    frame[14..26].copy_from_slice(&ip);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&flow.to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    frame
}

#[test]
fn frames_of_all_sizes_cross_a_packet_socket() {
    veth();
    let (_, mut tx) = open("left", 1);
    let (mut rx, _) = open("right", 1);
    let sent: Vec<Vec<u8>> = (0..300).map(|n| datagram(n, 60 + 4 * usize::from(n))).collect();
    for frame in &sent {
        assert_eq!(send(&mut tx, frame, &Meta::default()), Ok(frame.len() as u32));
    }
    let received = receive(&mut rx[0], sent.len());
    assert_eq!(received.into_iter().map(|(frame, _)| frame).collect::<Vec<_>>(), sent);
    let too_big = datagram(0, 1515);
    assert_eq!(send(&mut tx, &too_big, &Meta::default()), Err(TxDropReason::FrameTooBig));
    run("ip link set left down");
    assert_eq!(send(&mut tx, &sent[0], &Meta::default()), Err(TxDropReason::PortDown));
    assert_eq!(rx[0].take_missed(), 0);
}

#[test]
fn a_vlan_tag_is_put_back() {
    veth();
    let (_, mut tx) = open("left", 1);
    let (mut rx, _) = open("right", 1);
    let mut tagged = datagram(1, 200);
    tagged.splice(12..12, [0x81, 0, 0x60, 0x64]);
    send(&mut tx, &tagged, &Meta::default()).expect("sent");
    let received = receive(&mut rx[0], 1);
    assert_eq!(received.first().map(|(frame, _)| frame), Some(&tagged));
}

#[test]
fn a_super_frame_stays_whole_and_unsummed() {
    veth();
    let (_, mut tx) = open("left", 1);
    let (mut rx, _) = open("right", 1);
    let mut frame = datagram(7, 14 + 20 + 20 + 32_000);
    frame[23] = 6;
    frame[46] = 0x50;
    let meta = Meta {
        checksum: Checksum::Partial,
        csum_start: 34,
        csum_offset: 16,
        gso: Gso::Tcp4,
        gso_size: 1400,
        ..Meta::default()
    };
    send(&mut tx, &frame, &meta).expect("sent");
    let received = receive(&mut rx[0], 1);
    let (bytes, facts) = received.first().expect("one frame");
    assert_eq!(bytes.len(), frame.len());
    assert!(bytes == &frame, "unchanged");
    assert_eq!((facts.gso, facts.gso_size, facts.checksum), (Gso::Tcp4, 1400, Checksum::Partial));
    assert_eq!((facts.csum_start, facts.csum_offset), (34, 16));
}

#[test]
fn what_the_kernel_throws_away_is_counted() {
    const SENT: usize = 60_000;
    veth();
    let (_, mut tx) = open("left", 1);
    let (mut rx, _) = open("right", 1);
    let frame = datagram(3, 1000);
    let accepted = (0..SENT).filter(|_| send(&mut tx, &frame, &Meta::default()).is_ok()).count();
    let received = receive(&mut rx[0], SENT).len();
    let lost = rx[0].take_missed() as usize;
    assert!(lost > 0, "{received} received: the socket never was full");
    assert_eq!(received + lost, accepted);
}

#[test]
fn flows_are_spread_over_queues_and_stay_on_theirs() {
    veth();
    let (_, mut tx) = open("left", 1);
    let (mut rx, _) = open("right", 2);
    for round in 0..4 {
        for flow in 0..64 {
            send(&mut tx, &datagram(flow, 100 + round), &Meta::default()).expect("sent");
        }
    }
    let mut queue_of = [None; 64];
    let mut total = 0;
    for (queue, rx) in rx.iter_mut().enumerate() {
        let frames = receive(rx, 256);
        assert!(!frames.is_empty(), "queue {queue} got nothing");
        for (frame, _) in &frames {
            let flow = usize::from(u16::from_be_bytes([frame[34], frame[35]]));
            assert_eq!(*queue_of[flow].get_or_insert(queue), queue, "flow {flow}");
        }
        total += frames.len();
    }
    assert_eq!(total, 256);
}

/// A data plane of two threads that only knows the layer-2 bump between host tap and NIC.
struct Bump {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    frames: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Bump {
    fn over(mut uplink: UplinkPort) -> Self {
        let tap = uplink.host_tap.pop().expect("a queue");
        let tap_out = tap.try_clone().expect("a descriptor");
        let mut bump = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            frames: Arc::default(),
            bytes: Arc::default(),
        };
        let (nic_rx, nic_tx) = (uplink.rx.pop().expect("one"), uplink.tx.pop().expect("one"));
        bump.pass(Rx::Vnet(VnetRx::new(tap)), nic_tx, uplink.offloads);
        bump.pass(nic_rx, Tx::Vnet(VnetTx::new(tap_out)), true);
        bump
    }

    fn pass(&mut self, mut rx: Rx, mut tx: Tx, offloads: bool) {
        let stop = Arc::clone(&self.stop);
        let (frames, bytes) = (Arc::clone(&self.frames), Arc::clone(&self.bytes));
        self.threads.push(std::thread::spawn(move || {
            let (mut burst, mut pool) = (Burst::default(), BufferPool::default());
            let (mut list, mut notifier) = (CopyList::default(), Notifier::new().expect("aio"));
            while !stop.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(rx.wake_fd().expect("readable"), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(20_u16)).expect("poll");
                burst.clear();
                rx.poll(IFACE, &mut burst, &mut pool, BURST_PKTS);
                for at in 0..burst.len() {
                    let (slot, meta, body) = burst.slot_mut(at);
                    let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
                    if !offloads && meta.checksum == Checksum::Partial {
                        let (from, to) = (meta.csum_start.into(), meta.csum_offset.into());
                        assert!(complete_checksum(head, from, to, body));
                        meta.checksum = Checksum::Verified;
                    }
                    if let Ok(sent) = tx.send(&Outgoing { head, body, meta }, &mut list) {
                        frames.fetch_add(1, Ordering::Relaxed);
                        bytes.fetch_add(u64::from(sent), Ordering::Relaxed);
                    }
                }
                list.run();
                tx.flush(&mut notifier, 0);
                for at in 0..burst.len() {
                    rx.release(burst.meta(at).claim, &mut pool);
                }
                rx.flush();
            }
        }));
    }

    /// Ends without a word to anybody, as a kill does.
    fn kill(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no panic");
        }
    }
}

/// A node (this thread) and a peer behind its `eth0`.
fn node_and_peer(mtu: u16) -> OwnedFd {
    unshare(CloneFlags::CLONE_NEWNET).expect("root");
    let peer = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        netns::current().expect("/proc")
    });
    let peer = peer.join().expect("no panic");
    run("ip link set lo up");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&peer);
    let pid = std::process::id();
    run("ip link add eth0 type veth peer name peer0");
    run(&format!("ip link set peer0 netns /proc/{pid}/fd/{fd}"));
    run("ip addr add 10.8.0.1/24 dev eth0");
    run("ip addr add fd08::1/64 dev eth0 nodad");
    run(&format!("ip link set eth0 mtu {mtu} up"));
    netns::run_in(peer.as_fd(), || {
        run("ip addr add 10.8.0.2/24 dev peer0");
        run("ip addr add fd08::2/64 dev peer0 nodad");
        run(&format!("ip link set peer0 mtu {mtu} up"));
    })
    .expect("entered");
    peer
}

/// A connection through which one byte goes to and fro all the time.
struct Heartbeat {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, Duration)>,
}

impl Heartbeat {
    /// Connects from the calling thread's namespace to an echo server in the peer's.
    fn start(peer: &OwnedFd, address: &str) -> Self {
        let listener = netns::run_in(peer.as_fd(), || TcpListener::bind((address, 0)))
            .expect("entered")
            .expect("bound");
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.set_nodelay(true).expect("option");
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
        });
        let mut stream = TcpStream::connect((address, port)).expect("connected");
        stream.set_nodelay(true).expect("option");
        stream.set_read_timeout(Some(DEADLINE)).expect("option");
        let stop: Arc<AtomicBool> = Arc::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut beats, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                stream.write_all(&[1]).expect("the connection lives");
                stream.read_exact(&mut [0]).expect("the connection lives");
                longest = longest.max(start.elapsed());
                beats += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            (beats, longest)
        });
        Self { stop, thread }
    }

    fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the connection survived")
    }
}

fn ping(address: &str) {
    run(&format!("ping -c 1 -W 5 -q {address}"));
}

/// The goal is a second, which `make demo` checks on release builds of everything. Here other tests
/// run beside, unoptimised, and TCP's retransmission timer doubles what is lost.
const LONGEST_GAP: Duration = Duration::from_secs(4);

const UPLINK: &str = "BOWLINE_TEST_UPLINK";
const STATE: &str = "BOWLINE_TEST_STATE";
const READY: &str = "the uplink is open";

fn open_uplink(text: &str, state: &std::path::Path) -> Result<(UplinkPort, Opened), uplink::Error> {
    let request: Request = text.parse().expect("an uplink");
    let (mut ports, mut opened) = uplink::open_all(&[request], 1, state, false)?;
    Ok((ports.pop().expect("one"), opened.pop().expect("one")))
}

/// Another process that opens the uplink in this thread's namespace and forwards until killed.
fn start_process(uplink: &str, state: &std::path::Path) -> Child {
    let name = "port::uplink_tests::a_process_that_forwards_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().expect("a test binary"))
        .args(["--exact", name, "--nocapture"])
        .env(UPLINK, uplink)
        .env(STATE, state)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let ready = stdout.lines().map_while(Result::ok).any(|line| line.contains(READY));
    assert!(ready, "the process ended early: {:?}", child.wait());
    child
}

/// The process of [`start_process`]; on its own it has nothing to do.
#[test]
fn a_process_that_forwards_until_it_is_killed() {
    let (Ok(arg), Ok(state)) = (std::env::var(UPLINK), std::env::var(STATE)) else { return };
    let (port, _opened) = open_uplink(&arg, state.as_ref()).expect("taken");
    let bump = Bump::over(port);
    println!("{READY}");
    for thread in bump.threads {
        thread.join().expect("no panic");
    }
}

/// Start, kill, resume, clean stop: two connections live through it all, without a long gap.
fn survives(
    kind: &str,
    mtu: u16,
    prepare: impl FnOnce(&OwnedFd),
    bulk: impl FnOnce(&OwnedFd, &Bump),
) {
    let peer = node_and_peer(mtu);
    prepare(&peer);
    ping("10.8.0.2");
    ping("fd08::2");
    let state = tempfile::tempdir().expect("a folder");
    let arg = format!("eth0={kind}");
    let beats = [Heartbeat::start(&peer, "10.8.0.2"), Heartbeat::start(&peer, "fd08::2")];

    let mut process = start_process(&arg, state.path());
    ping("10.8.0.2");
    ping("fd08::2");
    process.kill().expect("SIGKILL");
    process.wait().expect("dead");

    let (port, opened) = open_uplink(&arg, state.path()).expect("resumed");
    let bump = Bump::over(port);
    ping("10.8.0.2");
    run(&format!("ping -c 1 -W 5 -q -s {} -M do 10.8.0.2", mtu - 28));
    ping("fd08::2");
    bulk(&peer, &bump);
    bump.kill();
    opened.close().expect("given back");
    ping("10.8.0.2");
    ping("fd08::2");

    for beat in beats {
        let (count, longest) = beat.stop();
        assert!(count > 5, "{count} round trips");
        assert!(longest < LONGEST_GAP, "a gap of {longest:?}");
    }
}

#[test]
fn the_node_survives_a_packet_uplink() {
    survives("packet", 9000, |_| (), bulk_stays_in_super_frames);
}

/// Without a virtio-net header nobody tells these drivers what a veth has left undone.
#[cfg(feature = "dpdk")]
fn plain_frames_from(peer: &OwnedFd) {
    netns::run_in(peer.as_fd(), || run("ethtool -K peer0 tx off tso off gso off"))
        .expect("entered");
}

#[cfg(feature = "dpdk")]
#[test]
fn the_node_survives_an_af_packet_uplink() {
    survives("net_af_packet", 1900, plain_frames_from, |_, _| ());
}

#[cfg(feature = "dpdk")]
#[test]
fn the_node_survives_an_af_xdp_uplink() {
    survives("net_af_xdp", 3000, plain_frames_from, |_, _| ());
}

#[cfg(feature = "dpdk")]
#[test]
fn an_interface_with_too_large_an_mtu_is_given_back() {
    let _peer = node_and_peer(9000);
    let state = tempfile::tempdir().expect("a folder");
    let refused = open_uplink("eth0=net_af_packet", state.path());
    let error = refused.map(drop).expect_err("refused").to_string();
    assert!(error.contains("MTU 9000") && error.contains("carries 1900"), "{error}");
    ping("10.8.0.2");
}

fn bulk_stays_in_super_frames(peer: &OwnedFd, bump: &Bump) {
    const BULK_BYTES: usize = 100_000_000;
    let listener = netns::run_in(peer.as_fd(), || TcpListener::bind("10.8.0.2:0"))
        .expect("entered")
        .expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("read to the end")
    });
    let (frames, bytes) = (bump.frames.load(Ordering::Relaxed), bump.bytes.load(Ordering::Relaxed));
    let mut stream = TcpStream::connect(("10.8.0.2", port)).expect("connected");
    for _ in 0..BULK_BYTES / 100_000 {
        stream.write_all(&[7; 100_000]).expect("written");
    }
    drop(stream);
    assert_eq!(sink.join().expect("no panic"), BULK_BYTES as u64);
    let frames = bump.frames.load(Ordering::Relaxed) - frames;
    let bytes = bump.bytes.load(Ordering::Relaxed) - bytes;
    // Acknowledgements count as frames too.
    assert!(bytes / frames > 9_000, "{bytes} bytes in {frames} frames");
}
