//! What benchmarks tell a data plane beyond what its agent does, and ask it.

use crate::candidate::Spent;
use anyhow::Context;
use api::dataplane_client::DataplaneClient;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use wire::Mac;

/// Networks told in one call, so that a message stays small.
const NETWORKS_PER_CALL: u32 = 50;
/// VNIs from here on are no other network's.
const CROWD_VNI: u32 = 10_000;

/// A data plane's API.
#[derive(Debug)]
pub struct Dataplane {
    runtime: Runtime,
    client: DataplaneClient<Channel>,
}

impl Dataplane {
    /// Connects to its socket.
    ///
    /// # Errors
    /// Nobody serves there.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
            anyhow::Ok(DataplaneClient::new(endpoint.connect().await?))
        });
        let client = client.with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self { runtime, client })
    }

    fn state(&self) -> anyhow::Result<api::ActualState> {
        let mut client = self.client.clone();
        let reply = self.runtime.block_on(client.get_state(api::GetStateRequest {}));
        Ok(reply.context("asking for the data plane's state")?.into_inner())
    }

    fn tell(&self, state: api::State) -> anyhow::Result<()> {
        let request = api::ApplyRequest { state: Some(state), partial: true, ..Default::default() };
        let mut client = self.client.clone();
        let reply = self.runtime.block_on(client.apply(request));
        reply.context("telling the data plane").map(drop)
    }

    /// Changes the network of this name.
    fn change_network(
        &self,
        name: &str,
        vteps: Vec<api::Ip>,
        change: impl FnOnce(&mut api::Network),
    ) -> anyhow::Result<()> {
        let desired = self.state()?.desired.context("nothing is desired")?;
        let found = desired.networks.into_iter().find(|network| network.name == name);
        let mut network = found.with_context(|| format!("no network {name}"))?;
        change(&mut network);
        self.tell(api::State {
            networks: vec![network],
            cluster_vteps: [desired.cluster_vteps, vteps].concat(),
            ..Default::default()
        })
    }

    /// Routes a prefix of the network into a tunnel, whose far end becomes one of the cluster's.
    ///
    /// # Errors
    /// The data plane refuses.
    pub fn route_into_tunnel(
        &self,
        network: &str,
        (address, len): (Ipv4Addr, u32),
        vtep: IpAddr,
        inner_mac: Mac,
    ) -> anyhow::Result<()> {
        let prefix = Some(prefix(address, len));
        let tunnel = api::TunnelVia { vtep: Some(ip(vtep)), inner_mac: inner_mac.0.to_vec() };
        let route = api::Route { prefix, via: Some(api::route::Via::Tunnel(tunnel)) };
        self.change_network(network, vec![ip(vtep)], |network| network.routes.push(route))
    }

    /// Routes so many host addresses from `first` on to the interface of this pod.
    ///
    /// # Errors
    /// The data plane refuses.
    pub fn route_to_pod(
        &self,
        network: &str,
        pod: &str,
        first: Ipv4Addr,
        count: u32,
    ) -> anyhow::Result<()> {
        let desired = self.state()?.desired.context("nothing is desired")?;
        let found = desired.interfaces.into_iter().find(|i| i.pod_name == pod);
        let id = found.with_context(|| format!("no interface of pod {pod}"))?.id;
        let route = |n| api::Route {
            prefix: Some(prefix(Ipv4Addr::from_bits(first.to_bits() + n), 32)),
            via: Some(api::route::Via::InterfaceId(id.clone())),
        };
        self.change_network(network, vec![], |network| network.routes.extend((0..count).map(route)))
    }

    /// Makes further networks, all with the same addresses and so many host routes.
    ///
    /// # Errors
    /// The data plane refuses.
    pub fn crowd(&self, networks: u32, routes: u32) -> anyhow::Result<()> {
        let numbers: Vec<u32> = (0..networks).collect();
        for part in numbers.chunks(NETWORKS_PER_CALL as usize) {
            let networks = part.iter().map(|n| crowded(*n, routes)).collect();
            self.tell(api::State { networks, ..Default::default() })?;
        }
        Ok(())
    }

    /// The router MAC, to which other nodes address inner frames.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn router_mac(&self) -> anyhow::Result<Mac> {
        let mut client = self.client.clone();
        let hello = api::HelloRequest { client: "bowline-bench".into(), needs: vec![] };
        let reply = self.runtime.block_on(client.hello(hello))?.into_inner();
        Mac::from_slice(&reply.router_mac).context("no router MAC")
    }

    /// The uplink's MAC.
    ///
    /// # Errors
    /// It cannot be asked, or there is no uplink.
    pub fn uplink_mac(&self) -> anyhow::Result<Mac> {
        let state = self.state()?;
        let uplink = state.uplinks.first().context("no uplink")?;
        Mac::from_slice(&uplink.mac).context("no MAC of the uplink")
    }

    /// What the first worker spent on the bursts that it measured.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn spent(&self) -> anyhow::Result<Spent> {
        let state = self.state()?;
        let worker = state.workers.first().context("no worker")?;
        let cycles = worker.stages.iter().map(|s| (s.stage.clone(), s.cycles)).collect();
        Ok(Spent { packets: worker.measured_packets, cycles })
    }
}

fn ip(address: IpAddr) -> api::Ip {
    let addr = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    api::Ip { addr }
}

fn prefix(address: Ipv4Addr, len: u32) -> api::Prefix {
    api::Prefix { addr: address.octets().to_vec(), len }
}

fn crowded(number: u32, routes: u32) -> api::Network {
    let unreachable = |n: u32| api::Route {
        prefix: Some(prefix(Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 4, 0).to_bits() + n), 32)),
        via: Some(api::route::Via::Unreachable(true)),
    };
    api::Network {
        name: format!("crowd-{number}"),
        vni: CROWD_VNI + number,
        mtu: 1450,
        gateways: vec![api::Gateway { ip: Some(ip(IpAddr::from([10, 0, 0, 1]))) }],
        prefixes: vec![prefix(Ipv4Addr::new(10, 0, 0, 0), 16)],
        routes: (0..routes).map(unreachable).collect(),
        ..Default::default()
    }
}
