//! What a pod asks for: its annotations, the pools it may be served from, and what it is granted.
//!
//! | file | holds |
//! |---|---|
//! | `interfaces` | `bowline.dev/interfaces`: Bowline's own interfaces |
//! | `multus` | `k8s.v1.cni.cncf.io/networks`: what Multus asks plugins for |
//! | `spider` | `ipam.spidernet.io/*`: pools and routes |
//! | `subnets` | `ipam.spidernet.io/subnet*`, `ippool-*`: automatic pools |
//! | `admit` | what is wrong with a pod at its creation |
//! | `identity` | whose address it is: the pod's, or of what outlives it |
//! | `grant` | wishes against the caps of the Network |
//! | `select` | sources, filters and order of pools |

mod admit;
mod grant;
mod identity;
mod interfaces;
mod multus;
mod select;
mod spider;
mod subnets;

pub use admit::validate_pod;
pub use grant::{Granted, RxMode, grant};
pub(crate) use identity::machine_name;
pub use identity::{Identity, Stickiness, identity, machine_of, ordinal_of};
pub use interfaces::{INTERFACES, Wish, is_interface_name, parse_interfaces};
pub use multus::{
    MAIN_INTERFACE, NETWORKS, NetworkSelection, definition_of, network_selection, parse_networks,
    place_by_arrival, place_of,
};
pub use select::{Context, Selection, select};
pub use spider::{
    DEFAULT_ROUTE_NIC, IPPOOL, IPPOOLS, NAMESPACE_IPV4, NAMESPACE_IPV6, ROUTES, SUBNET, SUBNETS,
    parse_routes,
};

pub use subnets::{
    IP_NUMBER, PoolSize, RECLAIM, SubnetChoice, parse_pool_size, parse_reclaim, parse_subnets,
};

/// The UID that claims of a pod are made for: for static pods the annotation that the kubelet passes
/// as UID, whichever object was read.
#[must_use]
pub fn claim_uid(pod: &crate::types::meta::ObjectMeta) -> Option<&str> {
    let config_hash = pod.annotations.get("kubernetes.io/config.hash");
    config_hash.or(pod.uid.as_ref()).map(String::as_str)
}
