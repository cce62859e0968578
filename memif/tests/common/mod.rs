//! Both ends in one process: a server driven by hand and a client driven by hand.

#![allow(dead_code, reason = "each test file uses its own part of this module")]

pub(crate) mod held;
pub(crate) mod huge;
pub(crate) mod rogue;

use memif::{
    Address, Answer, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Handshake,
    Listener, ListenerLimits, Offer, Progress,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long any condition of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// An abstract name that no other test has.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("memif-test-{}-{n}", std::process::id())
}

/// Polls a condition until it holds, and says what did not.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        std::thread::yield_now();
    }
}

/// A listener for tests: as many connections as they like.
pub(crate) fn listener(name: &str) -> Listener {
    let limits =
        ListenerLimits { accepts_per_s: 100_000, accept_burst: 4096, ..Default::default() };
    Listener::bind_abstract(name).unwrap().with_limits(limits)
}

/// An offer without frills, under any id.
pub(crate) fn offer() -> Offer {
    Offer { name: "srv0".to_owned(), ..Offer::default() }
}

/// Drives one handshake to its end.
pub(crate) fn finish(mut handshake: Handshake, answer: &Answer) -> Result<Connection, CloseReason> {
    wait_for("the handshake", || match handshake.on_readable(&|_| answer.clone()) {
        Progress::Pending => None,
        Progress::Connected(connection) => Some(Ok(connection)),
        Progress::Closed(reason) => Some(Err(reason)),
    })
}

/// Takes the next connection of a listener.
pub(crate) fn accept(listener: &mut Listener) -> Handshake {
    wait_for("a connection", || listener.accept().unwrap())
}

/// A pair of ends that were connected by a real handshake: server, then client.
pub(crate) fn connect(
    listener: &mut Listener,
    connector: &mut Connector,
    answer: &Answer,
) -> (Connection, Connection) {
    let (mut server, mut client, mut handshake) = (None, None, None);
    wait_for("both ends", || {
        match connector.poll(Instant::now()) {
            ClientEvent::Connected(connection) => client = Some(connection),
            ClientEvent::Failed(reason) => panic!("client: {reason}"),
            ClientEvent::Pending => {}
        }
        if handshake.is_none() && server.is_none() {
            handshake = listener.accept().unwrap();
        }
        if let Some(mut h) = handshake.take() {
            match h.on_readable(&|_| answer.clone()) {
                Progress::Connected(connection) => server = Some(connection),
                Progress::Closed(reason) => panic!("server: {reason}"),
                Progress::Pending => handshake = Some(h),
            }
        }
        (server.is_some() && client.is_some()).then_some(())
    });
    (server.unwrap(), client.unwrap())
}

/// A connected pair with this configuration.
pub(crate) fn pair(change: impl FnOnce(&mut ClientConfig)) -> (Connection, Connection) {
    let name = unique_name();
    let mut listener = listener(&name);
    let mut config = ClientConfig::new(Address::Abstract(name), 7);
    change(&mut config);
    let offer = Offer { mode: config.mode, secret: config.secret.clone(), ..offer() };
    connect(&mut listener, &mut Connector::new(config), &Answer::Accept(offer))
}

/// A frame whose every byte depends on its number and its place.
pub(crate) fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Open descriptors and memory mappings of this process.
pub(crate) fn resources() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (fds, maps.lines().filter(|l| l.contains("memfd:") || l.contains("hugepage")).count())
}

/// Reserves pages of 2 MiB for a test, and gives them back.
pub(crate) struct HugePages(u32);

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    pub(crate) fn reserve(more: u32) -> Self {
        let count = || std::fs::read_to_string(NR_HUGEPAGES).unwrap().trim().parse().unwrap();
        let before: u32 = count();
        std::fs::write(NR_HUGEPAGES, (before + more).to_string()).unwrap();
        let now: u32 = count();
        assert!(now >= before + more, "the kernel has only {now} of {} pages", before + more);
        Self(more)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Others may have reserved some meanwhile.
        let now = std::fs::read_to_string(NR_HUGEPAGES).unwrap().trim().parse().unwrap_or(0u32);
        let _ = std::fs::write(NR_HUGEPAGES, now.saturating_sub(self.0).to_string());
    }
}
