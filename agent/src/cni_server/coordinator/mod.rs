//! The chained plugin `coordinator`: a pod's routes, behind the plugin that made its interface.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | the configuration over the SpiderCoordinator `default`; pure |
//! | `plan` | routes and rules of an interface; pure |
//! | `follow` | prefixes that change while the pod runs |
//! | `marks` | connections that came in by the link from the node |
//!
//! What is written follows from what is there, so that the same call again changes nothing. A DEL
//! needs neither the pod's namespace nor the SpiderCoordinator.

pub(super) mod follow;
mod marks;
mod plan;
mod settings;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cni::error::{CniError, code};
use cni::result::CniResult;
use cni::rpc::{Command, Outcome, Request};
use ipnet::IpNet;
use multinet::types::coordinator::{DEFAULT_COORDINATOR, SpiderCoordinator};
use multinet::types::mac::{Mac, stable_hash};

use super::ask::{Asker, refused};
use super::detect::{self, Conflicts, Failed, Taken};
use super::lan::{self, DEFAULT_ROUTE_NIC};
use super::server::{CniServer, key_of, pod_failure};
use crate::journal::AttachmentKey;
use crate::notes::Coordinated;
use crate::pod::policy::{self, Link, Rule, TableRoute, View};
use crate::pod::{self, Netns, PodError, Question, Veth};
use plan::{Input, LINK, PRIORITY, Plan};
use settings::{Mode, Settings};

/// Serves a call in coordinator mode.
pub(super) async fn serve(server: &Arc<CniServer>, request: &Request) -> Result<Outcome, CniError> {
    match request.command {
        Command::Add => {
            let key = key_of(request)?;
            let _lock = server.lock(&key.container_id).await;
            add(server, request, &key).await.map(Outcome::Result)
        }
        Command::Del => {
            let key = key_of(request)?;
            let _lock = server.lock(&key.container_id).await;
            follow::forget(server, &key)?;
            let request = request.clone();
            server.blocking(move || del(&request, &key)).await?.map_err(|e| pod_failure(&e))?;
            Ok(Outcome::Done)
        }
        Command::Check => check(server, request).await.map(|()| Outcome::Done),
        Command::Gc => follow::gc(server, request).await.map(|()| Outcome::Done),
        Command::Status => Ok(Outcome::Done),
    }
}

/// What a call works on.
struct Call {
    key: AttachmentKey,
    settings: Settings,
    netns: Arc<Netns>,
    gateways: Vec<IpAddr>,
    to_come: Vec<String>,
    asker: Asker,
}

impl Call {
    async fn new(
        server: &CniServer,
        request: &Request,
        key: AttachmentKey,
    ) -> Result<Self, CniError> {
        let netns = Arc::new(Netns::open(Path::new(&request.netns)).map_err(|e| pod_failure(&e))?);
        let snapshot = server.look().await?;
        let cluster = snapshot.get::<SpiderCoordinator>(None, DEFAULT_COORDINATOR);
        let asker =
            Asker::find(&server.core.catalog, &snapshot, request, &server.core.node).await?;
        let named = asker.pod.annotations.get(DEFAULT_ROUTE_NIC).map(String::as_str);
        let settings = settings::read(request, cluster.as_deref(), named)?;
        let gateways = gateways_of(request.prev_result.as_ref(), &key.ifname);
        let to_come = asker.interfaces_of_multus()?;
        Ok(Call { key, settings, netns, gateways, to_come, asker })
    }

    /// Asks the interface's link before anything is routed to it.
    async fn detect(&self, server: &CniServer) -> Result<(), CniError> {
        let Settings { mode, detect_conflict, detect_gateway, .. } = self.settings;
        if mode == Mode::Disabled {
            return Ok(());
        }
        let view = self.netns.run(policy::view).map_err(|e| pod_failure(&e))?;
        let Some(link) = view.link(&self.key.ifname).filter(|link| link.kind != "tun") else {
            return Ok(()); // Bowline's own: its pools say what is to be asked
        };
        let gateway = |own: IpAddr| {
            self.gateways.iter().copied().find(|gw| detect_gateway && gw.is_ipv4() == own.is_ipv4())
        };
        let question = |address: IpAddr| Question {
            address,
            conflict: detect_conflict,
            gateway: gateway(address),
        };
        let questions = link.addresses.iter().map(|address| question(address.addr()));
        let questions = questions.filter(|q| q.conflict || q.gateway.is_some()).collect();
        match detect::ask(server, &self.netns, &self.key.ifname, questions).await {
            Ok(()) => Ok(()),
            Err(Failed::Other(error)) => Err(error),
            Err(Failed::Taken(taken)) => Err(self.set_aside(server, &taken).await),
        }
    }

    /// The address is configured already: the pod's next sandbox gets another one, if Bowline gave it.
    async fn set_aside(&self, server: &CniServer, taken: &[Taken]) -> CniError {
        let mut conflicts = Conflicts::default();
        let domain = |_: &_| lan::DOMAIN.to_owned();
        let aside = conflicts.set_aside(server, &self.asker, &self.key, domain, taken);
        if let Err(error) = aside.await {
            return error;
        }
        let sentences: Vec<_> = taken.iter().map(detect::sentence).collect();
        let message =
            format!("{}; the next try takes another address of the pool", sentences.join(", and "));
        CniError::new(code::TRY_AGAIN_LATER, message)
    }

    /// What there is and what is wanted.
    fn plan(&self) -> Result<Option<(Plan, View, Vec<IpAddr>)>, CniError> {
        let view = self.netns.run(policy::view).map_err(|e| pod_failure(&e))?;
        if view.link(&self.key.ifname).is_some_and(|link| link.kind == "tun") {
            return Ok(None); // Bowline's own: its agent has set the routes
        }
        let host = policy::view().map_err(|e| pod_failure(&e))?;
        let node = addresses_of_node(&host);
        let input = Input {
            settings: &self.settings,
            ifname: &self.key.ifname,
            view: &view,
            gateways: &self.gateways,
            node: &node,
            to_come: &self.to_come,
        };
        let plan = plan::plan(&input).map_err(refused)?;
        Ok(plan.map(|plan| (plan, view, node)))
    }

    fn veth(&self) -> Veth {
        let sandbox = &self.key.container_id;
        Veth {
            host: host_end(sandbox),
            host_mac: Mac::for_interface(sandbox, "node").0,
            pod: LINK.to_owned(),
            pod_mac: Mac::for_interface(sandbox, LINK).0,
            mtu: self.settings.link_mtu,
        }
    }

    /// Makes everything. What is there already is kept.
    fn apply(&self) -> Result<Option<[u8; 6]>, CniError> {
        let Some((plan, view, node)) = self.plan()? else { return Ok(None) };
        let Some(link) = view.link(&self.key.ifname) else { return Ok(None) };
        let mac = self.settings.mac_prefix.and_then(|prefix| mac_of(prefix, link));
        let veth = self.veth();
        if plan.link && self.key.ifname == plan::FIRST {
            pod::make_veth(&veth, &self.netns).map_err(|e| pod_failure(&e))?;
        }
        self.netns
            .run(|| self.apply_in_pod(&plan, &veth, &node, mac))
            .map_err(|e| pod_failure(&e))?;
        self.apply_on_node(&plan, &veth, &view, link).map_err(|e| pod_failure(&e))?;
        Ok(mac)
    }

    fn apply_in_pod(
        &self,
        plan: &Plan,
        veth: &Veth,
        node: &[IpAddr],
        mac: Option<[u8; 6]>,
    ) -> Result<(), PodError> {
        let ifname = &self.key.ifname;
        pod::tune(ifname, mac, self.settings.queue)?;
        if plan.link {
            pod::tune(LINK, None, None)?;
            for address in node {
                pod::put_neighbour(LINK, *address, veth.host_mac)?;
            }
            if let Some(address) = self.settings.link_address {
                pod::put_address(LINK, IpNet::from(address))?;
            }
        }
        if let Some(filter) = self.settings.rp_filter {
            for device in ["all", ifname, LINK] {
                set_rp_filter(device, filter)?;
            }
        }
        plan.routes.iter().try_for_each(policy::put_route)?;
        plan.removed.iter().try_for_each(policy::remove_route)?;
        plan.rules.iter().try_for_each(policy::put_rule)?;
        if plan.link && ifname == plan::FIRST { marks::write() } else { Ok(()) }
    }

    /// The node's routes to the pod's addresses.
    fn apply_on_node(
        &self,
        plan: &Plan,
        veth: &Veth,
        view: &View,
        link: &Link,
    ) -> Result<(), PodError> {
        let dev = if plan.link { Some(veth.host.clone()) } else { peer_of_first(view)? };
        // eth0 of a Bowline Network has no end on the node: its realm has no route to this address.
        let Some(dev) = dev else { return Ok(()) };
        let table = self.settings.host_table;
        for address in link.addresses.iter().map(IpNet::addr) {
            let dst = IpNet::from(address);
            policy::put_route(&TableRoute { table, dst, gw: None, dev: dev.clone(), src: None })?;
            policy::put_rule(&host_rule(address, table))?;
            if plan.link {
                pod::put_neighbour(&dev, address, veth.pod_mac)?;
            }
        }
        Ok(())
    }
}

async fn add(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Result<CniResult, CniError> {
    let Some(previous) = request.prev_result.clone() else {
        let message = "coordinator is a chained plugin: put it behind the one that makes the \
                       interface";
        return Err(CniError::new(code::INVALID_CONFIG, message));
    };
    let call = Call::new(server, request, key.clone()).await?;
    call.detect(server).await?;
    if call.settings.mode != Mode::Disabled {
        let pod = Coordinated {
            request: request.clone(),
            netns_inode: call.netns.inode(),
            through_node: call.settings.through_node.clone(),
        };
        follow::remember(server, key, &pod)?;
    }
    let mac = server.blocking(move || call.apply()).await??;
    let mut result = previous;
    if let Some(mac) = mac {
        let ours = |i: &&mut cni::result::Interface| i.name == key.ifname && !i.sandbox.is_empty();
        for interface in result.interfaces.iter_mut().filter(ours) {
            interface.mac = Mac(mac).to_string();
        }
    }
    Ok(result)
}

/// Is everything that an ADD would write still there?
async fn check(server: &CniServer, request: &Request) -> Result<(), CniError> {
    let call = Call::new(server, request, key_of(request)?).await?;
    let lost = server.blocking(move || call.lost()).await??;
    match lost {
        None => Ok(()),
        Some(what) => Err(CniError::new(code::CHECK_FAILED, format!("the pod has lost {what}"))),
    }
}

impl Call {
    fn lost(&self) -> Result<Option<String>, CniError> {
        let Some((plan, view, _)) = self.plan()? else { return Ok(None) };
        if plan.link && view.link(LINK).is_none() {
            return Ok(Some(format!("its link {LINK} to the node")));
        }
        if let Some(rule) = plan.rules.iter().find(|rule| !view.rules.contains(rule)) {
            return Ok(Some(format!("the rule {rule}")));
        }
        let same = |a: &TableRoute, b: &TableRoute| {
            (a.table, a.dst, a.gw, &a.dev) == (b.table, b.dst, b.gw, &b.dev)
        };
        let mut tables = plan.routes.iter().filter(|route| route.table != policy::MAIN_TABLE);
        let lost = tables.find(|route| !view.ours.iter().any(|known| same(known, route)));
        Ok(lost.map(|route| format!("the route {route}")))
    }
}

/// Takes back what is on the node; what is in the pod goes with its namespace.
pub(super) fn del(request: &Request, key: &AttachmentKey) -> Result<(), PodError> {
    if key.ifname == plan::FIRST {
        pod::remove_veth(&host_end(&key.container_id))?;
    }
    let addresses = addresses_of(request.prev_result.as_ref(), &key.ifname);
    let view = policy::view()?;
    let (mine, others): (Vec<_>, Vec<_>) = view.ours.iter().partition(|route| {
        route.dst.prefix_len() == route.dst.max_prefix_len()
            && addresses.contains(&route.dst.addr())
    });
    mine.into_iter().try_for_each(policy::remove_route)?;
    // The last pod's routes are gone: nothing needs the table.
    for rule in view.rules.iter().filter(|r| r.priority == PRIORITY && r.from.is_none()) {
        let of_rule = |r: &&&TableRoute| {
            r.table == rule.table && r.dst.addr().is_ipv4() == (rule.family == 4)
        };
        if rule.mark.is_none() && !others.iter().any(|r| of_rule(&r)) {
            policy::remove_rule(rule)?;
        }
    }
    Ok(())
}

/// The node's end of a sandbox's link: 15 characters at most, the same for each call.
fn host_end(sandbox: &str) -> String {
    let hash = format!("{:016x}", stable_hash(&["coordinator", sandbox]));
    format!("veth{}", &hash[..11])
}

fn host_rule(address: IpAddr, table: u32) -> Rule {
    let family = if address.is_ipv4() { 4 } else { 6 };
    Rule { family, from: None, mark: None, table, priority: PRIORITY }
}

fn addresses_of_node(host: &View) -> Vec<IpAddr> {
    let own = host.links.iter().filter(|link| link.is_the_nodes());
    own.flat_map(|l| l.addresses.iter().map(IpNet::addr)).collect()
}

/// The device on the node that `eth0` is connected to, where it is a pair of Ethernet devices.
fn peer_of_first(pod: &View) -> Result<Option<String>, PodError> {
    let first = pod.link(plan::FIRST).filter(|link| link.kind == "veth");
    let Some((index, peer)) = first.and_then(|link| Some((link.index, link.under?))) else {
        return Ok(None);
    };
    let host = policy::view()?;
    let found = host.links.iter().find(|l| l.index == peer && l.under == Some(index));
    Ok(found.map(|link| link.name.clone()))
}

fn gateways_of(result: Option<&CniResult>, ifname: &str) -> Vec<IpAddr> {
    let ips = ips_of(result, ifname);
    ips.filter_map(|ip| ip.gateway.as_deref()?.parse().ok()).collect()
}

fn addresses_of(result: Option<&CniResult>, ifname: &str) -> Vec<IpAddr> {
    let ips = ips_of(result, ifname);
    ips.filter_map(|ip| Some(ip.address.parse::<IpNet>().ok()?.addr())).collect()
}

/// Addresses of an interface in a result; one without interface belongs to the call's.
fn ips_of<'a>(
    result: Option<&'a CniResult>,
    ifname: &'a str,
) -> impl Iterator<Item = &'a cni::result::IpConfig> {
    result.into_iter().flat_map(move |result| {
        result.ips.iter().filter(move |ip| {
            let interface = ip.interface.and_then(|index| result.interfaces.get(index));
            interface.is_none_or(|interface| interface.name == ifname)
        })
    })
}

/// The prefix and the interface's IPv4 address, else the end of its IPv6 address. Devices that share
/// their parent's Ethernet address cannot have one of their own.
fn mac_of(prefix: [u8; 2], link: &Link) -> Option<[u8; 6]> {
    if link.kind == "ipvlan" {
        return None;
    }
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    let mut addresses = link.addresses.iter().map(IpNet::addr);
    let address = addresses.clone().find(IpAddr::is_ipv4).or_else(|| addresses.next())?;
    let [a, b, c, d] = of(address);
    Some([prefix[0], prefix[1], a, b, c, d])
}

fn set_rp_filter(device: &str, filter: u8) -> Result<(), PodError> {
    let path = PathBuf::from("/proc/sys/net/ipv4/conf").join(device).join("rp_filter");
    if !path.exists() {
        return Ok(()); // a pod without such a device
    }
    fs::write(&path, filter.to_string())
        .map_err(|e| PodError::new(format!("write {filter} to {}", path.display()), e))
}
