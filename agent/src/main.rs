//! The agent process.
fn main() {}
