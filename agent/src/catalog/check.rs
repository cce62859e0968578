//! What is checked of a single object when it is read, by the rules of `multinet`.

use multinet::rules::{self, Problem};
use multinet::types::block::AddressBlock;
use multinet::types::core::{Namespace, Node, Pod};
use multinet::types::network::Network;
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};

/// Kinds that can be wrong in themselves.
pub(crate) trait Checked {
    /// What is wrong with the object; errors refuse it.
    fn check(&self) -> Vec<Problem>;
}

impl Checked for Network {
    fn check(&self) -> Vec<Problem> {
        rules::validate_network(self)
    }
}

impl Checked for SpiderIPPool {
    fn check(&self) -> Vec<Problem> {
        rules::validate_pool(self)
    }
}

impl Checked for SpiderReservedIP {
    fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        rules::check_reserved(self, &mut problems);
        problems
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
never_wrong_by_itself!(Pod, Namespace, Node);
