//! What is right and wrong: validation of single objects and of objects against each other.
//!
//! | file | rules of |
//! |---|---|
//! | `network` | one Network |
//! | `pool` | one SpiderIPPool, SpiderReservedIP |
//! | `subnet` | one SpiderSubnet, and pools cut from it |
//! | `coordinator`, `multus` | one SpiderCoordinator, SpiderMultusConfig |
//! | `defaults` | what an object says once its gaps are filled |
//! | `block` | one AddressBlock, NodeState |
//! | `catalog` | objects against each other: VNIs, pools' membership and overlap |
//! | `effect` | what a change of one object does to pools that serve already |
//!
//! Every sentence names the field, the value, what is allowed and what to do.

mod block;
mod catalog;
mod coordinator;
mod defaults;
mod effect;
mod multus;
mod network;
mod pool;
mod problem;
mod selector;
mod subnet;

pub use block::{validate_block, validate_node_state};
pub use catalog::{Catalog, Checked, Home, ObjectProblem, Taken, taken_by};
pub use coordinator::{parse_mac_prefix, validate_coordinator};
pub(crate) use defaults::subnet_reference;
pub use defaults::{
    OWNER_SUBNET_LABEL, POOL_CIDR_LABEL, SUBNET_CIDR_LABEL, cidr_label, fill_coordinator,
    fill_multus_config, fill_pool, fill_reserved, fill_subnet, is_auto_pool,
};
pub use effect::{broken_pools, moved_pools};
pub use multus::{
    CNI_VERSIONS, resource_of, validate_multus_config, validate_multus_config_update,
};
pub(crate) use multus::{is_auto_coordinated, pools_of};
pub use network::{
    MTU_MIN_IPV4, MTU_RANGE, QUEUE_RANGE, RING_RANGE, VNI_RANGE, is_host_address, validate_network,
    validate_network_update,
};
pub use pool::{
    Binding, Detection, Pool, ReuseDelay, Strategy, check_reserved, parse_duration_ms,
    validate_pool, validate_pool_update, validate_reserved, validate_reserved_update,
};
pub use problem::{Problem, Severity};
pub use selector::{check_selector, is_dns_label, is_dns_name};
pub use subnet::{
    check_subnet, outside_of, subnet_as_pool, validate_auto_pool_update, validate_delete,
    validate_subnet, validate_subnet_update,
};

/// Label of an automatic pool: the UID of its application.
pub const AUTO_POOL_LABEL: &str = "ipam.spidernet.io/owner-application-uid";
/// What `spec.podAffinity` of an automatic pool says, and nothing else: which application it is for.
pub const AUTO_POOL_AFFINITY: [&str; 5] = [
    "ipam.spidernet.io/app-api-group",
    "ipam.spidernet.io/app-api-version",
    "ipam.spidernet.io/app-kind",
    "ipam.spidernet.io/app-namespace",
    "ipam.spidernet.io/app-name",
];
