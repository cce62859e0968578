//! What the control thread answers when it is asked how things are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::accounts::account;
use super::read::said_ip;
use super::{Control, FEATURES, Fixed, Port};
use crate::table::{IfaceKind, Sums, counters};
use crate::worker::TurnStage;

impl Control {
    pub(super) fn hello(
        &self,
        request: &api::HelloRequest,
    ) -> Result<api::HelloReply, tonic::Status> {
        let missing: Vec<_> =
            request.needs.iter().filter(|need| !FEATURES.contains(&need.as_str())).collect();
        if let Some(first) = missing.first() {
            return Err(tonic::Status::failed_precondition(format!(
                "needs: \"{first}\" is not a feature of this data plane ({}); it has {}",
                env!("CARGO_PKG_VERSION"),
                FEATURES.join(", ")
            )));
        }
        tracing::info!(client = request.client, "hello");
        Ok(api::HelloReply {
            version: env!("CARGO_PKG_VERSION").into(),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            boot_id: self.facts.boot_id.clone(),
            router_mac: self.facts.router_mac.0.to_vec(),
            uplinks: self.uplinks(),
            workers: self.workers.count() as u32,
            state_revision: self.desired.revision,
        })
    }

    fn uplinks(&self) -> Vec<api::Uplink> {
        let view = self.underlay.borrow();
        let uplink = |info: &super::start::UplinkInfo| {
            let link = view.links.get(&info.name);
            api::Uplink {
                name: info.name.clone(),
                physical_network: info.physical_network.clone(),
                driver: info.driver.clone(),
                mtu: link.map_or(u32::from(info.mtu_bytes), |link| link.mtu_bytes),
                mac: info.mac.0.to_vec(),
                vteps: link.map_or_else(Vec::new, |link| {
                    link.addresses.iter().map(|&ip| said_ip(ip)).collect()
                }),
                link_up: link.is_some_and(|link| link.up),
            }
        };
        self.facts.uplinks.iter().map(uplink).collect()
    }

    pub(super) fn apply_reply(&self, named: &[String]) -> api::ApplyReply {
        let status = |id: &String| self.ports.get_key_value(id.as_str());
        api::ApplyReply {
            generation: self.workers.tables().generation,
            interfaces: named
                .iter()
                .filter_map(status)
                .map(|(id, port)| self.interface_status(id, port))
                .collect(),
        }
    }

    fn interface_status(&self, id: &Arc<str>, port: &Port) -> api::InterfaceStatus {
        use api::interface_status::Link;
        let wanted = self.desired.interfaces.get(id);
        api::InterfaceStatus {
            id: id.to_string(),
            link: if port.live { Link::Up } else { Link::Waiting } as i32,
            reason: port.reason.clone(),
            peer: port.peer.clone(),
            rx_queues: port.rx_queues,
            tx_queues: port.tx_queues,
            ring_size: port.ring_size,
            connects: port.connects,
            violations: port.violations,
            last_violation: port.last_violation.clone(),
            last_refusal: port.last_refusal.clone(),
            name: wanted.map_or_else(String::new, |w| w.said.name.clone()),
            network: wanted.map_or_else(String::new, |w| w.network.to_string()),
            kind: port.kind.into(),
            mac: wanted.map_or_else(Vec::new, |w| w.mac.0.to_vec()),
            workers: port.workers.clone(),
        }
    }

    fn fixed_status(fixed: &Fixed, carrier: bool) -> api::InterfaceStatus {
        use api::interface_status::Link;
        let wire = fixed.wire.as_ref();
        let down = wire.filter(|wire| !wire.live);
        let why_down = down.map_or(if carrier { "" } else { "no carrier" }, |wire| &wire.reason);
        api::InterfaceStatus {
            id: fixed_id(fixed),
            link: if why_down.is_empty() { Link::Up } else { Link::Down } as i32,
            reason: why_down.into(),
            peer: wire.map_or_else(String::new, |wire| wire.peer_name.clone()),
            violations: wire.map_or(0, |wire| wire.violations),
            last_violation: wire.map_or_else(String::new, |wire| wire.last_violation.clone()),
            rx_queues: fixed.queues,
            tx_queues: fixed.queues,
            name: fixed.name.clone(),
            kind: fixed.kind.name().into(),
            mac: fixed.mac.0.to_vec(),
            ..api::InterfaceStatus::default()
        }
    }

    pub(super) fn actual_state(&self) -> api::ActualState {
        let view = self.underlay.borrow();
        let up = |fixed: &Fixed| view.links.get(&fixed.name).is_none_or(|link| link.up);
        let fixed = self.fixed.iter().map(|fixed| Self::fixed_status(fixed, up(fixed)));
        let pods = self.ports.iter().map(|(id, port)| self.interface_status(id, port));
        api::ActualState {
            desired: Some(self.desired.said()),
            generation: self.workers.tables().generation,
            interfaces: fixed.chain(pods).collect(),
            workers: self.worker_statuses(),
            uplinks: self.uplinks(),
            networks: self.network_statuses(),
        }
    }

    fn network_statuses(&self) -> Vec<api::NetworkStatus> {
        let mut hosts: HashMap<&str, usize> = HashMap::new();
        for interface in self.desired.interfaces.values() {
            *hosts.entry(&interface.network).or_default() += interface.addresses.len();
        }
        let status = |network: &Arc<super::desired::Network>| {
            let own = hosts.get(&*network.name).copied().unwrap_or(0) + network.gateways.len();
            api::NetworkStatus {
                name: network.name.to_string(),
                host_routes: own as u32,
                prefixes: network.routes.len() as u32,
            }
        };
        self.desired.networks.values().map(status).collect()
    }

    fn worker_statuses(&self) -> Vec<api::WorkerStatus> {
        let seen = self.workers.seen();
        let now = self.workers.tables().generation;
        let status = |(id, (stats, load)): (usize, (&crate::worker::Stats, f64))| {
            api::WorkerStatus {
                id: id as u32,
                cpu: self.facts.cpus.get(id).copied().unwrap_or(0) as u32,
                mode: self.facts.polling.into(),
                // A parked worker takes the newest tables before its first packet.
                generation_seen: seen.get(id).copied().flatten().unwrap_or(now),
                load,
                packets: stats.packets.load(Ordering::Relaxed),
                parked_ns: stats.parked_ns.load(Ordering::Relaxed),
                stages: self.workers.stages(id).map(stage_cost).collect(),
                measured_packets: stats.stages.read().0,
            }
        };
        self.workers.stats().enumerate().map(status).collect()
    }

    pub(super) fn counters(&self) -> api::Counters {
        let tables = self.workers.tables();
        let mut node = self.ledger.of_node().clone();
        let mut networks: HashMap<&str, Sums> = HashMap::new();
        let mut interfaces = Vec::new();
        for (id, book) in &self.books.ifaces {
            let sums = counters::sum(&book.counters);
            node.merge(&sums);
            networks.entry(&book.desired.network).or_default().merge(&sums);
            let said = &book.desired.said;
            interfaces.push(api::InterfaceCounters {
                id: id.to_string(),
                name: said.name.clone(),
                network: said.network.clone(),
                kind: self.ports.get(id).map_or("", |port| port.kind).into(),
                pod_namespace: said.pod_namespace.clone(),
                pod_name: said.pod_name.clone(),
                account: Some(account(&sums)),
            });
        }
        for fixed in &self.fixed {
            let sums = counters::sum(&fixed.counters);
            node.merge(&sums);
            interfaces.push(api::InterfaceCounters {
                id: fixed_id(fixed),
                name: fixed.name.clone(),
                kind: fixed.kind.name().into(),
                account: Some(account(&sums)),
                ..api::InterfaceCounters::default()
            });
        }
        for ghost in self.ghosts.values() {
            let sums = counters::sum(&ghost.counters);
            node.merge(&sums);
            networks.entry(&ghost.network).or_default().merge(&sums);
        }
        for (name, book) in &self.books.vrfs {
            let sums = networks.entry(name).or_default();
            sums.merge(&counters::sum(&book.counters));
            sums.merge(&self.ledger.of_network(name));
        }
        interfaces.sort_by(|a, b| a.id.cmp(&b.id));
        let mut networks: Vec<_> = networks
            .into_iter()
            .filter(|(name, _)| self.books.vrfs.contains_key(*name))
            .map(|(name, sums)| api::NetworkCounters {
                network: name.into(),
                account: Some(account(&sums)),
            })
            .collect();
        networks.sort_by(|a, b| a.network.cmp(&b.network));
        let node = Some(account(&node));
        api::Counters { interfaces, networks, node, generation: tables.generation }
    }

    pub(super) fn neighbours(&self) -> api::Neighbours {
        let view = self.underlay.borrow();
        let entry = |(ip, end): (&std::net::IpAddr, &super::underlay::End)| api::Neighbour {
            ip: Some(said_ip(*ip)),
            next_hop: end.next_hop.map(said_ip),
            mac: end.mac.map_or_else(Vec::new, |mac| mac.0.to_vec()),
            uplink: end.uplink.clone(),
            state: end.state.into(),
        };
        api::Neighbours { entries: view.ends.iter().map(entry).collect() }
    }

    pub(super) fn copy_engines(&self) -> api::CopyEngines {
        let sum = |read: fn(&crate::worker::Stats) -> u64| {
            self.workers.stats().map(|(stats, _)| read(stats)).sum()
        };
        let cpu = api::CopyEngine {
            name: "cpu".into(),
            copies: sum(|stats| stats.cpu_copies.load(Ordering::Relaxed)),
            bytes: sum(|stats| stats.cpu_copied_bytes.load(Ordering::Relaxed)),
            errors: 0,
        };
        let channel = |((stats, _), name): ((&crate::worker::Stats, _), &String)| api::CopyEngine {
            name: name.clone(),
            copies: stats.dma_copies.load(Ordering::Relaxed),
            bytes: stats.dma_copied_bytes.load(Ordering::Relaxed),
            errors: stats.dma_errors.load(Ordering::Relaxed),
        };
        let channels = self.workers.stats().zip(&self.facts.channels).map(channel);
        api::CopyEngines { engines: std::iter::once(cpu).chain(channels).collect() }
    }
}

/// An uplink and its host tap have one name; the id tells them apart.
fn fixed_id(fixed: &Fixed) -> String {
    match fixed.kind {
        IfaceKind::HostTap => format!("host/{}", fixed.name),
        _ => format!("uplink/{}", fixed.name),
    }
}

fn stage_cost((stage, cycles_per_packet, cycles): (TurnStage, f64, u64)) -> api::StageCost {
    api::StageCost { stage: stage.name().into(), cycles_per_packet, cycles }
}
