//! `bowline capture`: frames into a file.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::trace::Filter;
use super::{client, out, pcap};

/// Arguments of `capture`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Where to write; - for standard output, e.g. `… -w - | tcpdump -r -`.
    #[arg(short, long = "write", value_name = "FILE")]
    write: PathBuf,
    /// Stop after so many frames; 0 = at Ctrl-C.
    #[arg(long, default_value_t = 0)]
    count: u32,
    /// Bytes of each frame that are kept; at most what the data plane holds of it.
    #[arg(long, default_value_t = 256)]
    snap: u32,
}

#[derive(Debug, Serialize)]
struct Summary {
    frames: u64,
    file: PathBuf,
}

/// Writes frames until there were enough, or until interrupted.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<()> {
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let request = api::CaptureRequest {
        filter: Some(args.filter.said()),
        count: args.count,
        snap_bytes: args.snap,
    };
    let shown = args.write.display();
    let to_stdout = args.write.as_os_str() == "-";
    let file: Box<dyn Write> = if to_stdout {
        Box::new(std::io::stdout())
    } else {
        Box::new(std::fs::File::create(&args.write).with_context(|| format!("-w {shown}"))?)
    };
    let mut writer =
        pcap::Writer::new(BufWriter::new(file)).with_context(|| format!("-w {shown}"))?;
    let mut frames = client.capture(request).await.map_err(refused)?.into_inner();
    let mut count = 0;
    loop {
        let frame = tokio::select! {
            frame = frames.message() => frame.map_err(refused)?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(frame) = frame else { break };
        writer
            .frame(frame.time_ns, frame.length_bytes, &frame.data)
            .with_context(|| format!("-w {shown}"))?;
        count += 1;
    }
    if json && !to_stdout {
        return out::object(&Summary { frames: count, file: args.write.clone() });
    }
    eprintln!("{count} frames in {shown}");
    Ok(())
}
