//! What the tests are made of: namespaces, processes, nodes, pods and frames.
//!
//! Everything is removed when it is dropped, also on panic. What a killed test process left
//! behind is swept by the next.
#![allow(dead_code, reason = "a kit of tools; which of them tests use changes")]
#![allow(unreachable_pub, reason = "this is a library that happens to lie in a test program")]

pub mod attack;
pub mod frame;
pub mod load;
pub mod memif;
pub mod netns;
pub mod node;
pub mod pages;
pub mod pod;
pub mod proc;
pub mod pump;
pub mod raw;
pub mod rogue;
pub mod rogue_server;
pub mod strain;
pub mod sys;
pub mod uplink;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use memif::MemifPod;
pub use netns::Netns;
pub use node::{Node, Realm};
pub use pod::{End, TapPod};
pub use proc::{Footprint, Proc};
pub use pump::Pump;
pub use raw::RawSocket;
pub use uplink::{Far, Pair, Uplink};

static TURN: Mutex<()> = Mutex::new(());

/// A test's turn. Held until the end of the test, so declare it first.
pub struct Lab(#[expect(dead_code, reason = "held, not used")] MutexGuard<'static, ()>);

impl Lab {
    /// Waits for the turn.
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces and taps: run them as root"
        );
        netns::sweep();
        Self(turn)
    }
}

/// Looks until `look` finds something, and returns that.
///
/// # Panics
/// When `seconds` pass without. `what` says what was waited for.
pub fn wait<T>(what: &str, seconds: f64, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs_f64(seconds);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {seconds} s in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a counter is `want`: a worker counts a burst when it is through with all of it, which
/// may be after one of its packets, or the answer to it, was seen.
#[track_caller]
pub fn counts(what: &str, want: u64, read: impl Fn() -> u64) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut found = read();
    while found < want && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        found = read();
    }
    assert_eq!(found, want, "{what}");
}

/// One run of iperf3 from `client` to a server in `server`: its report.
pub fn iperf(server: &Netns, client: &Netns, words: &str) -> serde_json::Value {
    // A server for each run: between two runs it is deaf for a moment.
    let mut listening = server.spawn("iperf3", "-s -1 --forceflush");
    listening.wait_for("Server listening", 5.0);
    let text = client.spawn("iperf3", &format!("{words} -J")).finish(15.0);
    serde_json::from_str(&text).expect("JSON")
}

/// The bits per second of an iperf3 report, as the receiver counted them.
pub fn iperf_bps(report: &serde_json::Value) -> f64 {
    let bps = &report["end"]["sum_received"]["bits_per_second"];
    bps.as_f64().unwrap_or_else(|| panic!("no rate in {report}"))
}
