//! Whether a change fits together with itself and with what is in force.
//!
//! Only what the change touches is looked at, so that one pod among thousands is checked in
//! microseconds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::desired::{Change, Desired, Interface, Network, Port, Via};
use super::read::Refused;

type Result<T = ()> = std::result::Result<T, Refused>;

/// Checks all of it. `state` gives the fields their numbers.
pub fn change(desired: &Desired, change: &Change, state: &api::State) -> Result {
    let cx = Cx { desired, change, state };
    cx.vnis()?;
    for new in change.networks.values().flatten() {
        cx.network(new)?;
    }
    cx.addresses()?;
    for new in change.interfaces.values().flatten() {
        cx.interface(new)?;
    }
    for (name, new) in &change.networks {
        if new.is_none() {
            cx.network_unused(name)?;
        }
    }
    for (id, new) in &change.interfaces {
        if new.is_none() {
            cx.interface_unused(id)?;
        }
    }
    if change.node.is_some() {
        for (name, network) in &desired.networks {
            if !change.networks.contains_key(name) {
                cx.tunnels_leave_the_node(network)?;
            }
        }
    }
    Ok(())
}

struct Cx<'a> {
    desired: &'a Desired,
    change: &'a Change,
    state: &'a api::State,
}

impl Cx<'_> {
    /// Path of a network's field, by its place in the request where it is there.
    fn network_field(&self, name: &str, field: &str) -> String {
        match self.state.networks.iter().position(|n| n.name == name) {
            Some(i) => format!("networks[{i}].{field}"),
            None => format!("network \"{name}\".{field}"),
        }
    }

    fn interface_field(&self, id: &str, field: &str) -> String {
        match self.state.interfaces.iter().position(|n| n.id == id) {
            Some(i) => format!("interfaces[{i}].{field}"),
            None => format!("interface \"{id}\".{field}"),
        }
    }

    fn vnis(&self) -> Result {
        let mut new: HashMap<u32, &Arc<str>> = HashMap::new();
        for network in self.change.networks.values().flatten() {
            let vni = network.vni.get();
            let field = || self.network_field(&network.name, "vni");
            if let Some(old) = self.desired.networks.get(&network.name)
                && old.vni != network.vni
            {
                let sentence = format!(
                    "{vni} is not what \"{}\" has: {}; a network keeps its VNI, so remove it first",
                    network.name,
                    old.vni.get()
                );
                return Err(Refused::new(field(), sentence));
            }
            let holder = self.desired.network_of_vni(vni).filter(|holder| {
                **holder != network.name
                    && self.desired.network_after(self.change, holder).is_some()
            });
            if let Some(other) = new.insert(vni, &network.name).or(holder) {
                let sentence = format!("{vni} is also the VNI of network \"{other}\"");
                return Err(Refused::new(field(), sentence));
            }
        }
        Ok(())
    }

    fn network(&self, network: &Network) -> Result {
        for (i, route) in network.routes.iter().enumerate() {
            let Via::Interface(id) = &route.via else { continue };
            let interface = self.desired.interface_after(self.change, id);
            if interface.is_none_or(|interface| interface.network != network.name) {
                let field = self.network_field(&network.name, &format!("routes[{i}].interface_id"));
                let sentence = format!("\"{id}\" is no interface of network \"{}\"", network.name);
                return Err(Refused::new(field, sentence));
            }
        }
        for (i, ip) in network.gateways.iter().enumerate() {
            let owner = self.desired.owner(&network.name, *ip);
            if let Some(owner) = owner.filter(|owner| self.still_has(owner, network, *ip)) {
                let field = self.network_field(&network.name, &format!("gateways[{i}].ip"));
                let sentence = format!("{ip} is the address of interface \"{owner}\"");
                return Err(Refused::new(field, sentence));
            }
        }
        self.tunnels_leave_the_node(network)
    }

    fn still_has(&self, owner: &str, network: &Network, ip: IpAddr) -> bool {
        let after = self.desired.interface_after(self.change, owner);
        after.is_some_and(|i| i.network == network.name && i.addresses.contains(&ip))
    }

    /// A tunnel to oneself would loop.
    fn tunnels_leave_the_node(&self, network: &Network) -> Result {
        let node = self.change.node.as_ref().unwrap_or(&self.desired.node);
        for (i, route) in network.routes.iter().enumerate() {
            let Via::Tunnel(tunnel) = &route.via else { continue };
            if node.local_vteps.contains(&tunnel.vtep) {
                let field = self.network_field(&network.name, &format!("routes[{i}].tunnel.vtep"));
                let sentence = format!("{} is this node's own tunnel end", tunnel.vtep);
                return Err(Refused::new(field, sentence));
            }
        }
        Ok(())
    }

    /// No address of a network belongs to two interfaces, or to one and the gateway.
    fn addresses(&self) -> Result {
        let mut new: HashMap<(&str, IpAddr), &str> = HashMap::new();
        for interface in self.change.interfaces.values().flatten() {
            for (i, &ip) in interface.addresses.iter().enumerate() {
                let field = || self.interface_field(&interface.id, &format!("addresses[{i}]"));
                let network = &interface.network;
                let held = self.desired.owner(network, ip).filter(|owner| {
                    let after = self.desired.interface_after(self.change, owner);
                    **owner != interface.id
                        && after.is_some_and(|o| o.network == *network && o.addresses.contains(&ip))
                });
                let twin = new.insert((network, ip), &interface.id);
                if let Some(other) = twin.or(held.map(|owner| &**owner)) {
                    let sentence =
                        format!("{ip} of network \"{network}\" is interface \"{other}\"'s");
                    return Err(Refused::new(field(), sentence));
                }
                let after = self.desired.network_after(self.change, network);
                if after.is_some_and(|network| network.gateways.contains(&ip)) {
                    let sentence = format!("{ip} is a gateway of network \"{network}\"");
                    return Err(Refused::new(field(), sentence));
                }
            }
        }
        Ok(())
    }

    fn interface(&self, interface: &Interface) -> Result {
        if self.desired.network_after(self.change, &interface.network).is_none() {
            let field = self.interface_field(&interface.id, "network");
            let sentence = format!("there is no network \"{}\"", interface.network);
            return Err(Refused::new(field, sentence));
        }
        let Some(old) = self.desired.interfaces.get(&interface.id) else { return Ok(()) };
        if old.network != interface.network {
            let field = self.interface_field(&interface.id, "network");
            let sentence = format!(
                "\"{}\" is not what the interface has: \"{}\"; remove the interface first",
                interface.network, old.network
            );
            return Err(Refused::new(field, sentence));
        }
        if !old.port.fits(&interface.port) {
            let field = self.interface_field(&interface.id, "port");
            let sentence = format!(
                "{} can not become {} while it lives; remove the interface first",
                describe(&old.port),
                describe(&interface.port)
            );
            return Err(Refused::new(field, sentence));
        }
        Ok(())
    }

    fn network_unused(&self, name: &str) -> Result {
        let mut after = self.desired.interfaces.keys().filter_map(|id| {
            self.desired.interface_after(self.change, id).filter(|i| *i.network == *name)
        });
        if let Some(interface) = after.next() {
            let sentence = format!("\"{name}\" still has the interface \"{}\"", interface.id);
            return Err(Refused::new("networks", sentence));
        }
        Ok(())
    }

    fn interface_unused(&self, id: &str) -> Result {
        let Some(old) = self.desired.interfaces.get(id) else { return Ok(()) };
        let network = self.desired.network_after(self.change, &old.network);
        if let Some(network) = network.filter(|network| network.leads_behind(id)) {
            let sentence = format!("a route of network \"{}\" leads behind \"{id}\"", network.name);
            return Err(Refused::new("interfaces", sentence));
        }
        Ok(())
    }
}

fn describe(port: &Port) -> String {
    match port {
        Port::Tap { queues } => format!("a tap of {queues} queues"),
        Port::Memif(memif) if memif.ip_mode => "a memif in IP mode".into(),
        Port::Memif(_) => "a memif in Ethernet mode".into(),
    }
}
