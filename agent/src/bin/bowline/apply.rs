//! `bowline apply`: a state from a file, by hand.

use std::path::{Path, PathBuf};

use anyhow::Context;
use multinet::realm::state::State;
use serde::Deserialize;

use super::{client, out};

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A state in YAML or JSON; - for standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Add to what is in force instead of replacing it.
    #[arg(long)]
    partial: bool,
    /// Remove these interfaces as well (with --partial).
    #[arg(long, requires = "partial")]
    remove_interface: Vec<String>,
    /// Remove these networks as well (with --partial).
    #[arg(long, requires = "partial")]
    remove_network: Vec<String>,
}

/// A state as a person writes it.
#[derive(Debug, Deserialize)]
struct File {
    /// 0 or left out: the one after what is in force.
    #[serde(default)]
    revision: u64,
    #[serde(flatten)]
    state: State,
}

/// Reads, applies, prints what became of the interfaces.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<()> {
    let shown = args.file.display();
    let text = if args.file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(&args.file)
    };
    let text = text.with_context(|| format!("-f {shown}"))?;
    // JSON is YAML.
    let document = serde_yaml_ng::Deserializer::from_str(&text);
    let file: File =
        serde_path_to_error::deserialize(document).with_context(|| format!("-f {shown}"))?;
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let mut state = agent::dataplane::message_of(&file.state);
    state.revision = file.revision;
    if file.revision == 0 && !args.partial {
        let hello = client.hello(api::HelloRequest::default()).await.map_err(refused)?;
        state.revision = hello.into_inner().state_revision + 1;
    }
    let request = api::ApplyRequest {
        state: Some(state),
        partial: args.partial,
        remove_interfaces: args.remove_interface.clone(),
        remove_networks: args.remove_network.clone(),
    };
    let reply = client.apply(request).await.map_err(refused)?.into_inner();
    if json {
        return out::object(&serde_json::json!({
            "generation": reply.generation,
            "interfaces": reply.interfaces.len(),
        }));
    }
    println!("in force (generation {})", reply.generation);
    for status in reply.interfaces.iter().filter(|status| !status.reason.is_empty()) {
        println!("{}: {}", status.id, status.reason);
    }
    Ok(())
}
