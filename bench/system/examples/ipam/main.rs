//! Addresses per second: a hundred agents' stores, each with a connection and a token of its own, on a real
//! API server. Pods come all at once, an address counts when a second agent has its route, then the pods go
//! and others come. The judge reads the API server's own history. `cargo test` runs a short form.
//!
//! # Parts
//! - [`fleet`]: the API server and the agents.
//! - [`observer`]: the second agent.
//! - [`metrics`]: what the API server counts.

mod fleet;
mod metrics;
mod observer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bowline_bench::report::{Machine, Series};
use clap::Parser;
use fleet::Fleet;
use multinet::rules::Binding;
use serde::Serialize;
use testapi::Fsync;

/// Measures the claiming of addresses.
#[derive(Debug, Parser)]
struct Cli {
    /// All cases in full size, and a report; without it the short form runs.
    #[arg(long)]
    full: bool,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Generations of pods in each case.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Where `ipam.json` goes.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench"))]
    out: PathBuf,
}

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    name: String,
    fsync: Fsync,
    binding: Binding,
    agents: u32,
    pods_each: u32,
    /// Addresses that others hold already.
    held: u32,
    /// Addresses beyond those that are needed.
    spare: u32,
}

/// One case of the report.
#[derive(Debug, Serialize)]
struct Case {
    case: String,
    unit: &'static str,
    /// Until the last address has its route at the second agent.
    ours: Series,
    /// Until the last claim is answered.
    answered: Series,
    /// Until the last pod is released.
    released: Series,
    /// Calls of the API server for each pod, by what they did.
    per_pod: BTreeMap<String, f64>,
    /// Claims that had to be tried again.
    refused: usize,
    agents: u32,
    pods: u32,
    held: u32,
}

/// `ipam.json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: Machine,
    commit: String,
    cases: &'a [Case],
}

fn specs(full: bool) -> Vec<Spec> {
    let spec = |name: &str, fsync, binding| Spec {
        name: name.into(),
        fsync,
        binding,
        agents: if full { 100 } else { 8 },
        pods_each: if full { 10 } else { 5 },
        held: 0,
        spare: 0,
    };
    if !full {
        return vec![spec("ipam-exact-unbound", Fsync::Off, Binding::Never)];
    }
    let (mut specs, mut slowest) = (Vec::new(), Vec::new());
    for (suffix, fsync) in [("no-fsync", Fsync::Off), ("fsync", Fsync::On)] {
        slowest.push(spec(&format!("ipam-exact-unbound-{suffix}"), fsync, Binding::Never));
        specs.push(spec(&format!("ipam-exact-bound-{suffix}"), fsync, Binding::Always));
        let large = spec(&format!("ipam-large-bound-{suffix}"), fsync, Binding::Auto);
        specs.push(Spec { spare: 60_000, ..large });
    }
    for held in [1_000, 10_000, 100_000] {
        let flat = spec(&format!("ipam-held-{held}"), Fsync::Off, Binding::Auto);
        specs.push(Spec { agents: 20, pods_each: 50, held, spare: 30_000, ..flat });
    }
    // A hundred agents race for the same few blocks.
    specs.extend(slowest);
    specs
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let rounds = if cli.full { cli.rounds } else { 2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut cases = Vec::new();
    for spec in specs(cli.full).iter().filter(|s| s.name.contains(&cli.only)) {
        let case = runtime.block_on(measure(spec, rounds)).with_context(|| spec.name.clone())?;
        println!(
            "{:32} {:6.0}/s routed, {:6.0}/s answered, {:6.0}/s released, {:?}, {} refused",
            case.case,
            case.ours.median,
            case.answered.median,
            case.released.median,
            case.per_pod,
            case.refused
        );
        cases.push(case);
        // After each case: the next may take long.
        if cli.full {
            write_report(&cli.out, &cases)?;
        }
    }
    Ok(())
}

fn write_report(folder: &Path, cases: &[Case]) -> anyhow::Result<()> {
    let report = Report { machine: Machine::this(), commit: commit(), cases };
    std::fs::create_dir_all(folder)?;
    let path = folder.join("ipam.json");
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

async fn measure(spec: &Spec, rounds: u32) -> anyhow::Result<Case> {
    let mut fleet = Fleet::start(spec).await;
    let (mut routed, mut answered, mut released) = (Vec::new(), Vec::new(), Vec::new());
    let mut refused = 0;
    let before = metrics::block_calls(fleet.admin()).await?;
    for round in 0..rounds {
        let start = Instant::now();
        let came = fleet.come(round).await;
        answered.push(start.elapsed());
        fleet.wait_for_routes().await?;
        routed.push(start.elapsed());
        refused += came.iter().map(|pod| pod.refused).sum::<usize>();
        fleet.wait_until_confirmed().await;
        fleet.judge(&came).await?;
        let start = Instant::now();
        fleet.go(&came).await;
        released.push(start.elapsed());
        fleet.judge(&[]).await?;
    }
    let calls = metrics::since(&before, &metrics::block_calls(fleet.admin()).await?);
    let pods = spec.agents * spec.pods_each;
    let per_pod = |n: f64| n / f64::from(pods * rounds);
    let series = |times: Vec<Duration>| series(pods, &times);
    Ok(Case {
        case: spec.name.clone(),
        unit: "addresses/s",
        ours: series(routed),
        answered: series(answered),
        released: series(released),
        per_pod: calls.into_iter().map(|(what, n)| (what, per_pod(n))).collect(),
        refused,
        agents: spec.agents,
        pods,
        held: spec.held,
    })
}

fn series(pods: u32, times: &[Duration]) -> Series {
    let runs: Vec<f64> = times.iter().map(|t| f64::from(pods) / t.as_secs_f64()).collect();
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    Series {
        median: sorted[sorted.len() / 2],
        min: sorted[0],
        max: sorted[sorted.len() - 1],
        loss_ratio: 0.0,
        runs,
    }
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
