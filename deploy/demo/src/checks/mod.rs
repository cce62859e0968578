//! What the demo proves, in the order of its table.

pub mod drops;
pub mod isolation;
pub mod ratios;
pub mod reach;
pub mod recover;
pub mod survive;
pub mod throughput;
