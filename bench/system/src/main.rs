//! `bowline-bench`: what `make bench` runs.

use anyhow::Context;
use bowline_bench::candidate::Candidate;
use bowline_bench::report::{Case, Machine, Report, Sample};
use bowline_bench::{GENERATOR_CPU, ours, peers};
use bowline_pktgen::port::{pin, unpin};
use clap::Parser;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Measures Bowline beside its peers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Runs of each candidate in each case.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Seconds of a run.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the report, the plot and the logs go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// Bytes of a memif buffer, so that a frame lies in one piece.
const SMALL: u32 = 2048;
/// The same for jumbo frames.
const LARGE: u32 = 10_240;

type Samples = BTreeMap<String, Vec<Sample>>;
type Start<'a> = Box<dyn Fn() -> anyhow::Result<Box<dyn Candidate>> + 'a>;
type Starts<'a> = Vec<(&'static str, Start<'a>)>;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "this needs root: run 'sudo make bench'");
    anyhow::ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "this needs two cores: one generates, one forwards"
    );
    std::fs::create_dir_all(&cli.out).with_context(|| format!("making {}", cli.out.display()))?;
    let _hugepages = peers::Hugepages::reserve()?;
    let machine = Machine::this();
    let memory = peers::memory_arguments(machine.hugepages_free);
    let mut report = Report { machine, commit: commit(), cases: vec![] };
    let logs = cli.out.as_path();
    let cases: [(&str, &str, &[usize], Starts<'_>); 4] = [
        (
            "memif-route-memif",
            "pps",
            &[64, 512, 1500],
            vec![
                ("bowline", Box::new(|| boxed(ours::memif(1, SMALL, logs)?))),
                ("testpmd-io", Box::new(|| boxed(peers::testpmd("io", SMALL, &memory, logs)?))),
                (
                    "testpmd-macfwd",
                    Box::new(|| boxed(peers::testpmd("mac", SMALL, &memory, logs)?)),
                ),
                ("ovs-dpdk", Box::new(|| boxed(peers::ovs(&memory, logs)?))),
            ],
        ),
        (
            "memif-route-memif",
            "pps",
            // The least MTU of IPv6 tunnels over 9000.
            &[8900],
            vec![
                ("bowline", Box::new(|| boxed(ours::memif(1, LARGE, logs)?))),
                ("testpmd-io", Box::new(|| boxed(peers::testpmd("io", LARGE, &memory, logs)?))),
                (
                    "testpmd-macfwd",
                    Box::new(|| boxed(peers::testpmd("mac", LARGE, &memory, logs)?)),
                ),
            ],
        ),
        (
            "memif-vxlan-uplink-vxlan-memif",
            "pps",
            &[64, 512, 1400],
            vec![
                ("bowline", Box::new(|| boxed(ours::memif(2, SMALL, logs)?))),
                ("testpmd-io", Box::new(|| boxed(peers::testpmd("io", SMALL, &memory, logs)?))),
                (
                    "testpmd-macfwd",
                    Box::new(|| boxed(peers::testpmd("mac", SMALL, &memory, logs)?)),
                ),
            ],
        ),
        (
            "tap-tap-tcp",
            "bps",
            &[0],
            vec![
                ("bowline", Box::new(|| boxed(ours::tap(logs)?))),
                ("veth-bridge", Box::new(|| boxed(peers::bridge()?))),
            ],
        ),
    ];
    for (name, unit, sizes, starts) in &cases {
        if name.contains(&cli.only) {
            case(&cli, (name, unit), sizes, starts, &mut report)?;
            report.write(&cli.out)?;
        }
    }
    println!("report and plot in {}", cli.out.display());
    Ok(())
}

fn boxed(candidate: impl Candidate + 'static) -> anyhow::Result<Box<dyn Candidate>> {
    Ok(Box::new(candidate))
}

fn case(
    cli: &Cli,
    (name, unit): (&str, &'static str),
    sizes: &[usize],
    starts: &Starts<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut candidates = start_all(starts)?;
    // TCP's two ends share the cores with the device as the scheduler likes.
    if unit == "pps" {
        pin(GENERATOR_CPU)?;
    } else {
        unpin()?;
    }
    for size in sizes {
        let samples = interleave(cli, &mut candidates, *size)?;
        add(report, Case::of(name, *size, 1, unit, &samples));
    }
    Ok(())
}

/// Those that start; one that does not is named, and missing in the report.
fn start_all(starts: &Starts<'_>) -> anyhow::Result<Vec<Box<dyn Candidate>>> {
    // What is started here must not inherit the generator's core.
    unpin()?;
    let mut candidates = vec![];
    for (name, start) in starts {
        match start() {
            Ok(candidate) => {
                candidate.freeze();
                candidates.push(candidate);
            }
            Err(error) if *name == bowline_bench::OURS => return Err(error),
            Err(error) => eprintln!("{name} is left out: {error:#}"),
        }
    }
    Ok(candidates)
}

fn interleave(
    cli: &Cli,
    candidates: &mut [Box<dyn Candidate>],
    size: usize,
) -> anyhow::Result<Samples> {
    let time = Duration::from_secs_f64(cli.seconds);
    let mut samples = Samples::new();
    for round in 0..cli.runs {
        for candidate in &mut *candidates {
            let sample = candidate.measure(size, 1, time)?;
            samples.entry(candidate.name().to_owned()).or_default().push(sample);
        }
        eprint!("\r{size} B: run {} of {} ", round + 1, cli.runs);
    }
    eprintln!();
    Ok(samples)
}

fn add(report: &mut Report, case: Case) {
    println!("{} {} B", case.case, case.size_bytes);
    let ours = std::iter::once((bowline_bench::OURS, &case.ours));
    let peers = case.peers.iter().map(|(name, series)| (name.as_str(), series));
    for (name, s) in ours.chain(peers) {
        let ratio = case.ratio.get(name).map(|r| format!("  ours is {r:.2} ×")).unwrap_or_default();
        println!(
            "  {name:<16} median {:>9.3} M  min {:>9.3}  max {:>9.3}  lost {:.2} %{ratio}",
            s.median / 1e6,
            s.min / 1e6,
            s.max / 1e6,
            s.loss_ratio * 100.0
        );
    }
    report.cases.push(case);
}

fn commit() -> String {
    let run = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = run(&["status", "--porcelain", "-uno"]).is_some_and(|s| !s.is_empty());
    let hash = run(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    if changed { format!("{hash}, changed") } else { hash }
}
