//! `bowline-bench`: what `make bench` runs.

use anyhow::Context;
use bowline_bench::candidate::Candidate;
use bowline_bench::report::{Case, Machine, Report, Sample};
use bowline_bench::{GENERATOR_CPU, ours, peers};
use bowline_pktgen::port::pin;
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

type Samples = BTreeMap<String, Vec<Sample>>;
type Start<'a> = Box<dyn Fn() -> anyhow::Result<Candidate> + 'a>;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "this needs root: run 'sudo make bench'");
    anyhow::ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "this needs two cores: one generates, one forwards"
    );
    std::fs::create_dir_all(&cli.out).with_context(|| format!("making {}", cli.out.display()))?;
    let machine = Machine::this();
    let memory = peers::memory_arguments(machine.hugepages_free);
    let mut report = Report { machine, commit: commit(), cases: vec![] };
    pin(GENERATOR_CPU)?;
    route(&cli, &memory, &mut report)?;
    report.write(&cli.out)?;
    println!("report and plot in {}", cli.out.display());
    Ok(())
}

/// memif → IPv4 route → memif, one worker.
fn route(cli: &Cli, memory: &[String], report: &mut Report) -> anyhow::Result<()> {
    let logs = cli.out.as_path();
    let starts: [(&str, Start<'_>); 4] = [
        ("bowline", Box::new(|| ours::memif(1, "busy", logs))),
        ("testpmd-io", Box::new(|| peers::testpmd("io", memory, logs))),
        ("testpmd-macfwd", Box::new(|| peers::testpmd("mac", memory, logs))),
        ("ovs-dpdk", Box::new(|| peers::ovs(memory, logs))),
    ];
    let name = "memif-route-memif";
    if !name.contains(&cli.only) {
        return Ok(());
    }
    let mut candidates = start_all(&starts)?;
    for size in [64, 512, 1500, 9000] {
        let samples = interleave(cli, &mut candidates, size)?;
        add(report, Case::of(name, size, 1, "pps", &samples));
    }
    Ok(())
}

/// Those that start; one that does not is named, and missing in the report.
fn start_all(starts: &[(&str, Start<'_>)]) -> anyhow::Result<Vec<Candidate>> {
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

fn interleave(cli: &Cli, candidates: &mut [Candidate], size: usize) -> anyhow::Result<Samples> {
    let time = Duration::from_secs_f64(cli.seconds);
    let mut samples = Samples::new();
    for round in 0..cli.runs {
        for candidate in &mut *candidates {
            let sample = candidate.measure(size, 1, time)?;
            samples.entry(candidate.name.clone()).or_default().push(sample);
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
