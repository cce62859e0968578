//! What is checked of a single object when it is read, by the rules of `multinet`.

use multinet::rules::{self, Problem};
use multinet::types::block::AddressBlock;
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::core::{Namespace, Node, Pod, ServiceCIDR};
use multinet::types::network::{Encapsulation, Network};
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;

/// Kinds that can be wrong in themselves.
pub(crate) trait Checked {
    /// Whether people write it and every field is known here: another one is misspelt. Agents of a newer
    /// version may write fields into theirs, and of Kubernetes' own kinds only what is needed is read.
    const ALL_FIELDS_KNOWN: bool = false;

    /// What is wrong with the object; errors refuse it.
    fn check(&self) -> Vec<Problem>;

    /// Fields, with their values, that cannot change while somebody holds addresses of the Network of
    /// this name.
    fn fixed_in_use(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Checked for Network {
    const ALL_FIELDS_KNOWN: bool = true;

    fn check(&self) -> Vec<Problem> {
        let mut problems = rules::validate_network(self);
        if self.spec.encapsulation == Encapsulation::Vxlan && self.vni().is_none() {
            // The agents of several nodes share the files and none is before the others.
            let message = "is missing; without a controller nobody chooses one: write a number \
                           that no other Network has";
            problems.push(Problem::error("spec.vni", "", message));
        }
        problems
    }

    fn fixed_in_use(&self) -> Vec<(&'static str, String)> {
        let vni = self.vni().map(|vni| vni.to_string()).unwrap_or_default();
        vec![
            ("spec.encapsulation", format!("{:?}", self.spec.encapsulation)),
            ("spec.vni", vni),
            ("spec.vlanID", self.spec.vlan_id.map(|id| id.to_string()).unwrap_or_default()),
            ("spec.physicalNetwork", self.spec.physical_network.clone()),
        ]
    }
}

impl Checked for SpiderIPPool {
    const ALL_FIELDS_KNOWN: bool = true;

    fn check(&self) -> Vec<Problem> {
        rules::validate_pool(self)
    }
}

impl Checked for SpiderSubnet {
    const ALL_FIELDS_KNOWN: bool = true;

    fn check(&self) -> Vec<Problem> {
        rules::validate_subnet(self)
    }
}

impl Checked for SpiderReservedIP {
    const ALL_FIELDS_KNOWN: bool = true;

    fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        rules::check_reserved(self, &mut problems);
        problems
    }
}

impl Checked for SpiderCoordinator {
    const ALL_FIELDS_KNOWN: bool = true;

    fn check(&self) -> Vec<Problem> {
        rules::validate_coordinator(self)
    }
}

impl Checked for AddressBlock {
    fn check(&self) -> Vec<Problem> {
        rules::validate_block(self)
    }
}

impl Checked for NodeState {
    fn check(&self) -> Vec<Problem> {
        rules::validate_node_state(self)
    }
}

macro_rules! never_wrong_by_itself {
    ($($kind:ty),*) => {$(
        impl Checked for $kind {
            fn check(&self) -> Vec<Problem> {
                Vec::new()
            }
        }
    )*};
}
never_wrong_by_itself!(Pod, Namespace, Node, ServiceCIDR);
