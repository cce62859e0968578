//! `bowline get …`: one kind of thing per word.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

use super::out::{self, Row};
use super::{client, words};

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Realms on this node.
    Networks,
    /// Pods' interfaces, uplinks and host taps.
    Interfaces,
    /// Routes of all networks.
    Routes,
    /// Next hops towards tunnel ends.
    Neighbours,
    /// Where tunnels lead.
    Tunnels,
    /// Dropped packets by interface and reason.
    Drops,
    /// Both account sums.
    Counters,
    /// Poll loops.
    Workers,
    /// Who copies payload.
    CopyEngines,
}

/// Asks and prints.
pub(crate) async fn run(socket: &Path, what: What, json: bool) -> anyhow::Result<()> {
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    match what {
        What::Drops | What::Counters => {
            let reply = client.get_counters(api::GetCountersRequest {}).await.map_err(refused)?;
            let counters = reply.into_inner();
            match what {
                What::Drops => show_drops(&drops(&counters), json),
                _ => out::rows(&accounts(&counters), json),
            }
        }
        What::Neighbours => {
            let reply =
                client.get_neighbours(api::GetNeighboursRequest {}).await.map_err(refused)?;
            out::rows(&neighbours(&reply.into_inner()), json)
        }
        What::CopyEngines => {
            let request = api::GetCopyEnginesRequest {};
            let reply = client.get_copy_engines(request).await.map_err(refused)?;
            out::rows(&engines(&reply.into_inner()), json)
        }
        What::Tunnels => {
            let state = client.get_state(api::GetStateRequest {}).await.map_err(refused)?;
            let request = api::GetNeighboursRequest {};
            let neighbours = client.get_neighbours(request).await.map_err(refused)?;
            let desired = state.into_inner().desired.context("the reply has no state")?;
            out::rows(&tunnels(&desired, &neighbours.into_inner()), json)
        }
        What::Networks | What::Interfaces | What::Routes | What::Workers => {
            let reply = client.get_state(api::GetStateRequest {}).await.map_err(refused)?;
            let state = reply.into_inner();
            match what {
                What::Networks => out::rows(&networks(&state), json),
                What::Interfaces => out::rows(&interfaces(&state), json),
                What::Routes => out::rows(&routes(&state), json),
                _ => out::rows(&workers(&state), json),
            }
        }
    }
}

/// Makes a row: a struct for JSON whose fields, in order, are the table's columns.
macro_rules! row {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Serialize)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }

        impl Row for $name {
            const HEAD: &'static [&'static str] = &[$(stringify!($field)),*];
            fn cells(&self) -> Vec<String> {
                vec![$(Cell::text(&self.$field)),*]
            }
        }
    };
}

/// A value in a table.
trait Cell {
    fn text(&self) -> String;
}
impl Cell for String {
    fn text(&self) -> String {
        self.clone()
    }
}
impl Cell for Vec<String> {
    fn text(&self) -> String {
        self.join(",")
    }
}
impl Cell for u32 {
    fn text(&self) -> String {
        self.to_string()
    }
}
impl Cell for u64 {
    fn text(&self) -> String {
        self.to_string()
    }
}
impl Cell for f64 {
    fn text(&self) -> String {
        format!("{self:.2}")
    }
}

row!(
    /// A realm.
    NetworkRow { name: String, vni: u32, mtu: u32, gateways: Vec<String>, prefixes: Vec<String>,
        interfaces: u32, routes: u32 }
);
row!(
    /// An interface.
    InterfaceRow { id: String, kind: String, network: String, link: String, mac: String,
        addresses: Vec<String>, pod: String, queues: String, ring: u32, workers: Vec<String>,
        peer: String, connects: u64, violations: u64, reason: String }
);
row!(
    /// A route.
    RouteRow { network: String, prefix: String, via: String, detail: String }
);
row!(
    /// A next hop.
    NeighbourRow { ip: String, next_hop: String, mac: String, uplink: String, state: String }
);
row!(
    /// A tunnel.
    TunnelRow { network: String, vni: u32, vtep: String, inner_mac: String, routes: u32,
        state: String }
);
row!(
    /// Drops for one reason at one interface.
    DropRow { interface: String, network: String, pod: String, direction: String, reason: String,
        pkts: u64 }
);
row!(
    /// An account.
    AccountRow { of: String, rx_pkts: u64, forwarded: u64, consumed: u64, punted: u64,
        rx_drops: u64, tx_pkts: u64, tx_forwarded: u64, generated: u64, split_extra: u64,
        coalesced: u64, tx_drops: u64, rx_bytes: u64, tx_bytes: u64, copied_bytes: u64 }
);
row!(
    /// A poll loop.
    WorkerRow { id: u32, cpu: u32, mode: String, load: f64, packets: u64, generation: u64 }
);
row!(
    /// A copy engine.
    EngineRow { name: String, copies: u64, bytes: u64, errors: u64 }
);

fn networks(state: &api::ActualState) -> Vec<NetworkRow> {
    let Some(desired) = &state.desired else { return Vec::new() };
    let row = |network: &api::Network| NetworkRow {
        name: network.name.clone(),
        vni: network.vni,
        mtu: network.mtu,
        gateways: network.gateways.iter().map(|g| words::ip(g.ip.as_ref())).collect(),
        prefixes: network.prefixes.iter().map(|p| words::prefix(Some(p))).collect(),
        interfaces: desired.interfaces.iter().filter(|i| i.network == network.name).count() as u32,
        routes: network.routes.len() as u32,
    };
    desired.networks.iter().map(row).collect()
}

fn interfaces(state: &api::ActualState) -> Vec<InterfaceRow> {
    let desired: BTreeMap<&str, &api::Interface> = state
        .desired
        .iter()
        .flat_map(|desired| &desired.interfaces)
        .map(|interface| (interface.id.as_str(), interface))
        .collect();
    let row = |status: &api::InterfaceStatus| {
        let wanted = desired.get(status.id.as_str());
        let link = match status.link() {
            api::interface_status::Link::Up => "up",
            api::interface_status::Link::Down => "down",
            api::interface_status::Link::Waiting => "waiting",
        };
        InterfaceRow {
            id: status.id.clone(),
            kind: status.kind.clone(),
            network: status.network.clone(),
            link: link.into(),
            mac: words::mac(&status.mac),
            addresses: wanted.map_or_else(Vec::new, |wanted| {
                wanted.addresses.iter().map(|ip| words::ip(Some(ip))).collect()
            }),
            pod: wanted.map_or_else(String::new, |w| pod(&w.pod_namespace, &w.pod_name)),
            queues: format!("{}/{}", status.rx_queues, status.tx_queues),
            ring: status.ring_size,
            workers: status.workers.iter().map(ToString::to_string).collect(),
            peer: status.peer.clone(),
            connects: status.connects,
            violations: status.violations,
            reason: status.reason.clone(),
        }
    };
    state.interfaces.iter().map(row).collect()
}

fn pod(namespace: &str, name: &str) -> String {
    match (namespace, name) {
        ("", name) => name.into(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

fn routes(state: &api::ActualState) -> Vec<RouteRow> {
    let Some(desired) = &state.desired else { return Vec::new() };
    let mut rows = Vec::new();
    for network in &desired.networks {
        let row = |prefix: String, via: &str, detail: String| RouteRow {
            network: network.name.clone(),
            prefix,
            via: via.into(),
            detail,
        };
        for gateway in &network.gateways {
            rows.push(row(words::ip(gateway.ip.as_ref()), "gateway", "this node".into()));
        }
        for interface in desired.interfaces.iter().filter(|i| i.network == network.name) {
            for ip in &interface.addresses {
                rows.push(row(words::ip(Some(ip)), "interface", interface.id.clone()));
            }
        }
        for route in &network.routes {
            let (via, detail) = match &route.via {
                Some(api::route::Via::Tunnel(tunnel)) => {
                    let mac = words::mac(&tunnel.inner_mac);
                    ("tunnel", format!("{} ({mac})", words::ip(tunnel.vtep.as_ref())))
                }
                Some(api::route::Via::InterfaceId(id)) => ("interface", id.clone()),
                Some(api::route::Via::Unreachable(_)) => ("unreachable", String::new()),
                None => ("nothing", String::new()),
            };
            rows.push(row(words::prefix(route.prefix.as_ref()), via, detail));
        }
    }
    rows
}

fn neighbours(neighbours: &api::Neighbours) -> Vec<NeighbourRow> {
    let row = |entry: &api::Neighbour| NeighbourRow {
        ip: words::ip(entry.ip.as_ref()),
        next_hop: words::ip(entry.next_hop.as_ref()),
        mac: words::mac(&entry.mac),
        uplink: entry.uplink.clone(),
        state: entry.state.clone(),
    };
    neighbours.entries.iter().map(row).collect()
}

fn tunnels(desired: &api::State, neighbours: &api::Neighbours) -> Vec<TunnelRow> {
    let states: BTreeMap<String, &str> =
        neighbours.entries.iter().map(|e| (words::ip(e.ip.as_ref()), e.state.as_str())).collect();
    let mut rows = Vec::new();
    for network in &desired.networks {
        let mut ends: BTreeMap<(String, String), u32> = BTreeMap::new();
        for route in &network.routes {
            if let Some(api::route::Via::Tunnel(tunnel)) = &route.via {
                let end = (words::ip(tunnel.vtep.as_ref()), words::mac(&tunnel.inner_mac));
                *ends.entry(end).or_default() += 1;
            }
        }
        rows.extend(ends.into_iter().map(|((vtep, inner_mac), routes)| TunnelRow {
            network: network.name.clone(),
            vni: network.vni,
            state: states.get(&vtep).map_or_else(String::new, ToString::to_string),
            vtep,
            inner_mac,
            routes,
        }));
    }
    rows
}

fn show_drops(drops: &[DropRow], json: bool) -> anyhow::Result<()> {
    if json {
        return out::object(&drops);
    }
    println!("{}", drops_text(drops));
    Ok(())
}

/// A table of nothing would look like a failure.
fn drops_text(drops: &[DropRow]) -> String {
    match drops {
        [] => "no packet has been dropped on this node".into(),
        _ => out::table(drops),
    }
}

/// Drops of all interfaces, and what interfaces that are gone dropped: the sums agree with the
/// node's.
pub(crate) fn drops(counters: &api::Counters) -> Vec<DropRow> {
    let mut rows = Vec::new();
    let mut gone: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (direction, drop) in counters.node.iter().flat_map(directions) {
        *gone.entry((direction, &drop.reason)).or_default() += drop.pkts;
    }
    for interface in &counters.interfaces {
        for (direction, drop) in interface.account.iter().flat_map(directions) {
            if let Some(left) = gone.get_mut(&(direction, drop.reason.as_str())) {
                *left = left.saturating_sub(drop.pkts);
            }
            rows.push(DropRow {
                interface: interface.id.clone(),
                network: interface.network.clone(),
                pod: pod(&interface.pod_namespace, &interface.pod_name),
                direction: direction.into(),
                reason: drop.reason.clone(),
                pkts: drop.pkts,
            });
        }
    }
    rows.extend(gone.into_iter().filter(|(_, pkts)| *pkts > 0).map(
        |((direction, reason), pkts)| DropRow {
            interface: "(removed)".into(),
            network: String::new(),
            pod: String::new(),
            direction: direction.into(),
            reason: reason.into(),
            pkts,
        },
    ));
    rows
}

fn directions(account: &api::Account) -> impl Iterator<Item = (&'static str, &api::Drop)> {
    let rx = account.drops.iter().map(|drop| ("rx", drop));
    rx.chain(account.tx_drops.iter().map(|drop| ("tx", drop)))
}

fn accounts(counters: &api::Counters) -> Vec<AccountRow> {
    let interfaces = counters.interfaces.iter().map(|i| (i.id.clone(), &i.account));
    let networks = counters.networks.iter().map(|n| (format!("network {}", n.network), &n.account));
    let node = std::iter::once(("node".to_owned(), &counters.node));
    let row = |(of, account): (String, &Option<api::Account>)| {
        let account = account.as_ref()?;
        Some(AccountRow {
            of,
            rx_pkts: account.rx_pkts,
            forwarded: account.forwarded,
            consumed: account.consumed,
            punted: account.punted,
            rx_drops: account.drops.iter().map(|d| d.pkts).sum(),
            tx_pkts: account.tx_pkts,
            tx_forwarded: account.tx_forwarded,
            generated: account.generated,
            split_extra: account.split_extra,
            coalesced: account.coalesced,
            tx_drops: account.tx_drops.iter().map(|d| d.pkts).sum(),
            rx_bytes: account.rx_bytes,
            tx_bytes: account.tx_bytes,
            copied_bytes: account.copied_bytes,
        })
    };
    interfaces.chain(networks).chain(node).filter_map(row).collect()
}

fn workers(state: &api::ActualState) -> Vec<WorkerRow> {
    let row = |worker: &api::WorkerStatus| WorkerRow {
        id: worker.id,
        cpu: worker.cpu,
        mode: worker.mode.clone(),
        load: worker.load,
        packets: worker.packets,
        generation: worker.generation_seen,
    };
    state.workers.iter().map(row).collect()
}

fn engines(engines: &api::CopyEngines) -> Vec<EngineRow> {
    let row = |engine: &api::CopyEngine| EngineRow {
        name: engine.name.clone(),
        copies: engine.copies,
        bytes: engine.bytes,
        errors: engine.errors,
    };
    engines.engines.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(reason: &str, pkts: u64) -> api::Account {
        let drop = api::Drop { reason: reason.into(), pkts };
        api::Account { drops: vec![drop], ..api::Account::default() }
    }

    #[test]
    fn drops_of_removed_interfaces_are_shown_once() {
        let live = api::InterfaceCounters {
            id: "s/eth1".into(),
            account: Some(account("no_route", 3)),
            ..api::InterfaceCounters::default()
        };
        let counters = api::Counters {
            interfaces: vec![live],
            node: Some(account("no_route", 5)),
            ..api::Counters::default()
        };
        let rows = drops(&counters);
        assert_eq!(rows.iter().map(|row| row.pkts).sum::<u64>(), 5);
        assert_eq!((rows[1].interface.as_str(), rows[1].pkts), ("(removed)", 2));
        assert!(drops_text(&rows).starts_with(" INTERFACE"), "{}", drops_text(&rows));
        assert!(drops_text(&[]).contains("no packet has been dropped"), "{}", drops_text(&[]));
    }
}
