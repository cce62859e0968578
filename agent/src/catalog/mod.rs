//! The directory catalog: Networks, pools, nodes, address blocks and pods as YAML files.
//!
//! | module | holds |
//! |---|---|
//! | `file` | a file's documents, and what is wrong with them by name, field and line |
//! | [`directory`] | the store: compare-and-swap on files, shared by the agents of several nodes |
//! | [`snapshot`] | what is in force, and how it follows the files |
//! | [`watch`] | keeps a snapshot up to date by inotify, and by looking again now and then |
//!
//! Invariants:
//! - A file is replaced whole, by rename; what a reader sees was written completely.
//! - Of what a bad file held before, everything stays in force until the file is mended or deleted.
//! - The agent writes only `KIND/NAME.yaml`, and never a file that holds anything else.

mod check;
pub mod directory;
mod file;
pub mod snapshot;
pub mod watch;

pub use directory::Directory;
pub use file::{FileProblem, Key};
pub use snapshot::Snapshot;
pub use watch::Catalog;
