//! The socket to the agent. One deadline covers the whole exchange: a hanging agent makes a call fail,
//! never hang.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::rpc::{self, Command, Request, Response};

/// How the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent listens on {path}: {source}; is bowline-agent running?")]
    Absent {
        /// The socket.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It listens and does not answer.
    #[error("the agent on {path} did not answer within {} s", .after.as_secs())]
    Slow {
        /// The socket.
        path: String,
        /// How long was waited.
        after: Duration,
    },
    /// The exchange broke off.
    #[error("the agent on {path} broke off the call: {source}")]
    Broken {
        /// The socket.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The answer is none.
    #[error("the agent on {path} answered something else than a response: {why}")]
    Nonsense {
        /// The socket.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How long a call may take: within what kubelet waits for a sandbox (two minutes), so that the
/// sentence of the error still arrives.
#[must_use]
pub fn time_limit(command: Command) -> Duration {
    Duration::from_secs(match command {
        Command::Add | Command::Gc => 90,
        Command::Del => 30,
        Command::Check => 30,
        Command::Status => 10,
    })
}

/// Sends a request and reads the response.
///
/// # Errors
/// [`ClientError`].
pub fn ask(socket: &Path, request: &Request, limit: Duration) -> Result<Response, ClientError> {
    let path = || socket.display().to_string();
    let deadline = Instant::now() + limit;
    let nonsense = |why: String| ClientError::Nonsense { path: path(), why };
    let text = serde_json::to_vec(request).map_err(|e| nonsense(e.to_string()))?;
    let stream = connect(socket, limit)
        .ok_or_else(|| ClientError::Slow { path: path(), after: limit })?
        .map_err(|source| ClientError::Absent { path: path(), source })?;
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            ClientError::Slow { path: path(), after: limit }
        }
        _ => ClientError::Broken { path: path(), source },
    };
    send(&stream, &text, deadline).map_err(failed)?;
    let answer = receive(&stream, deadline).map_err(failed)?;
    if answer.len() > rpc::MAX_BYTES {
        return Err(nonsense(format!("it is longer than {} bytes", rpc::MAX_BYTES)));
    }
    if answer.is_empty() {
        let source = std::io::Error::from(ErrorKind::UnexpectedEof);
        return Err(ClientError::Broken { path: path(), source });
    }
    let response: Response =
        serde_json::from_slice(&answer).map_err(|e| nonsense(e.to_string()))?;
    if response.version > rpc::VERSION {
        let why = format!(
            "its version is {}, this plugin speaks {}; install the plugin of the agent's release",
            response.version,
            rpc::VERSION
        );
        return Err(nonsense(why));
    }
    Ok(response)
}

/// Connects, or gives up at the deadline. The kernel lets a caller wait for as long as the listener's
/// queue is full, and the standard library has no time limit for it: the wait is left to a thread,
/// which ends with the process.
fn connect(socket: &Path, limit: Duration) -> Option<std::io::Result<UnixStream>> {
    let (done, wait) = std::sync::mpsc::channel();
    let socket = socket.to_path_buf();
    // The receiver is gone when the caller has given up; then nobody wants to know.
    std::thread::spawn(move || drop(done.send(UnixStream::connect(socket))));
    wait.recv_timeout(limit).ok()
}

/// Time left, or the error that a passed deadline is.
fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn send(mut stream: &UnixStream, mut text: &[u8], deadline: Instant) -> std::io::Result<()> {
    while !text.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => text = &text[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: &UnixStream, deadline: Instant) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = vec![0u8; 64 << 10];
    // One byte more than is allowed tells "too long" from "just as long".
    while answer.len() <= rpc::MAX_BYTES {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(answer)
}
