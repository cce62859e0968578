//! What a decision needs besides the object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use multinet::rules::{Catalog, Checked, Problem};
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, Owner};
use multinet::types::meta::{LabelSelector, Resource};

use crate::jobs::Tools;

/// Sorts an object behind every other: of two that collide the one that is asked for is to blame.
const YOUNGEST: &str = "9999-12-31T23:59:59Z";

/// The catalog and who holds what.
pub(super) struct Facts {
    pub(super) catalog: Catalog,
    pub(super) blocks: Vec<AddressBlock>,
    pub(super) refuse_deletion: bool,
}

impl Facts {
    /// The catalog is read from the API server, not from memory: somebody who applies two objects in a
    /// row must be told about the second, whichever replica is asked.
    pub(super) async fn read(tools: &Tools) -> Result<Facts, String> {
        let store = &tools.store;
        let (networks, pools, subnets, reserved) =
            tokio::try_join!(list(store), list(store), list(store), list(store))
                .map_err(|e| e.to_string())?;
        Ok(Facts {
            catalog: Catalog { networks, pools, subnets, reserved, taken: tools.world.taken() },
            blocks: tools.world.blocks.all(),
            refuse_deletion: tools.options.refuse_deletion_in_use,
        })
    }

    /// A pool's addresses in somebody's hands.
    pub(super) fn held_of_pool(&self, pool: &str) -> Vec<(IpAddr, String)> {
        let entries = self.blocks.iter().flat_map(AddressBlock::held).filter(|e| e.pool == pool);
        entries.map(|e| (e.address, e.holder())).collect()
    }

    /// Addresses of a Network that pods hold. A node's own address goes with the Network.
    pub(super) fn held_of_network(&self, network: &str) -> Vec<(IpAddr, String)> {
        let blocks = self.blocks.iter().filter(|b| b.spec.network == network);
        let entries = blocks.flat_map(AddressBlock::held);
        let pods = entries.filter(|e| matches!(e.owner, Some(Owner::Pod { .. })));
        pods.map(|e| (e.address, e.holder())).collect()
    }

    /// What the rules say of an object in the place of what is stored under its name.
    pub(super) fn problems_with<R: Resource>(
        &self,
        object: &R,
        map: impl Fn(&mut Catalog) -> &mut BTreeMap<String, R>,
    ) -> (Checked, Vec<Problem>) {
        let mut catalog = self.catalog.clone();
        let mut object = object.clone();
        object.meta_mut().creation_timestamp = Some(YOUNGEST.into());
        let name = object.meta().name.clone();
        map(&mut catalog).insert(name.clone(), object);
        let checked = Checked::new(&catalog);
        let problems = checked.problems_of(R::KIND, &name).cloned().collect();
        (checked, problems)
    }
}

async fn list<R: Resource>(store: &impl Store) -> Result<BTreeMap<String, R>, StoreError> {
    let all = store.list::<R>(&LabelSelector::default()).await?;
    Ok(all.into_iter().map(|o| (o.meta().name.clone(), o)).collect())
}
