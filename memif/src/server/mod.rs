//! The server's end of the control socket.

pub mod handshake;
pub mod listener;
