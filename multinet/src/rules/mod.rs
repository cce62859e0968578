//! What is right and wrong: validation of single objects and of objects against each other.
//!
//! | file | rules of |
//! |---|---|
//! | `network` | one Network |
//! | `pool` | one SpiderIPPool, SpiderReservedIP |
//! | `block` | one AddressBlock, NodeState |
//! | `catalog` | objects against each other: VNIs, pools' membership and overlap |
//!
//! Every sentence names the field, the value, what is allowed and what to do.

mod block;
mod catalog;
mod network;
mod pool;
mod problem;
mod selector;

pub use block::{validate_block, validate_node_state};
pub use catalog::{Catalog, Checked, Home, ObjectProblem};
pub use network::{
    MTU_MIN_IPV4, MTU_RANGE, QUEUE_RANGE, RING_RANGE, VNI_RANGE, is_host_address, validate_network,
    validate_network_update,
};
pub use pool::{
    Binding, Pool, ReuseDelay, Strategy, check_reserved, parse_duration_ms, validate_pool,
    validate_pool_update,
};
pub use problem::{Problem, Severity};
pub use selector::{check_selector, is_dns_label, is_dns_name};
