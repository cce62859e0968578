//! The way to the data plane's API, and what its refusals mean.

use std::path::Path;

use anyhow::Context;
use api::dataplane_client::DataplaneClient;
use tonic::transport::{Channel, Endpoint};

/// A state of 1,000 networks fits.
const MESSAGE_BYTES: usize = 256 << 20;

/// Connects, or says why nobody answers and what to do.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<DataplaneClient<Channel>> {
    let shown = socket.display();
    let endpoint = Endpoint::from_shared(format!("unix:{shown}")).context("--socket")?;
    let channel = endpoint.connect().await.map_err(|error| match std::fs::metadata(socket) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => anyhow::anyhow!(
            "{shown} does not exist: start bowline-dataplane, or name its socket with --socket"
        ),
        Err(denied) => anyhow::anyhow!("{shown}: {denied}; are you root?"),
        Ok(_) => anyhow::anyhow!(
            "{shown}: nobody answers ({}); has bowline-dataplane ended? See its log, or start it \
             again",
            root_cause(&error)
        ),
    })?;
    Ok(DataplaneClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
}

/// The sentence of a refusal, without the envelope.
pub(crate) fn refusal(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
