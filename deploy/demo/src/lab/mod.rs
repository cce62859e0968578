//! Namespaces, devices and processes on this machine.

pub mod netns;
pub mod process;
pub mod shell;
