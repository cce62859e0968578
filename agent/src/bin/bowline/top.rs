//! `bowline top`: rates, load and drops, live.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::out::{self, Row};
use super::{client, get, words};

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0)]
    interval: f64,
    /// Stop after so many; 0 = go on.
    #[arg(long, default_value_t = 0)]
    count: u32,
    /// Interfaces that are shown, the busiest first.
    #[arg(long, default_value_t = 20)]
    rows: usize,
}

/// One interface between two looks.
#[derive(Debug, Serialize)]
struct RateRow {
    interface: String,
    network: String,
    kind: String,
    rx_pps: f64,
    tx_pps: f64,
    rx_bps: f64,
    tx_bps: f64,
    drops_pps: f64,
}

impl Row for RateRow {
    const HEAD: &'static [&'static str] =
        &["interface", "network", "kind", "rx pps", "tx pps", "rx b/s", "tx b/s", "drops/s"];
    fn cells(&self) -> Vec<String> {
        let rates = [self.rx_pps, self.tx_pps, self.rx_bps, self.tx_bps, self.drops_pps];
        let mut cells = vec![self.interface.clone(), self.network.clone(), self.kind.clone()];
        cells.extend(rates.map(words::rate));
        cells
    }
}

#[derive(Debug, Serialize)]
struct Look {
    workers: Vec<WorkerLoad>,
    interfaces: Vec<RateRow>,
    drops: Vec<get::DropRow>,
}

#[derive(Debug, Serialize)]
struct WorkerLoad {
    id: u32,
    cpu: u32,
    load: f64,
    /// Cycles per packet, by part of the worker's turn.
    cycles: Vec<(String, f64)>,
}

/// Looks again and again.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<()> {
    anyhow::ensure!(args.interval >= 0.1, "--interval {}: at least 0.1 s", args.interval);
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let mut before: Option<(Instant, api::Counters)> = None;
    let mut shown = 0;
    loop {
        let counters = client.get_counters(api::GetCountersRequest {}).await.map_err(refused)?;
        let (now, counters) = (Instant::now(), counters.into_inner());
        if let Some((since, old)) = &before {
            let state = client.get_state(api::GetStateRequest {}).await.map_err(refused)?;
            let look = look(&state.into_inner(), old, &counters, (now - *since).as_secs_f64());
            show(look, args.rows, json)?;
            shown += 1;
            if shown == args.count {
                return Ok(());
            }
        }
        before = Some((now, counters));
        tokio::time::sleep(Duration::from_secs_f64(args.interval)).await;
    }
}

fn look(state: &api::ActualState, old: &api::Counters, new: &api::Counters, seconds: f64) -> Look {
    let dropped = |account: &api::Account| {
        account.drops.iter().chain(&account.tx_drops).map(|drop| drop.pkts).sum::<u64>()
    };
    let mut interfaces: Vec<_> = new
        .interfaces
        .iter()
        .map(|interface| {
            let empty = api::Account::default();
            let found = old.interfaces.iter().find(|other| other.id == interface.id);
            let before = found.and_then(|found| found.account.as_ref()).unwrap_or(&empty);
            let after = interface.account.as_ref().unwrap_or(&empty);
            let rate = |of: fn(&api::Account) -> u64| {
                of(after).saturating_sub(of(before)) as f64 / seconds
            };
            RateRow {
                interface: interface.id.clone(),
                network: interface.network.clone(),
                kind: interface.kind.clone(),
                rx_pps: rate(|a| a.rx_pkts),
                tx_pps: rate(|a| a.tx_pkts),
                rx_bps: rate(|a| a.rx_bytes) * 8.0,
                tx_bps: rate(|a| a.tx_bytes) * 8.0,
                drops_pps: dropped(after).saturating_sub(dropped(before)) as f64 / seconds,
            }
        })
        .collect();
    interfaces.sort_by(|a, b| (b.rx_pps + b.tx_pps).total_cmp(&(a.rx_pps + a.tx_pps)));
    let workers = state.workers.iter();
    let mut drops = get::drops(new);
    drops.sort_by_key(|row| std::cmp::Reverse(row.pkts));
    Look { workers: workers.map(load).collect(), interfaces, drops }
}

fn load(worker: &api::WorkerStatus) -> WorkerLoad {
    let cycles = worker.stages.iter().map(|s| (s.stage.clone(), s.cycles_per_packet)).collect();
    WorkerLoad { id: worker.id, cpu: worker.cpu, load: worker.load, cycles }
}

fn show(mut look: Look, rows: usize, json: bool) -> anyhow::Result<()> {
    if json {
        return out::line(&look);
    }
    look.interfaces.truncate(rows);
    look.drops.truncate(10);
    let mut text = String::from("\x1b[H\x1b[2J");
    for worker in &look.workers {
        let bar = "#".repeat((worker.load * 40.0).round().clamp(0.0, 40.0) as usize);
        let percent = worker.load * 100.0;
        let line = format!("worker {} cpu {} [{bar:<40}] {percent:3.0}%\n", worker.id, worker.cpu);
        text.push_str(&line);
        if !worker.cycles.is_empty() {
            let parts = worker.cycles.iter().map(|(stage, cycles)| format!("{stage} {cycles:.0}"));
            let parts = parts.collect::<Vec<_>>().join(", ");
            let line = format!("  cycles per packet: {parts}\n");
            text.push_str(&line);
        }
    }
    text.push('\n');
    text.push_str(&out::table(&look.interfaces));
    if !look.drops.is_empty() {
        text.push_str("\n\n");
        text.push_str(&out::table(&look.drops));
    }
    text.push('\n');
    let mut screen = std::io::stdout().lock();
    screen.write_all(text.as_bytes())?;
    Ok(screen.flush()?)
}
