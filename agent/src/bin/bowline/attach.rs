//! `bowline attach`: an interface in a network namespace, by hand; for trying things out and for
//! nodes without Kubernetes. What the agent manages is not touched.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agent::pod::{self, Device, InterfacePlan, Netns, PodRoute};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use ipnet::IpNet;
use multinet::types::mac::Mac;

use super::{client, out, words};

/// What to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A kernel device in the namespace.
    Tap,
    /// Shared memory: an abstract socket in the namespace.
    Memif,
}

/// Arguments of `attach`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    kind: Kind,
    /// A name under /run/netns, or a path.
    #[arg(long)]
    netns: PathBuf,
    /// The network; made if there is none and --vni is given.
    #[arg(long)]
    network: String,
    /// The interface's name. Default: eth1 or memif1.
    #[arg(long)]
    name: Option<String>,
    /// Addresses with prefix length, e.g. 10.0.0.10/24. Repeatable.
    #[arg(long, required = true)]
    address: Vec<IpNet>,
    /// Gateway addresses of a new network. Repeatable.
    #[arg(long)]
    gateway: Vec<IpAddr>,
    /// VNI of a new network.
    #[arg(long)]
    vni: Option<u32>,
    /// MTU of a new network.
    #[arg(long, default_value_t = 1450)]
    mtu: u32,
    /// Queues in each direction.
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// Largest ring of a memif.
    #[arg(long, default_value_t = 1024)]
    ring_size: u32,
    /// Bare IP packets on the memif.
    #[arg(long)]
    ip_mode: bool,
    /// Let the memif's client bring memory that it can shrink (DPDK's zero-copy clients do).
    #[arg(long)]
    unsealed: bool,
}

/// Arguments of `detach`.
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArgs {
    /// As it was attached.
    #[arg(long)]
    netns: PathBuf,
    /// The interface's name.
    #[arg(long)]
    name: String,
}

fn id_of(netns: &Path, name: &str) -> String {
    let short = netns.file_name().unwrap_or(netns.as_os_str()).to_string_lossy();
    format!("hand/{short}/{name}")
}

fn open(netns: &Path) -> anyhow::Result<Netns> {
    let path = match netns.components().count() {
        1 => Path::new("/run/netns").join(netns),
        _ => netns.to_owned(),
    };
    Netns::open(&path).context("--netns (make one with: ip netns add NAME)")
}

/// Makes the interface, offers its descriptors, and applies it.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<()> {
    let default = if args.kind == Kind::Tap { "eth1" } else { "memif1" };
    let name = args.name.clone().unwrap_or_else(|| default.into());
    let id = id_of(&args.netns, &name);
    let netns = open(&args.netns)?;
    let mut client = client::connect(socket).await?;
    let refused = |status: tonic::Status| client::refusal(&status);
    let state = client.get_state(api::GetStateRequest {}).await.map_err(refused)?.into_inner();
    let desired = state.desired.context("the reply has no state")?;
    ensure!(
        desired.interfaces.iter().all(|interface| interface.id != id),
        "{name} of {} is attached already; first: bowline detach --netns {} --name {name}",
        args.netns.display(),
        args.netns.display()
    );
    let known = desired.networks.into_iter().find(|network| network.name == args.network);
    let (network, is_new) = match known {
        Some(network) => (network, false),
        None => (new_network(args)?, true),
    };
    let mac = Mac::for_interface(&args.netns.to_string_lossy(), &name);
    let plan = plan(args, &name, &network, mac);
    let made = netns.run(|| pod::make(&plan))?;
    let message = interface(args, &id, &name, mac);
    let request = api::ApplyRequest {
        state: Some(api::State {
            networks: is_new.then(|| network.clone()).into_iter().collect(),
            interfaces: vec![message],
            ..api::State::default()
        }),
        partial: true,
        ..api::ApplyRequest::default()
    };
    let result = match offer(socket, args.kind, &id, &made.descriptors) {
        Ok(()) => client.apply(request).await.map_err(refused),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        if let Err(undo) = netns.run(|| pod::remove(&name)) {
            eprintln!("bowline: {undo}");
        }
        return Err(error);
    }
    let addresses: Vec<_> = args.address.iter().map(ToString::to_string).collect();
    if json {
        return out::object(&serde_json::json!({
            "id": id, "name": name, "network": args.network, "mac": mac.to_string(),
            "mtu": network.mtu, "addresses": addresses,
        }));
    }
    println!("{id}: {name} in {}, {}, MAC {mac}", args.network, addresses.join(" "));
    if args.kind == Kind::Memif {
        println!(
            "clients connect to the abstract socket @{name} in that namespace, interface id 0"
        );
    }
    Ok(())
}

/// Takes it away again.
pub(crate) async fn detach(socket: &Path, args: &DetachArgs) -> anyhow::Result<()> {
    let id = id_of(&args.netns, &args.name);
    let mut client = client::connect(socket).await?;
    let request = api::ApplyRequest {
        partial: true,
        remove_interfaces: vec![id],
        ..api::ApplyRequest::default()
    };
    client.apply(request).await.map_err(|status| client::refusal(&status))?;
    Ok(open(&args.netns)?.run(|| pod::remove(&args.name))?)
}

fn new_network(args: &Args) -> anyhow::Result<api::Network> {
    let Some(vni) = args.vni else {
        bail!(
            "there is no network \"{}\": make it with --vni NUMBER --gateway ADDRESS",
            args.network
        );
    };
    let mut nets: Vec<_> = args.address.iter().map(IpNet::trunc).collect();
    nets.sort();
    nets.dedup();
    let prefix = |net: &IpNet| api::Prefix {
        addr: words::said_ip(net.addr()).addr,
        len: u32::from(net.prefix_len()),
    };
    let gateway = |ip: &IpAddr| api::Gateway { ip: Some(words::said_ip(*ip)) };
    Ok(api::Network {
        name: args.network.clone(),
        vni,
        mtu: args.mtu,
        gateways: args.gateway.iter().map(gateway).collect(),
        prefixes: nets.iter().map(prefix).collect(),
        ..api::Network::default()
    })
}

fn plan(args: &Args, name: &str, network: &api::Network, mac: Mac) -> InterfacePlan {
    let gateways = network.gateways.iter().filter_map(|g| words::ip(g.ip.as_ref()).parse().ok());
    let default_route = |gateway: IpAddr| PodRoute {
        dst: match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        },
        gw: Some(gateway),
    };
    let has = |gateway: &IpAddr| args.address.iter().any(|a| a.contains(gateway));
    InterfacePlan {
        name: name.into(),
        device: match args.kind {
            Kind::Tap => Device::Tap { queues: args.queues },
            Kind::Memif => Device::Memif,
        },
        mac: mac.0,
        mtu: network.mtu,
        addresses: args.address.clone(),
        routes: gateways.filter(has).map(default_route).collect(),
        own_table: Vec::new(),
    }
}

fn interface(args: &Args, id: &str, name: &str, mac: Mac) -> api::Interface {
    let port = match args.kind {
        Kind::Tap => api::interface::Port::Tap(api::TapPort { queues: args.queues }),
        Kind::Memif => api::interface::Port::Memif(api::MemifPort {
            mode: if args.ip_mode {
                api::memif_port::Mode::Ip as i32
            } else {
                api::memif_port::Mode::Ethernet as i32
            },
            rx_queues: args.queues,
            tx_queues: args.queues,
            ring_size: args.ring_size,
            require_sealed_memory: !args.unsealed,
            ..api::MemifPort::default()
        }),
    };
    api::Interface {
        id: id.into(),
        network: args.network.clone(),
        name: name.into(),
        mac: mac.0.to_vec(),
        addresses: args.address.iter().map(|net| words::said_ip(net.addr())).collect(),
        port: Some(port),
        pod_name: args.netns.to_string_lossy().into_owned(),
        ..api::Interface::default()
    }
}

fn offer(socket: &Path, kind: Kind, id: &str, fds: &[OwnedFd]) -> anyhow::Result<()> {
    let kind = match kind {
        Kind::Tap => api::descriptor_offer::Kind::TapQueues,
        Kind::Memif => api::descriptor_offer::Kind::MemifListener,
    };
    Ok(agent::dataplane::offer(socket, id, kind, fds)?)
}
