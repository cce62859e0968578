//! `bowline-bench`: what `make bench` runs.

use anyhow::Context;
use bowline_bench::candidate::{Candidate, Load};
use bowline_bench::cases::{self, Place, Spec, Start};
use bowline_bench::report::{Case, Machine, Metric, Report, Sample};
use bowline_bench::{GENERATOR_CPU, peers};
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
    /// Only these frame sizes, e.g. 64,1500.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Fewer loads and at most three runs of 0.2 s: a few minutes for all cases.
    #[arg(long)]
    quick: bool,
    /// Where the report, the plot and the logs go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

type Samples = BTreeMap<String, Vec<Sample>>;

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "this needs root: run 'sudo make bench'");
    anyhow::ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "this needs two cores: one generates, one forwards"
    );
    if cli.quick {
        (cli.runs, cli.seconds) = (cli.runs.min(3), cli.seconds.min(0.2));
    }
    std::fs::create_dir_all(&cli.out).with_context(|| format!("making {}", cli.out.display()))?;
    let _hugepages = peers::Hugepages::reserve()?;
    let machine = Machine::this();
    let memory = peers::memory_arguments(machine.hugepages_free);
    let mut report = Report { machine, commit: commit(), cases: vec![] };
    let place = Place { logs: cli.out.clone(), memory };
    for spec in cases::all(&place, cli.quick) {
        if spec.metrics.iter().any(|(name, _)| name.contains(&cli.only)) {
            run(&cli, &spec, &mut report)?;
            report.write(&cli.out)?;
        }
    }
    println!("report and plot in {}", cli.out.display());
    Ok(())
}

fn run(cli: &Cli, spec: &Spec, report: &mut Report) -> anyhow::Result<()> {
    let mut candidates = start_all(&spec.starts)?;
    // TCP's two ends share the cores with the device as the scheduler likes.
    if spec.metrics.iter().any(|(_, metric)| *metric == Metric::Bps) {
        unpin()?;
    } else {
        pin(GENERATOR_CPU)?;
    }
    let sizes = |load: &&Load| cli.sizes.is_empty() || cli.sizes.contains(&load.size);
    for load in spec.loads.iter().filter(sizes) {
        let samples = interleave(cli, &mut candidates, *load)?;
        for (name, metric) in &spec.metrics {
            add(report, Case::of(name, *load, *metric, &samples));
        }
    }
    Ok(())
}

/// Those that start; one that does not is named, and missing in the report.
fn start_all(starts: &[(&str, Start)]) -> anyhow::Result<Vec<Box<dyn Candidate>>> {
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
    load: Load,
) -> anyhow::Result<Samples> {
    let time = Duration::from_secs_f64(cli.seconds);
    let mut samples = Samples::new();
    for round in 0..cli.runs {
        for candidate in &mut *candidates {
            let sample = candidate.measure(load, time)?;
            samples.entry(candidate.name().to_owned()).or_default().push(sample);
        }
        eprint!("\r{} B, {} flows: run {} of {} ", load.size, load.flows, round + 1, cli.runs);
    }
    eprintln!();
    Ok(samples)
}

fn add(report: &mut Report, case: Case) {
    println!("{} {} B, {} flows", case.case, case.size_bytes, case.flows);
    // Of frames in millions, of bits in thousand millions, of time in microseconds.
    let (scale, unit) = match case.unit {
        "pps" => (1e6, "Mpps"),
        "bps" => (1e9, "Gb/s"),
        _ => (1e3, "µs"),
    };
    let ours = std::iter::once((bowline_bench::OURS, &case.ours));
    let peers = case.peers.iter().map(|(name, series)| (name.as_str(), series));
    for (name, s) in ours.chain(peers) {
        let ratio = case.ratio.get(name).map(|r| format!("  ours is {r:.2} ×")).unwrap_or_default();
        println!(
            "  {name:<18} median {:>8.3} {unit}  min {:>8.3}  max {:>8.3}  lost {:.2} %{ratio}",
            s.median / scale,
            s.min / scale,
            s.max / scale,
            s.loss_ratio * 100.0
        );
    }
    for (name, s) in &case.cycles {
        let ratio = case.cycles_ratio(name).filter(|_| name != bowline_bench::OURS);
        let ratio = ratio.map(|r| format!("  {r:.2} × ours")).unwrap_or_default();
        println!("  {name:<18} {:>6.0} cycles per packet of its turns{ratio}", s.median);
    }
    let stages = case.stages.iter().map(|(stage, cycles)| format!("{stage} {cycles:.0}"));
    let stages = stages.collect::<Vec<_>>().join(", ");
    if !stages.is_empty() {
        println!("  ours by part: {stages}");
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
