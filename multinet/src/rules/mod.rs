//! What is right and wrong: validation of single objects and of objects against each other.

mod problem;

pub use problem::{Problem, Severity};
