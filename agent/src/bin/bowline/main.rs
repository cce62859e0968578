//! `bowline`: looks at a node's data plane, and drives it by hand.

mod apply;
mod attach;
mod capture;
mod client;
mod doctor;
mod get;
mod ipam;
mod out;
mod pcap;
mod top;
mod trace;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Looks at a node's data plane, and drives it by hand.
#[derive(Debug, Parser)]
#[command(version, name = "bowline")]
struct Args {
    /// The data plane's API.
    #[arg(long, global = true, default_value = "/run/bowline/dataplane.sock")]
    socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what there is.
    Get {
        /// What to show.
        #[arg(value_enum)]
        what: get::What,
    },
    /// Shows rates, load and drops, again and again.
    Top(top::Args),
    /// Follows the next packets that match, stage by stage, to the rule that decided.
    Trace(trace::Args),
    /// Writes the next frames that match to a file for tcpdump or Wireshark.
    Capture(capture::Args),
    /// Prints what happens from now on: ports up and down, misbehaving peers.
    Events,
    /// Checks what the data plane needs of this machine.
    Doctor(doctor::Args),
    /// Puts a state from a file in force.
    Apply(apply::Args),
    /// Shows who has which address, and changes it by hand.
    Ipam(ipam::Args),
    /// Makes an interface in a network namespace and attaches it.
    Attach(attach::Args),
    /// Detaches an interface that `attach` made.
    Detach(attach::DetachArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = agent::sys::end_with_the_reader() {
        eprintln!("bowline: SIGPIPE stays ignored: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&args)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bowline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (socket, json) = (&args.socket, args.output == Format::Json);
    match &args.command {
        Command::Get { what } => get::run(socket, *what, json).await?,
        Command::Top(top) => top::run(socket, top, json).await?,
        Command::Trace(trace) => trace::run(socket, trace, json).await?,
        Command::Capture(capture) => capture::run(socket, capture, json).await?,
        Command::Events => trace::events(socket, json).await?,
        Command::Doctor(doctor) => return doctor::run(socket, doctor, json).await,
        Command::Apply(apply) => apply::run(socket, apply, json).await?,
        Command::Ipam(ipam) => ipam::run(ipam, json).await?,
        Command::Attach(attach) => attach::run(socket, attach, json).await?,
        Command::Detach(detach) => attach::detach(socket, detach).await?,
    }
    Ok(ExitCode::SUCCESS)
}
