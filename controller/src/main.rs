//! The controller process: reads the command line and does what it says.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use controller::options::{Command, Line, LogFormat};
use controller::{daemon, uninstall};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let line = Line::parse();
    start_log(line.log_format);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(line.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context(
        "no way to the API server: neither the files of a service account nor $KUBECONFIG",
    )?;
    match command {
        Command::Run(options) => daemon::run(client, *options, daemon::stop_signal()?).await,
        Command::Uninstall(names) => uninstall::run(client, &names).await,
    }
}

fn start_log(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_env("BOWLINE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(terminal).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
