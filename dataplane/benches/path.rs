//! What a decision costs: nanoseconds and cycles per packet, for each kind of way through the path.
//!
//! `cargo bench -p bowline-dataplane --no-default-features --bench path`. Each round loads a burst
//! of heads (as a port does) and decides on all of them; the loading alone is measured as well and
//! taken off. Neighbours on the machine only ever make it slower, so the best round counts.
//!
//! Arguments: a part of the name chooses ways; a number behind it decides on that many bursts and
//! measures nothing, for `valgrind --tool=callgrind --toggle-collect='*decide_all*'`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use dataplane::path::testing::frames::{
    arp, ethernet, ping4, tcp4, tcp6, tunnelled4, tunnelled6, udp4, v4, v6,
};
use dataplane::path::testing::{
    FAR_ROUTER_MAC, FAR_VTEP4, FAR_VTEP6, HOST, Heard, ROUTER_MAC, UPLINK, gateway_mac, pod_mac,
    tables,
};
use dataplane::path::{
    Context, HEAD_BYTES, HEADROOM_BYTES, IcmpLimiter, Meta, NoProbe, Packet, Slot, Verdict, forward,
};
use dataplane::table::{Iface, IfaceId, Tables};

const BURST: usize = 32;
const ROUNDS: usize = 60;
const BURSTS_PER_ROUND: usize = 2_000;

fn main() {
    let tables = tables();
    let mhz = clock_mhz();
    // `cargo bench` adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let wanted = args.next().unwrap_or_default();
    let bursts: Option<usize> = args.next().and_then(|arg| arg.parse().ok());
    println!("{:<34} {:>8} {:>8} {:>10}", "way", "ns", "cycles", "verdict");
    for (name, iface, frame) in cases().into_iter().filter(|(name, ..)| name.contains(&wanted)) {
        let iface = Arc::clone(tables.iface(IfaceId(iface)).expect("in the tables"));
        let mut bench = Bench::new(&tables, &iface, &frame);
        let verdict = bench.decide_all();
        if let Some(bursts) = bursts {
            for _ in 1..bursts {
                bench.load();
                bench.decide_all();
            }
            continue;
        }
        let loading = best(|| bench.load());
        let all = best(|| {
            bench.load();
            bench.decide_all();
        });
        let ns = (all - loading).max(0.0);
        println!("{name:<34} {ns:>8.1} {:>8.0} {verdict:>10?}", ns * mhz / 1000.0);
    }
}

fn cases() -> Vec<(&'static str, u16, Vec<u8>)> {
    let (here, pod) = (v4("10.1.0.2"), v4("10.1.0.3"));
    let (here6, pod6) = (v6("fd00:1::2"), v6("fd00:1::3"));
    let up4 = |packet: &[u8]| ethernet(gateway_mac(1), pod_mac(10), 0x0800, packet);
    let up6 = |packet: &[u8]| ethernet(gateway_mac(1), pod_mac(10), 0x86dd, packet);
    let inner = |packet: &[u8]| ethernet(ROUTER_MAC, FAR_ROUTER_MAC, 0x0800, packet);
    let back = inner(&udp4(v4("10.1.1.7"), here, (1, 2), &[0; 18]));
    let host = udp4(v4("192.0.2.1"), v4("192.0.2.2"), (1, 2), &[0; 18]);
    let question = arp(1, (pod_mac(10), here), (pod_mac(0), v4("10.1.0.1")));
    vec![
        ("IPv4 UDP pod to pod", 10, up4(&udp4(here, pod, (1, 2), &[0; 18]))),
        ("IPv4 TCP pod to pod", 10, up4(&tcp4(here, pod, &[0; 6]))),
        ("IPv6 TCP pod to pod", 10, up6(&tcp6(here6, pod6, &[0; 6]))),
        ("IPv4 bare to pod", 12, udp4(v4("10.1.0.4"), pod, (1, 2), &[0; 32])),
        ("IPv4 into a tunnel over IPv4", 10, up4(&udp4(here, v4("10.1.1.7"), (1, 2), &[0; 18]))),
        ("IPv6 into a tunnel over IPv4", 10, up6(&tcp6(here6, v6("fd00:1:0:1::7"), &[0; 6]))),
        ("IPv4 into a tunnel over IPv6", 10, up4(&udp4(here, v4("10.1.2.7"), (1, 2), &[0; 18]))),
        ("IPv4 out of a tunnel over IPv4", UPLINK, tunnelled4(FAR_VTEP4.into(), 56, &back)),
        ("IPv4 out of a tunnel over IPv6", UPLINK, tunnelled6(FAR_VTEP6.into(), 56, &back)),
        ("host to fabric", HOST, ethernet(pod_mac(9), pod_mac(8), 0x0800, &host)),
        ("gateway ping", 10, up4(&ping4(here, v4("10.1.0.1"), &[0; 18]))),
        ("ARP", 10, ethernet(pod_mac(255), pod_mac(10), 0x0806, &question)),
        ("no route (mostly limited)", 10, up4(&udp4(here, v4("8.8.8.8"), (1, 2), &[0; 18]))),
    ]
    .into_iter()
    .map(|(name, iface, mut frame)| {
        if name == "ARP" {
            frame[..6].fill(0xff);
        }
        (name, iface, frame)
    })
    .collect()
}

/// A worker's burst of equal frames.
struct Bench<'a> {
    tables: &'a Tables,
    iface: &'a Iface,
    head: [u8; HEAD_BYTES],
    facts: Meta,
    slots: Vec<Slot>,
    metas: Vec<Meta>,
    limiter: IcmpLimiter,
    heard: Heard,
}

impl<'a> Bench<'a> {
    fn new(tables: &'a Tables, iface: &'a Iface, frame: &[u8]) -> Self {
        let bytes = frame.len().min(HEAD_BYTES);
        let mut head = [0; HEAD_BYTES];
        head[..bytes].copy_from_slice(&frame[..bytes]);
        let facts = Meta {
            start: HEADROOM_BYTES as u16,
            end: (HEADROOM_BYTES + bytes) as u16,
            body_bytes: (frame.len() - bytes) as u32,
            // Else it would be the sum of the outer payload that is measured.
            checksum: dataplane::path::Checksum::Verified,
            ..Meta::default()
        };
        let slots = vec![Slot::default(); BURST];
        let metas = vec![facts; BURST];
        let (limiter, heard) = Default::default();
        let mut bench = Self { tables, iface, head, facts, slots, metas, limiter, heard };
        bench.load();
        bench
    }

    fn load(&mut self) {
        let head = black_box(&self.head);
        for (slot, meta) in self.slots.iter_mut().zip(&mut self.metas) {
            slot.0[HEADROOM_BYTES..HEADROOM_BYTES + HEAD_BYTES].copy_from_slice(head);
            *meta = self.facts;
        }
        black_box(&mut self.slots);
        black_box(&mut self.metas);
    }

    #[inline(never)]
    fn decide_all(&mut self) -> Verdict {
        let mut cx = Context {
            tables: black_box(self.tables),
            now_ns: 1,
            limiter: &mut self.limiter,
            events: &mut self.heard,
        };
        let mut last = Verdict::Consume;
        for (slot, meta) in self.slots.iter_mut().zip(&mut self.metas) {
            last = forward(&mut cx, self.iface, &mut Packet::new(slot, meta), &mut NoProbe);
            black_box(last);
        }
        last
    }
}

/// Nanoseconds per packet in the best of all rounds.
fn best(mut burst: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..BURSTS_PER_ROUND {
            burst();
        }
        start.elapsed().as_nanos() as f64 / (BURSTS_PER_ROUND * BURST) as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// The clock as the kernel knows it; 0 where it does not tell.
fn clock_mhz() -> f64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("cpu MHz"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}
