//! DPDK without hugepages or hardware: buffers, virtual devices, and a veth pair in a namespace
//! that each test makes for itself. Needs root, as DPDK's packet socket driver does.

use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use dpdk::{
    Checksum, DmaCopy, DmaDev, Eal, EalOptions, Error, EthConfig, EthDev, L3, L4, Mbuf, Mempool,
    MempoolConfig, TxOffload,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

const DEADLINE: Duration = Duration::from_secs(10);

fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| Eal::init(&EalOptions::default()).expect("EAL starts"))
}

/// Devices are found by what appears in /proc/self/fd, so tests make them one at a time.
fn one_at_a_time() -> std::sync::MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn pool() -> Arc<Mempool> {
    let config = MempoolConfig { mbufs: 8191, ..MempoolConfig::default() };
    Arc::new(Mempool::new(eal(), &config).expect("pool"))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}

fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![number; len];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, number]);
    bytes[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    bytes
}

fn fill(pool: &Mempool, bytes: &[u8]) -> Mbuf {
    let mut mbuf = pool.alloc().expect("a buffer is free");
    assert!(mbuf.append_bytes(bytes));
    mbuf
}

#[test]
fn the_environment_starts_once() {
    eal();
    assert!(matches!(Eal::init(&EalOptions::default()), Err(Error::AlreadyInitialised)));
    assert!(Eal::get().is_some());
    assert!(Eal::memory().is_some());
}

#[test]
fn starting_leaves_cpu_affinity_alone() {
    let before = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("affinity");
    eal();
    let after = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("affinity");
    assert_eq!(before, after);
}

#[test]
fn buffers_keep_their_bytes_and_return_to_the_pool() {
    let pool = pool();
    let mut mbuf = fill(&pool, b"payload");
    assert_eq!((mbuf.len(), mbuf.headroom(), mbuf.tailroom()), (7, 128, 2041));
    mbuf.prepend(4).expect("headroom").copy_from_slice(b"head");
    assert_eq!(mbuf.data(), b"headpayload");
    assert!(mbuf.prepend(125).is_none(), "only 124 bytes are left");
    assert!(mbuf.trim_front(2));
    assert!(mbuf.truncate(6));
    assert_eq!(mbuf.data(), b"adpayl");
    assert!(!mbuf.trim_front(7));
    assert!(!mbuf.truncate(7));
    assert!(mbuf.append(2045).is_none(), "one byte more than fits");

    mbuf.chain(fill(&pool, b" and tail")).expect("two buffers");
    mbuf.chain(fill(&pool, b"!")).expect("three buffers");
    assert_eq!((mbuf.len(), mbuf.segment_count()), (16, 3));
    assert_eq!(mbuf.segments().collect::<Vec<_>>().concat(), b"adpayl and tail!");
    assert!(mbuf.append(1).is_none(), "a chain does not grow in the middle");
    assert_eq!(pool.available(), pool.size() - 3);
    drop(mbuf);
    assert_eq!(pool.available(), pool.size());
}

#[test]
fn packets_of_several_pools_are_given_back_together() {
    let config = MempoolConfig { mbufs: 63, data_bytes: 256, cache: 0 };
    let pools = [0, 1].map(|_| Mempool::new(eal(), &config).expect("pool"));
    let mut list = ArrayVec::<Mbuf, 64>::new();
    for pool in pools.iter().cycle().take(40) {
        list.push(pool.alloc().expect("a buffer"));
    }
    list[3].chain(pools[0].alloc().expect("a buffer")).expect("two buffers");
    assert_eq!(pools.each_ref().map(Mempool::available), [63 - 21, 63 - 20]);
    Mbuf::free_all(&mut list);
    assert!(list.is_empty());
    assert_eq!(pools.each_ref().map(Mempool::available), [63, 63]);
    Mbuf::free_all(&mut list);
    assert_eq!(pools.each_ref().map(Mempool::available), [63, 63], "of nothing, nothing");
}

#[test]
fn bulk_allocation_is_all_or_nothing() {
    let config = MempoolConfig { mbufs: 63, data_bytes: 256, cache: 0 };
    let pool = Mempool::new(eal(), &config).expect("pool");
    let mut list = ArrayVec::<Mbuf, 100>::new();
    assert!(pool.alloc_bulk(&mut list, 40));
    assert!(!pool.alloc_bulk(&mut list, 24), "23 are left");
    assert!(pool.alloc_bulk(&mut list, 23));
    assert!(pool.alloc().is_none());
    list.clear();
    assert_eq!(pool.available(), 63);
}

#[test]
fn registered_threads_come_and_go_and_lose_no_buffer() {
    let pool = pool();
    let others = Arc::clone(&pool);
    for _ in 0..3 {
        let pool = Arc::clone(&others);
        let thread = std::thread::spawn(move || {
            let registered = eal().register_thread().expect("a slot is free");
            let mut list = ArrayVec::<Mbuf, 64>::new();
            for _ in 0..100 {
                assert!(pool.alloc_bulk(&mut list, 64));
                list.clear();
            }
            drop(registered);
        });
        thread.join().expect("no panic");
    }
    assert_eq!(pool.available(), pool.size(), "caches are counted");
}

#[test]
fn a_buffer_outlives_its_pool_handle() {
    let pool = pool();
    let mbuf = fill(&pool, b"still here");
    drop(pool);
    assert_eq!(mbuf.data(), b"still here");
}

#[test]
fn offload_requests_replace_what_the_receiver_noted() {
    let pool = pool();
    let mut mbuf = fill(&pool, &[0; 64]);
    mbuf.set_tx_offload(&TxOffload {
        l2_bytes: 14,
        l3_bytes: 20,
        l4_bytes: 20,
        l3: L3::Ipv4,
        ip_checksum: true,
        l4_checksum: Some(L4::Tcp),
        tso_segment_bytes: 1448,
    });
    mbuf.clear_offloads();
    let checksum = mbuf.rx_checksum();
    assert_eq!((checksum.ip, checksum.l4), (Checksum::Unknown, Checksum::Unknown));
    assert_eq!((mbuf.rx_vlan(), mbuf.rx_hash()), (None, None));
}

#[test]
fn null_device_gives_and_takes() {
    let _guard = one_at_a_time();
    let pool = pool();
    let mut dev = EthDev::probe(eal(), "net_null7,size=100", Arc::clone(&pool)).expect("probe");
    assert_eq!(dev.info().expect("info").driver, "net_null");
    dev.configure(&EthConfig::default()).expect("configure");
    let (mut rx, mut tx) = dev.start().expect("start");
    let mut burst = ArrayVec::<Mbuf, 32>::new();
    assert_eq!(rx[0].burst(&mut burst), 32);
    assert!(burst.iter().all(|m| m.len() == 100));
    assert_eq!(rx[0].burst(&mut burst), 0, "no room left");
    assert_eq!(tx[0].burst(&mut burst), 32);
    assert!(burst.is_empty());
    assert!(matches!(dev.stop(), Err(Error::QueuesInUse { queues: 2, .. })));
    drop((rx, tx));
    dev.stop().expect("stop");
    drop(dev);
    assert_eq!(pool.available(), pool.size(), "no buffer is lost");
}

#[test]
fn a_full_ring_takes_a_prefix_and_keeps_order() {
    let _guard = one_at_a_time();
    let pool = pool();
    // A ring device without arguments loops transmit back to receive.
    let mut dev = EthDev::probe(eal(), "net_ring7", Arc::clone(&pool)).expect("probe");
    let config = EthConfig { rx_queues: 1, tx_queues: 1, ..EthConfig::default() };
    dev.configure(&config).expect("configure");
    let (mut rx, mut tx) = dev.start().expect("start");
    let mut sent = 0_u32;
    let mut burst = ArrayVec::<Mbuf, 64>::new();
    loop {
        while !burst.is_full() {
            let number = sent + burst.len() as u32;
            burst.push(fill(&pool, &number.to_be_bytes()));
        }
        let taken = tx[0].burst(&mut burst);
        sent += taken as u32;
        if taken < 64 {
            break;
        }
    }
    assert_eq!(burst.first().map(Mbuf::data), Some(&sent.to_be_bytes()[..]), "the rest stays");
    burst.clear();
    let mut received = 0_u32;
    while received < sent {
        assert!(rx[0].burst(&mut burst) > 0, "{received} of {sent}");
        for mbuf in burst.drain(..) {
            assert_eq!(mbuf.data(), received.to_be_bytes());
            received += 1;
        }
    }
    drop((rx, tx, dev));
    assert_eq!(pool.available(), pool.size());
}

#[test]
fn errors_name_the_device_and_the_limit() {
    let _guard = one_at_a_time();
    let missing = EthDev::probe(eal(), "net_af_packet8,iface=nowhere", pool());
    assert!(matches!(&missing, Err(Error::Probe { device, .. }) if device.contains("nowhere")));
    let mut dev = EthDev::probe(eal(), "net_null8", pool()).expect("probe");
    let too_many = EthConfig { rx_queues: 9999, ..EthConfig::default() };
    let error = dev.configure(&too_many).expect_err("too many queues").to_string();
    assert!(error.contains("rx_queues = 9999") && error.contains("allowed: 1 to"), "{error}");
    assert!(dev.start().is_err(), "not configured");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// Runs in a namespace of its own, which vanishes with the thread.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            ip("link add left type veth peer name right");
            ip("link set left up");
            ip("link set right up");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A device of `driver` on each end of a veth: what goes in on the left comes out on the right, and
/// the descriptor to sleep on works. More frames pass than there are buffers, so that a buffer lost
/// per frame would end it.
fn crosses_a_veth(driver: &str, pool: &Arc<Mempool>) {
    const ROUNDS: usize = 200;
    assert!(ROUNDS * 100 > 2 * pool.size() as usize);
    in_namespace(|| {
        let (mut left_rx, mut left_tx, left) = open(driver, "left", pool);
        let (mut right_rx, right_tx, right) = open(driver, "right", pool);
        let sent: Vec<Vec<u8>> = (0..100_u8).map(|n| frame(n, 60 + 14 * usize::from(n))).collect();
        let mut burst = ArrayVec::<Mbuf, 32>::new();
        for _ in 0..ROUNDS {
            let received = one_round(&sent, pool, &mut left_tx[0], &mut right_rx[0]);
            assert_eq!(received, sent);
        }
        assert!(right.stats().expect("stats").rx_packets >= 100);
        until("the left end is empty", || left_rx[0].burst(&mut burst) == 0);
        drop((right_rx, right_tx, right));
        controlled_from_elsewhere(left, left_rx, left_tx);
    });
}

/// Another thread, in another namespace, can read the link, and close: the interface is free again.
fn controlled_from_elsewhere(dev: EthDev, rx: Vec<dpdk::RxQueue>, tx: Vec<dpdk::TxQueue>) {
    let elsewhere = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        assert!(dev.link().expect("link").up);
        dev.set_promiscuous(false).expect("promiscuous");
        drop((dev, rx, tx));
    });
    elsewhere.join().expect("no panic");
    let output = Command::new("ip").args(["-d", "link", "show", "left"]).output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("xdp") && text.contains("promiscuity 0"), "{text}");
}

fn one_round(
    sent: &[Vec<u8>],
    pool: &Mempool,
    tx: &mut dpdk::TxQueue,
    rx: &mut dpdk::RxQueue,
) -> Vec<Vec<u8>> {
    let mut received: Vec<Vec<u8>> = Vec::new();
    let mut burst = ArrayVec::<Mbuf, 32>::new();
    for chunk in sent.chunks(10) {
        burst.extend(chunk.iter().map(|bytes| fill(pool, bytes)));
        until("the left end takes the burst", || {
            tx.burst(&mut burst);
            burst.is_empty()
        });
        let wanted = received.len() + chunk.len();
        let mut into = ArrayVec::<Mbuf, 32>::new();
        while received.len() < wanted {
            assert!(sleep_until_readable(rx), "{} received", received.len());
            rx.burst(&mut into);
            received.extend(into.drain(..).map(|m| m.data().to_vec()).filter(|b| ours(b)));
        }
    }
    received
}

type Opened = (Vec<dpdk::RxQueue>, Vec<dpdk::TxQueue>, EthDev);

fn open(driver: &str, interface: &str, pool: &Arc<Mempool>) -> Opened {
    let arguments = format!("{driver}{interface},iface={interface}");
    let mut dev = EthDev::probe(eal(), &arguments, Arc::clone(pool)).expect("probe");
    dev.configure(&EthConfig::default()).expect("configure");
    let (rx, tx) = dev.start().expect("start");
    dev.set_promiscuous(true).expect("promiscuous");
    assert_ne!(dev.mac().expect("mac"), [0; 6]);
    (rx, tx, dev)
}

fn ours(bytes: &[u8]) -> bool {
    bytes.get(12..14) == Some(&0x88b5_u16.to_be_bytes())
}

fn sleep_until_readable(queue: &dpdk::RxQueue) -> bool {
    let fd = queue.wake_fd().expect("a descriptor to sleep on");
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).expect("seconds fit");
    poll(&mut fds, timeout).expect("poll") == 1
}

#[test]
fn af_packet_crosses_a_veth() {
    let _guard = one_at_a_time();
    let pool = pool();
    crosses_a_veth("net_af_packet", &pool);
    assert_eq!(pool.available(), pool.size(), "closing the devices returns all buffers");
}

/// DPDK 22.11's af_xdp driver keeps the buffers of its fill rings when it is closed, so that only
/// the frames are accounted for here.
#[test]
fn af_xdp_crosses_a_veth() {
    let _guard = one_at_a_time();
    crosses_a_veth("net_af_xdp", &pool());
}

/// Moves an interface away and back, upon which the kernel unbinds the XDP sockets of its queues.
fn unbind(interface: &str) {
    let here = std::fs::read_link("/proc/thread-self").expect("/proc");
    let here = format!("/proc/{}/ns/net", here.display());
    let away = format!("bwt{}", std::process::id());
    ip(&format!("netns add {away}"));
    ip(&format!("link set {interface} netns {away}"));
    ip(&format!("-n {away} link set {interface} netns {here}"));
    ip(&format!("link set {interface} up"));
    ip(&format!("netns del {away}"));
}

/// The af_xdp driver numbers the buffers of a second attempt on from those of the first, in a ring
/// that is new: the kernel would read entries that nobody wrote, and put frames where no buffer is.
#[test]
fn a_device_whose_queues_failed_is_not_set_up_again_and_the_next_one_is_whole() {
    let _guard = one_at_a_time();
    let pool = pool();
    in_namespace(|| {
        let holder = open("net_af_xdp", "right", &pool);
        let mut second = EthDev::probe(eal(), "net_af_xdp_second,iface=right", Arc::clone(&pool))
            .expect("probe");
        let config = EthConfig::default();
        let taken = second.configure(&config).expect_err("the queue is taken").to_string();
        assert!(taken.contains("setting up its queues"), "{taken}");
        unbind("right");
        drop(holder);
        let again = second.configure(&config).expect_err("not a second time").to_string();
        assert!(again.contains("probe it again"), "{again}");
        drop(second);

        let (mut rx, _tx, _device) = open("net_af_xdp", "right", &pool);
        let (_rx, mut tx, _left) = open("net_af_packet", "left", &pool);
        let sent: Vec<Vec<u8>> = (0..100_u8).map(|n| frame(n, 60 + 14 * usize::from(n))).collect();
        for _ in 0..50 {
            assert_eq!(one_round(&sent, &pool, &mut tx[0], &mut rx[0]), sent);
        }
    });
}

#[test]
fn the_software_dma_device_copies() {
    let mut dev = DmaDev::probe(eal(), "dma_skeleton", 256).expect("probe");
    let sources: Vec<Vec<u8>> = (0..100_u8).map(|n| vec![n; 1 + usize::from(n) * 7]).collect();
    let mut targets: Vec<Vec<u8>> = sources.iter().map(|s| vec![0xee; s.len()]).collect();
    let copies: Vec<DmaCopy> = sources
        .iter()
        .zip(&mut targets)
        .map(|(s, t)| DmaCopy::new(s.as_ptr(), t.as_mut_ptr(), s.len() as u32))
        .collect();
    assert!(dev.capacity() >= copies.len());
    // SAFETY: `sources` and `targets` stay untouched until all copies are reported below.
    let taken = unsafe { dev.enqueue(&copies) };
    assert_eq!(taken, copies.len());
    dev.submit();
    let mut done = 0;
    until("all copies are done", || {
        let completed = dev.completed(64);
        assert!(!completed.failed);
        done += usize::from(completed.count);
        done == copies.len()
    });
    assert_eq!(sources, targets);
}
