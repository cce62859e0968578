//! A node's share of the realm: from the catalog to the data plane's desired state, as pure code.
//!
//! | file | holds |
//! |---|---|
//! | `state` | the data plane's desired state in plain structs |
//! | `desired` | catalog and node to that state |
//! | `diff` | what to change, from one state to another |

mod desired;
mod diff;
pub mod state;

pub use desired::{
    Attachment, Input, VXLAN_OVERHEAD_IPV4, VXLAN_OVERHEAD_IPV6, desired, network_mtu,
};
pub use diff::{Ops, apply, diff};
