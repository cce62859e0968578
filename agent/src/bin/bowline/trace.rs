//! `bowline trace` and `bowline events`: streams for people.

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::{client, out, words};

/// Which packets; everything that is given must match.
#[derive(Debug, clap::Args)]
pub(crate) struct Filter {
    /// Of this network.
    #[arg(long)]
    network: Option<String>,
    /// Of this interface (see `get interfaces`).
    #[arg(long)]
    interface: Option<String>,
    /// From or to this address.
    #[arg(long)]
    host: Option<IpAddr>,
    /// tcp, udp, icmp, icmp6 or a number.
    #[arg(long, value_parser = protocol)]
    protocol: Option<u32>,
    /// From or to this port.
    #[arg(long)]
    port: Option<u16>,
    /// Dropped packets only.
    #[arg(long)]
    drops: bool,
}

fn protocol(text: &str) -> Result<u32, String> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmp6" => Ok(58),
        number => match number.parse() {
            Ok(number @ 1..=255) => Ok(number),
            _ => Err("tcp, udp, icmp, icmp6 or 1..=255 is allowed".into()),
        },
    }
}

impl Filter {
    /// In the API's form.
    pub(crate) fn said(&self) -> api::PacketFilter {
        api::PacketFilter {
            network: self.network.clone().unwrap_or_default(),
            interface_id: self.interface.clone().unwrap_or_default(),
            host: self.host.map(words::said_ip),
            ip_protocol: self.protocol.unwrap_or(0),
            port: self.port.map_or(0, u32::from),
            drops_only: self.drops,
        }
    }
}

/// Arguments of `trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Stop after so many packets.
    #[arg(long, default_value_t = 16)]
    count: u32,
}

#[derive(Debug, Serialize)]
struct Traced {
    time_ns: u64,
    interface: String,
    length_bytes: u32,
    head: String,
    steps: Vec<Step>,
    verdict: String,
}

#[derive(Debug, Serialize)]
struct Step {
    stage: String,
    note: String,
}

/// Prints packets until there were enough.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<()> {
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let request = api::TraceRequest { filter: Some(args.filter.said()), count: args.count };
    let mut records = client.trace(request).await.map_err(refused)?.into_inner();
    while let Some(record) = records.message().await.map_err(refused)? {
        let traced = Traced {
            time_ns: record.time_ns,
            interface: record.interface_id,
            length_bytes: record.length_bytes,
            head: record.head.iter().map(|byte| format!("{byte:02x}")).collect(),
            steps: record
                .steps
                .into_iter()
                .map(|step| Step { stage: step.stage, note: step.note })
                .collect(),
            verdict: record.verdict,
        };
        if json {
            out::line(&traced)?;
            continue;
        }
        let clock = words::clock(traced.time_ns);
        println!("{clock} {} bytes from {}", traced.length_bytes, traced.interface);
        for step in &traced.steps {
            println!("    {:<10} {}", step.stage, step.note);
        }
        println!("  → {}", traced.verdict);
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Event {
    time_ns: u64,
    kind: String,
    interface: String,
    message: String,
}

/// Prints events until the data plane ends.
pub(crate) async fn events(socket: &Path, json: bool) -> anyhow::Result<()> {
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let mut events = client.watch(api::WatchRequest {}).await.map_err(refused)?.into_inner();
    while let Some(event) = events.message().await.map_err(refused)? {
        let event = Event {
            time_ns: event.time_ns,
            kind: event.kind,
            interface: event.interface_id,
            message: event.message,
        };
        if json {
            out::line(&event)?;
        } else {
            let clock = words::clock(event.time_ns);
            println!("{clock} {:<16} {} {}", event.kind, event.interface, event.message);
        }
    }
    Ok(())
}
