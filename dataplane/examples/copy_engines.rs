//! The copy engines side by side: sizes × copies per burst × ways to copy.
//!
//! ```text
//! cargo run --release --example copy_engines -- [--read] [DMA device …]
//! ```
//!
//! A DMA device is what `--copy-engine dma:` takes, e.g. `dma_skeleton` (software, a thread: for
//! its function, not for its speed) or `wq0.0` (a work queue of an Intel DSA). With `--read` the
//! bytes that arrived are read as well, as a receiver does. Numbers are nanoseconds per copy, the
//! least of many bursts, and Gbit/s.

use std::time::{Duration, Instant};

use dataplane::copy::measure::{Arena, Way};
use dataplane::copy::{Choice, open_all};

const SIZES: [usize; 9] = [64, 256, 512, 1024, 1500, 2048, 4096, 9000, 65_536];
const COPIES: [usize; 4] = [1, 8, 32, 64];
/// For each number.
const TIME: Duration = Duration::from_millis(20);

fn main() {
    let (flags, devices): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let read = flags.iter().any(|flag| flag == "--read");
    let mut ways = vec![
        ("memcpy".to_owned(), Way::Memcpy),
        ("cpu".to_owned(), Way::cpu()),
        ("stream".to_owned(), Way::Stream),
    ];
    for device in devices {
        match open_all(&[Choice::Dma(device.clone())], 1, true) {
            Ok(channels) => {
                ways.extend(channels.into_iter().map(|c| (device.clone(), Way::dma(c))));
            }
            Err(error) => eprintln!("{error}"),
        }
    }
    let mut arena = Arena::default();
    println!("{:>6} {:>6} {:<14} {:>9} {:>8}", "bytes", "copies", "way", "ns/copy", "Gbit/s");
    for bytes in SIZES {
        for copies in COPIES {
            for (name, way) in &mut ways {
                let ns = least(&mut arena, way, bytes, copies, read);
                let gbps = bytes as f64 * 8.0 / ns;
                println!("{bytes:>6} {copies:>6} {name:<14} {ns:>9.1} {gbps:>8.1}");
            }
        }
    }
    eprintln!("({})", arena.sum());
}

/// The least nanoseconds per copy of any burst.
fn least(arena: &mut Arena, way: &mut Way, bytes: usize, copies: usize, read: bool) -> f64 {
    let end = Instant::now() + TIME;
    let mut least = f64::MAX;
    while Instant::now() < end {
        least = least.min(arena.burst(way, bytes, copies, read));
    }
    least
}
