//! The per-node poll-mode process.
