//! ADD: decide everything, claim, write the journal, make, hand over, answer. Any failure takes back
//! what was done, in the opposite order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cni::error::{CniError, code};
use cni::result::CniResult;
use cni::rpc::Request;
use multinet::pod::Wish;
use multinet::range::Family;
use multinet::realm::network_mtu;
use multinet::realm::state::Port;
use multinet::rules::{Checked, Home, Problem};
use multinet::types::block::Owner;
use multinet::types::mac::Mac;
use multinet::types::network::{DEFAULT_NETWORK, Network, PoolLists};
use multinet::types::node::NodeState;

use super::addresses::{self, Claimer, Given};
use super::ask::{self, Asked, Asker, refused};
use super::detect::{Conflicts, Failed, Taken};
use super::result::result_of;
use super::routes::{cluster_prefixes, default_prefix, routes_now};
use super::server::{CniServer, io_failure, pod_failure};
use super::steps::Steps;
use super::{automatic, detect, device_info, network_status};
use crate::catalog::Snapshot;
use crate::core;
use crate::fault;
use crate::journal::{AttachedInterface, Attachment, AttachmentKey, HostPort, Phase};
use crate::pod::{self, Device, InterfacePlan, MadeInterface, Netns, PodRoute};

/// How long an ADD waits for the first list of a Network's blocks.
pub(super) const PREPARE_WITHIN: Duration = Duration::from_secs(10);

/// What an ADD works on.
struct Add<'a> {
    server: &'a CniServer,
    request: &'a Request,
    key: AttachmentKey,
    snapshot: Arc<Snapshot>,
    checked: Arc<Checked>,
    asker: Asker,
    owner: Owner,
    steps: Steps,
}

/// Serves an ADD. The caller holds the sandbox's lock.
pub(super) async fn add(
    server: &CniServer,
    request: &Request,
    key: AttachmentKey,
) -> Result<CniResult, CniError> {
    let netns = Arc::new(Netns::open(Path::new(&request.netns)).map_err(|e| pod_failure(&e))?);
    if let Some(result) = server.answered_before(&key, netns.inode()).await? {
        return Ok(result);
    }
    if netns.is_own().map_err(|e| pod_failure(&e))? {
        let msg = format!(
            "CNI_NETNS \"{}\" is the node's own network namespace: a pod in it has the node's interfaces",
            request.netns
        );
        return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
    }
    let steps = Steps::begin(&server.metrics);
    let core = &server.core;
    let snapshot = server.look().await?;
    let asker = Asker::find(&core.catalog, &snapshot, request, &core.node).await?;
    let owner = asker.owner();
    let asked = ask::interfaces(request, &asker)?;
    let wishes = asked.iter().map(|asked| &asked.wish);
    let wanted: Vec<_> =
        wishes.map(|wish| (Home::Network(wish.network.clone()), wish.name.as_str())).collect();
    let snapshot = automatic::await_pools(server, snapshot, &asker, &wanted).await;
    let checked = core.checked(&snapshot);
    steps.done("pod");
    let add = Add { server, request, key, snapshot, checked, asker, owner, steps };
    add.run(&netns, &asked).await
}

impl Add<'_> {
    async fn run(&self, netns: &Arc<Netns>, asked: &[Asked]) -> Result<CniResult, CniError> {
        let previous = self.request.prev_result.clone();
        if asked.is_empty() {
            return Ok(previous.unwrap_or_default());
        }
        let granted = self.grant(asked)?;
        self.server.has_leg(asked)?;
        let defaults = self.look_into(netns, asked).await?;
        self.steps.done("namespace");
        let mut conflicts = Conflicts::default();
        loop {
            let given = self.claim(asked).await?;
            self.steps.done("claim");
            fault::reached("claimed");
            self.displace(&given).await;
            let done = match self.plan(asked, &granted, &given, &defaults, netns) {
                Ok(attachment) => self.attach(attachment, &given, netns).await,
                Err(error) => Err(error.into()),
            };
            let again = match done {
                Ok(result) => return Ok(chain(previous, result)),
                Err(Failed::Other(error)) => Err(error),
                Err(Failed::Taken(taken)) => self.set_aside(&mut conflicts, asked, &taken).await,
            };
            self.take_back(&given).await;
            again?;
        }
    }

    async fn set_aside(
        &self,
        conflicts: &mut Conflicts,
        asked: &[Asked],
        taken: &[Taken],
    ) -> Result<(), CniError> {
        let domain = |taken: &Taken| {
            let mut wishes = asked.iter().map(|a| &a.wish);
            let wish = wishes.find(|wish| wish.name == taken.interface);
            wish.map(|wish| wish.network.clone()).unwrap_or_default()
        };
        conflicts.set_aside(self.server, &self.asker, &self.key, domain, taken).await
    }

    /// The Network and the port of each interface.
    fn grant(&self, asked: &[Asked]) -> Result<Vec<(&Network, Port)>, CniError> {
        let grant = |wish: &Wish| {
            let network = self.network(wish)?;
            let granted = multinet::pod::grant(wish, network).map_err(refused)?;
            let port = granted.port().ok_or_else(|| {
                let message = "is not carried by this version; use tap or memif";
                refused(Problem::error(format!("{}.type", wish.at), granted.kind.as_str(), message))
            })?;
            Ok((network, port))
        };
        asked.iter().map(|a| grant(&a.wish)).collect()
    }

    fn network(&self, wish: &Wish) -> Result<&Network, CniError> {
        let name = wish.network.as_str();
        let field = format!("{}.network", wish.at);
        let Some(network) = self.checked.networks.get(name) else {
            let mut problems = self.checked.problems_of("Network", name).filter(|p| p.is_error());
            let why = problems.next().map_or(
                "does not exist; create the Network, or correct the name".to_owned(),
                |problem| format!("serves nothing: {problem}"),
            );
            return Err(refused(Problem::error(field, name, why)));
        };
        if network.admits(&self.asker.namespace_labels) {
            return Ok(network);
        }
        let message = format!(
            "does not admit namespace {}; label the namespace to match the Network's \
             spec.namespaceSelector, or set the selector ({{}} admits all)",
            self.asker.namespace_name()
        );
        Err(refused(Problem::error(field, name, message)))
    }

    /// Are the names free, and which families have a default route already?
    async fn look_into(&self, netns: &Arc<Netns>, asked: &[Asked]) -> Result<Vec<u8>, CniError> {
        let names: Vec<_> = asked.iter().map(|a| a.wish.name.clone()).collect();
        let netns = netns.clone();
        self.server
            .blocking(move || {
                netns.run(|| {
                    pod::free_names(&names)?;
                    pod::default_route_families()
                })
            })
            .await?
            .map_err(|e| pod_failure(&e))
    }

    async fn claim(&self, asked: &[Asked]) -> Result<Vec<Given>, CniError> {
        let mut by_network: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
        for asked in asked {
            by_network.entry(&asked.wish.network).or_default().push(asked);
        }
        let catalog = &self.server.core.catalog;
        let networks: Vec<String> = by_network.keys().map(|name| (*name).to_owned()).collect();
        let prepared = catalog.prepare(&networks, PREPARE_WITHIN).await;
        prepared.map_err(|why| CniError::new(code::TRY_AGAIN_LATER, why))?;
        let store = catalog.store();
        let other_allocator = catalog.api().and_then(|api| api.other_allocator());
        let mut claimer = Claimer {
            store: &store,
            queue: &self.server.writes,
            journal: &self.server.core.journal,
            metrics: &self.server.metrics,
            other_allocator: &other_allocator,
            snapshot: &self.snapshot,
            checked: &self.checked,
            node: &self.server.core.node,
            asker: &self.asker,
            owner: &self.owner,
            container_id: &self.key.container_id,
            configured: self.configured_pools(),
            master_addresses: None,
            others: self.server.core.addresses_of(&self.key.container_id),
        };
        claimer.others.extend(asked.iter().flat_map(|a| &a.wish.ips));
        let mut all = Vec::new();
        for (network, asked) in by_network {
            match claimer.claim(network, &asked).await {
                Ok(given) => {
                    claimer.others.extend(given.iter().map(|g| g.address.addr()));
                    all.extend(given);
                }
                Err(error) => {
                    self.take_back(&all).await;
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// An older sandbox that has one of these addresses still: its pod was made anew before its DEL
    /// came. The claim is this sandbox's now, and so is the address in the data plane.
    async fn displace(&self, given: &[Given]) {
        // Of each Network its own: another Network's pod may have the same address.
        let claimed: Vec<(String, IpAddr)> =
            given.iter().map(|g| (self.domain_of(g), g.address.addr())).collect();
        let clashes = |attachment: &Attachment| {
            attachment.interfaces.iter().any(|i| {
                let had = i.plan.addresses.iter().map(ipnet::IpNet::addr);
                claimed
                    .iter()
                    .any(|(network, ip)| *network == i.network && had.clone().any(|a| a == *ip))
            })
        };
        for old in self.server.core.attachments() {
            if old.key.container_id == self.key.container_id || !clashes(&old) {
                continue;
            }
            tracing::info!(attachment = %old.key, "gives way to {}", self.key);
            self.server.take_down(&old).await;
            if let Err(e) = self.server.core.forget(&old.key) {
                tracing::error!("the journal cannot be written: {e}");
            }
        }
    }

    /// The Network that an address was claimed in.
    fn domain_of(&self, given: &Given) -> String {
        let home = self.checked.pools.get(&given.pool.name).map(|(home, _)| home);
        home.map(|home| home.domain().to_owned()).unwrap_or_default()
    }

    fn configured_pools(&self) -> PoolLists {
        let ipam = self.request.config.ipam.clone().unwrap_or_default();
        PoolLists { ipv4: ipam.default_ipv4_ippool, ipv6: ipam.default_ipv6_ippool }
    }

    /// Everything decided, nothing made.
    fn plan(
        &self,
        asked: &[Asked],
        granted: &[(&Network, Port)],
        given: &[Given],
        defaults: &[u8],
        netns: &Netns,
    ) -> Result<Attachment, CniError> {
        let mut interfaces = Vec::new();
        // The first interface of a family without default route gets it, unless it is asked for
        // elsewhere.
        let named_elsewhere = asked.iter().any(|a| is_named_default(&a.wish));
        for (asked, (network, port)) in asked.iter().zip(granted) {
            let own: Vec<&Given> =
                given.iter().filter(|g| g.interface == asked.wish.name).collect();
            let mut interface = self.interface(asked, network, port, &own)?;
            for given in &own {
                let family = if given.address.addr().is_ipv4() { 4 } else { 6 };
                let free = !defaults.contains(&family);
                if asked.own && free && !named_elsewhere && !given.clean_gateway {
                    interface.default_in.push(family);
                }
                interface.named_routes.extend(named_default(&asked.wish, given)?);
            }
            interfaces.push(interface);
        }
        self.tell_apart(asked, &interfaces)?;
        self.add_annotated_routes(&mut interfaces)?;
        let cluster = cluster_prefixes(&self.snapshot, &self.server.core.node);
        // A pod's only interface has every route anyway.
        let several = interfaces.len() > 1 || self.key.ifname != multinet::pod::MAIN_INTERFACE;
        for interface in &mut interfaces {
            interface.by_source = several;
            // Every pool was there a moment ago, or there would be no address.
            let now = routes_now(interface, &self.checked, &cluster).unwrap_or_default();
            now.put_into(&mut interface.plan);
        }
        Ok(Attachment {
            key: self.key.clone(),
            conf_name: self.request.config.name.clone(),
            owner: self.owner.clone(),
            netns: self.request.netns.clone().into(),
            netns_inode: netns.inode(),
            phase: Phase::Making,
            boot_id: String::new(),
            held: false,
            offered: Vec::new(),
            interfaces,
            result: None,
            sticky: self.asker.is_sticky(),
            arriving: given.iter().any(|g| g.elsewhere),
            host_ports: self.host_ports()?,
        })
    }

    /// Ports of the node that shall lead to the call's own interface.
    fn host_ports(&self) -> Result<Vec<HostPort>, CniError> {
        let runtime = self.request.config.runtime_config.clone().unwrap_or_default();
        let ports = ask::host_ports(&runtime.port_mappings).map_err(refused)?;
        let network = &self.request.config.network;
        if !ports.is_empty() && !network.is_empty() && network != DEFAULT_NETWORK {
            let message = format!(
                "are carried into Network {DEFAULT_NETWORK} only, this call is for {network}"
            );
            return Err(refused(Problem::error("runtimeConfig.portMappings", "", message)));
        }
        Ok(ports)
    }

    fn interface(
        &self,
        asked: &Asked,
        network: &Network,
        port: &Port,
        own: &[&Given],
    ) -> Result<AttachedInterface, CniError> {
        let nodes: Vec<_> = self.snapshot.list::<NodeState>().collect();
        let mtu = network_mtu(network, nodes.iter().map(AsRef::as_ref));
        let wish = &asked.wish;
        let device = match port {
            Port::Tap { queues } => Device::Tap { queues: *queues },
            Port::Memif(_) => Device::Memif,
        };
        if own.iter().any(|g| g.address.addr().is_ipv6()) && mtu < 1280 {
            let message = "is too small for IPv6, which needs 1280; raise the uplink's or spec.mtu";
            return Err(refused(Problem::error("spec.mtu", mtu, message)));
        }
        let mac = wish.mac.unwrap_or_else(|| Mac::for_interface(&self.owner.key(), &wish.name));
        Ok(AttachedInterface {
            network: network.metadata.name.clone(),
            plan: InterfacePlan {
                name: wish.name.clone(),
                device,
                mac: mac.0,
                mtu,
                addresses: own.iter().map(|g| g.address).collect(),
                routes: Vec::new(),
                own_table: Vec::new(),
            },
            port: port.clone(),
            pools: own.iter().map(|g| g.pool.name.clone()).collect(),
            default_in: Vec::new(),
            named_routes: Vec::new(),
            by_source: false,
            gateways: own.iter().filter_map(|g| g.pool.gateway).collect(),
            kernel_device: String::new(),
        })
    }

    /// Two devices with one address, because somebody asks for it by name: the kernel would send what
    /// came in by the one out by the other, into another Network. A memif's address is no business of
    /// the kernel.
    fn tell_apart(
        &self,
        asked: &[Asked],
        interfaces: &[AttachedInterface],
    ) -> Result<(), CniError> {
        let before = self.server.core.attachments();
        let before = before.iter().filter(|a| a.key.container_id == self.key.container_id);
        let before: Vec<_> = before.flat_map(|a| &a.interfaces).collect();
        let tap = |i: &&AttachedInterface| matches!(i.port, Port::Tap { .. });
        for (Asked { wish, .. }, _) in asked.iter().zip(interfaces).filter(|(_, i)| tap(i)) {
            let others = interfaces.iter().chain(before.iter().copied()).filter(tap);
            for other in others.filter(|other| other.plan.name != wish.name) {
                let mut theirs = other.plan.addresses.iter().map(ipnet::IpNet::addr);
                if let Some(ip) = theirs.find(|ip| wish.ips.contains(ip)) {
                    let (name, network) = (&other.plan.name, &other.network);
                    let message = format!(
                        "is the address of {name} on Network {network} too, and a reply could leave by \
                         either; ask for another address, or make {} a memif",
                        wish.name
                    );
                    return Err(refused(Problem::error(format!("{}.ips", wish.at), ip, message)));
                }
            }
        }
        Ok(())
    }

    /// Routes of the annotation `ipam.spidernet.io/routes`, on the interface whose prefix holds the
    /// next hop.
    fn add_annotated_routes(&self, interfaces: &mut [AttachedInterface]) -> Result<(), CniError> {
        let routes = multinet::pod::parse_routes(&self.asker.pod.annotations).map_err(refused)?;
        for (dst, gw) in routes {
            let holds =
                |i: &&mut AttachedInterface| i.plan.addresses.iter().any(|a| a.contains(&gw));
            // Where none holds it, the route is for another plugin's interface.
            if let Some(interface) = interfaces.iter_mut().find(holds) {
                interface.named_routes.retain(|route| route.dst != dst);
                interface.named_routes.push(PodRoute { dst, gw: Some(gw) });
            }
        }
        Ok(())
    }

    /// Journal, devices, data plane, answer.
    async fn attach(
        &self,
        mut attachment: Attachment,
        given: &[Given],
        netns: &Arc<Netns>,
    ) -> Result<CniResult, Failed> {
        let server = self.server;
        server.core.put(attachment.clone()).map_err(|e| io_failure("write the journal", &e))?;
        fault::reached("journaled");
        let done = self.make_and_apply(&mut attachment, given, netns).await;
        match done {
            Ok(result) => Ok(result),
            Err(error) => {
                server.take_down(&attachment).await;
                if let Err(e) = server.core.forget(&attachment.key) {
                    tracing::error!("the journal cannot be written: {e}");
                }
                Err(error)
            }
        }
    }

    async fn make_and_apply(
        &self,
        attachment: &mut Attachment,
        given: &[Given],
        netns: &Arc<Netns>,
    ) -> Result<CniResult, Failed> {
        let server = self.server;
        let made = self.make(attachment, netns).await?;
        self.steps.done("make");
        fault::reached("made");
        for (interface, made) in attachment.interfaces.iter_mut().zip(made) {
            made.kernel_device.clone_into(&mut interface.kernel_device);
            let id = attachment.key.interface_id(&interface.plan.name);
            let descriptors = core::descriptors(interface.plan.device, made.descriptors);
            server.dataplane.hold(&id, descriptors);
        }
        server.core.note_held(&attachment.key);
        fault::reached("held");
        for interface in &attachment.interfaces {
            let id = attachment.key.interface_id(&interface.plan.name);
            // The first brings all in force; the others only ask whether theirs was refused.
            let applied = server.dataplane.sync(Some(&id), server.settings.apply_within).await;
            applied.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?;
        }
        self.steps.done("apply");
        self.detect(attachment, given, netns).await?;
        server.follow_attachment(attachment).await?;
        fault::reached("applied");
        self.write_device_info(attachment)?;
        let result = result_of(attachment);
        let current = server.core.attachment(&attachment.key);
        attachment.boot_id = current.map(|a| a.boot_id).unwrap_or_default();
        attachment.phase = Phase::Ready;
        attachment.result = Some(result.clone());
        server.core.put(attachment.clone()).map_err(|e| io_failure("write the journal", &e))?;
        server.confirm_later(attachment);
        network_status::tell(server, &self.asker, attachment);
        self.steps.done("finish");
        fault::reached("confirmed");
        Ok(result)
    }

    /// By now the data plane serves the interfaces, so that a link answers. Behind a memif there is
    /// none: the pod itself is the neighbour.
    async fn detect(
        &self,
        attachment: &Attachment,
        given: &[Given],
        netns: &Arc<Netns>,
    ) -> Result<(), Failed> {
        for plan in attachment.interfaces.iter().map(|i| &i.plan) {
            if let Device::Tap { .. } = plan.device {
                let own = given.iter().filter(|g| g.interface == plan.name);
                let questions = detect::questions(&self.asker, own);
                detect::ask(self.server, netns, &plan.name, questions).await?;
            }
        }
        Ok(())
    }

    fn write_device_info(&self, attachment: &Attachment) -> Result<(), CniError> {
        let runtime = self.request.config.runtime_config.as_ref();
        let file = runtime.and_then(|r| r.device_info_file.as_deref()).filter(|f| !f.is_empty());
        let named = attachment.interfaces.iter().find(|i| i.plan.name == attachment.key.ifname);
        let (Some(file), Some(interface)) = (file, named) else { return Ok(()) };
        device_info::write(Path::new(file), interface)
            .map_err(|e| io_failure(&format!("write the device information {file}"), &e))
    }

    async fn make(
        &self,
        attachment: &Attachment,
        netns: &Arc<Netns>,
    ) -> Result<Vec<MadeInterface>, CniError> {
        let plans: Vec<_> = attachment.interfaces.iter().map(|i| i.plan.clone()).collect();
        let netns = netns.clone();
        self.server
            .blocking(move || netns.run(|| plans.iter().map(pod::make).collect()))
            .await?
            .map_err(|e| pod_failure(&e))
    }

    /// Gives back the addresses that this call took. A failure is left to the DEL that follows, or to
    /// the next start.
    async fn take_back(&self, given: &[Given]) {
        let fresh: Vec<(String, IpAddr)> = given
            .iter()
            .filter(|g| g.fresh)
            .map(|g| (self.domain_of(g), g.address.addr()))
            .collect();
        let store = self.server.core.catalog.store();
        if let Err(e) = addresses::give_back(&store, &self.key.container_id, &fresh).await {
            tracing::error!(
                sandbox = self.key.container_id,
                "addresses stay claimed until the next try: {e}"
            );
        }
    }
}

fn is_named_default(wish: &Wish) -> bool {
    wish.default_route.as_ref().is_some_and(|gateways| !gateways.is_empty())
}

/// The default route that the wish names for this address's family.
fn named_default(wish: &Wish, given: &Given) -> Result<Option<PodRoute>, CniError> {
    let family = Family::of(given.address.addr());
    let gateways = wish.default_route.iter().flatten();
    let Some(gw) = gateways.copied().find(|gw| Family::of(*gw) == family) else { return Ok(None) };
    if given.address.contains(&gw) {
        return Ok(Some(PodRoute { dst: default_prefix(gw), gw: Some(gw) }));
    }
    let message = format!("is not in {}, where the interface is", given.address.trunc());
    Err(refused(Problem::error(format!("{}.default-route", wish.at), gw, message)))
}

/// Behind another plugin, its result comes first and ours after it.
fn chain(previous: Option<CniResult>, ours: CniResult) -> CniResult {
    let Some(mut result) = previous else { return ours };
    let offset = result.interfaces.len();
    result.interfaces.extend(ours.interfaces);
    result.ips.extend(ours.ips.into_iter().map(|mut ip| {
        ip.interface = ip.interface.map(|index| index + offset);
        ip
    }));
    result.routes.extend(ours.routes);
    result
}
