//! The catalog: Networks, pools, nodes, address blocks and pods, from a directory of YAML files or
//! from the Kubernetes API.
//!
//! | module | holds |
//! |---|---|
//! | [`source`] | either of the two; nothing above knows which |
//! | [`api`] | the watches on the API |
//! | `objects`, [`cached`] | what they have brought, and the store that reads from it |
//! | `file` | a file's documents, and what is wrong with them by name, field and line |
//! | [`directory`] | the store: compare-and-swap on files, shared by the agents of several nodes |
//! | [`snapshot`] | what is in force, and how it follows the files |
//! | [`watch`] | keeps a snapshot up to date by inotify, and by looking again now and then |
//! | `turns` | who changes a Network's addresses at the moment |
//!
//! Invariants of the directory:
//! - A file is replaced whole, by rename; what a reader sees was written completely.
//! - Of what a bad file held before, everything stays in force until the file is mended or deleted.
//! - The agent writes only `KIND/NAME.yaml`, and never a file that holds anything else.

pub mod api;
pub mod cached;
mod check;
pub mod directory;
mod file;
mod objects;
pub mod snapshot;
pub mod source;
mod turns;
pub mod watch;

pub use api::ApiCatalog;
pub use directory::Directory;
pub use file::{FileProblem, Key};
pub use snapshot::Snapshot;
pub use source::{AnyStore, PodObjects, Source};
pub use watch::Catalog;
