//! Traffic generator and sink.
fn main() {}
