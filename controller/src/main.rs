//! The cluster daemon.
fn main() {}
