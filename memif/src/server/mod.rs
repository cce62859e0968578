//! The server's end of the control socket.

pub(crate) mod handshake;
pub(crate) mod listener;
