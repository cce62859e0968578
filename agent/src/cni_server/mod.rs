//! The CNI server: ADD, DEL, CHECK, GC and STATUS for the plugin, over a unix socket.
//!
//! | module | holds |
//! |---|---|
//! | `ask` | which interfaces a call is about; pure |
//! | [`routes`] | which routes an interface brings; pure |
//! | `add`, `remove`, `check` | the calls |
//! | `arrive` | virtual machines that migrate to this node |
//! | `refresh` | routes of running pods, when pools change |
//! | [`queue`] | claims that share their writes |
//! | `detect` | addresses that others use, gateways that are away |
//! | `automatic` | pools that the controller makes while a pod waits |
//! | `master` | the device that another plugin's interface is made on |
//! | `lan` | addresses for other plugins' interfaces |
//! | `imported` | addresses that were got from Spiderpool |
//! | `coordinator` | routes of pods, behind other plugins |
//! | `ifacer` | devices of the node, before other plugins |
//! | `network_status` | what is written on the pod |
//! | `device_info` | what a memif is, for who made the call |
//! | `result` | what is told the runtime; pure |
//! | `server` | the socket, and who waits for whom |
//! | `steps` | where an ADD's time goes |
//! | `tombstone` | DELs that came while the agent was away |
//!
//! Invariants:
//! - An ADD leaves everything in place or nothing; the same ADD again gives the same result.
//! - Calls for one sandbox run one after the other.
//! - A DEL succeeds. What it cannot finish is remembered and tried again.

mod add;
mod addresses;
mod arrive;
mod ask;
mod automatic;
mod check;
mod coordinator;
mod detect;
mod device_info;
mod ifacer;
mod imported;
mod lan;
mod master;
mod network_status;
pub mod queue;
mod refresh;
mod remove;
mod result;
pub mod routes;
mod server;
mod steps;
mod tombstone;

pub use server::{CniServer, Settings};
