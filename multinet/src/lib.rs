//! What a Network is: resource types, address rules, and a node's share of the realm.
//!
//! | module | holds |
//! |---|---|
//! | [`types`] | the objects: Network, AddressBlock, NodeState, Spiderpool's kinds |
//! | [`range`] | sets of addresses |
//! | [`auto`] | automatic pools of applications, cut from subnets |
//! | [`crd`] | the kinds as Kubernetes is told of them |
//! | [`rules`] | what is right and wrong about objects |
//! | [`pod`] | what a pod asks for, may have and gets |
//! | [`definition`] | NetworkAttachmentDefinitions from Networks and SpiderMultusConfigs |
//! | [`project`] | what people see of addresses: counts, lists, SpiderEndpoints |
//! | [`ipam`] | who gets which address |
//! | [`store`], [`memory`] | what the rules need of a store: compare-and-swap |
//! | `conformance` | (feature) what every store must do, as a test |
//! | [`realm`] | catalog and node to the data plane's desired state |
//!
//! Pure: no client, no I/O, no clock. Time, randomness and the store come from the caller. Nothing
//! here panics on any input; what is wrong with an object is said in [`rules::Problem`]s.
#![forbid(unsafe_code)]

pub mod auto;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod crd;
pub mod definition;
pub mod ipam;
pub mod memory;
pub mod pod;
pub mod project;
pub mod range;
pub mod realm;
pub mod rules;
pub mod store;
pub mod types;
