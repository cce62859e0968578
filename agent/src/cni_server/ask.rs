//! Who asks, and which interfaces a call is about: the CNI configuration's own, and those of the pod's
//! annotation.
//!
//! The annotation `bowline.dev/interfaces` is served on the call for `eth0`, and where Bowline is
//! chained behind another plugin, whose configuration then names no Network.

use bowline_kube::applications;
use cni::error::{CniError, code};
use cni::netconf::{InterfaceOptions, PortMapping, RuntimeConfig};
use cni::rpc::Request;
use multinet::auto::Application;
use multinet::pod::{self, Identity, MAIN_INTERFACE, NetworkSelection, Stickiness, Wish};
use multinet::rules::Problem;
use multinet::types::block::Owner;
use multinet::types::core::{Node, Pod, PodSpec};
use multinet::types::meta::{Labels, ObjectMeta};
use multinet::types::network::DEFAULT_NETWORK;

use crate::catalog::{PodObjects, Snapshot, Source};
use crate::journal::{HostPort, Protocol};

/// Where a runtime describes the pod (containerd, CRI-O) if the configuration declares the capability.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// What the kubelet and the runtime take for the UID of a static pod, whose object has another.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    /// The pod: the catalog's object, else what the runtime says of it.
    pub(super) pod: ObjectMeta,
    /// Its namespace, where the catalog has it.
    pub(super) namespace: Option<ObjectMeta>,
    /// The labels by which a Network admits it.
    pub(super) namespace_labels: Labels,
    /// Labels of this node.
    pub(super) node_labels: Labels,
    /// What its claims are made for.
    pub(super) uid: String,
    /// Whom its automatic pools are made for, where it asks for some.
    pub(super) application: Option<Application>,
}

impl Asker {
    /// Looks the pod up.
    pub(super) async fn find(
        catalog: &Source,
        snapshot: &Snapshot,
        request: &Request,
        node: &str,
    ) -> Result<Self, CniError> {
        let (namespace, name) = pod_names(request);
        let found = catalog.pod(snapshot, namespace, name).await;
        let found = found.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?;
        let mut asker = Self::new(snapshot, request, node, &found);
        asker.application = application(catalog, &asker.pod).await?;
        // A runtime without Kubernetes (cnitool) names no pod.
        if catalog.api().is_some() && !request.pod.name.is_empty() {
            same_pod(request, found.pod.as_deref())?;
        }
        Ok(asker)
    }

    fn new(snapshot: &Snapshot, request: &Request, node: &str, found: &PodObjects) -> Self {
        let args = &request.pod;
        let (namespace_name, name) = pod_names(request);
        let known = found.pod.as_ref();
        let described = || ObjectMeta {
            annotations: described_annotations(request),
            ..ObjectMeta::named(name)
        };
        let mut pod = known.map_or_else(described, |p| p.metadata.clone());
        pod.namespace = Some(namespace_name.to_owned());
        let config_hash = pod.annotations.get(CONFIG_HASH).cloned();
        let given = [config_hash.as_ref(), Some(&args.uid), pod.uid.as_ref()];
        let mut given = given.into_iter().flatten().filter(|uid| !uid.is_empty());
        let uid = given.next().unwrap_or(&request.container_id).clone();
        drop(given);
        let namespace = found.namespace.as_ref().map(|n| n.metadata.clone());
        let mut labels = namespace.as_ref().map(|n| n.labels.clone()).unwrap_or_default();
        // The API server puts this one on every namespace.
        let own_name = "kubernetes.io/metadata.name".to_owned();
        labels.entry(own_name).or_insert_with(|| namespace_name.to_owned());
        let node = snapshot.get::<Node>(None, node);
        let node_labels = node.map(|n| n.metadata.labels.clone()).unwrap_or_default();
        Self { pod, namespace, namespace_labels: labels, node_labels, uid, application: None }
    }

    /// Namespace of the pod.
    pub(super) fn namespace_name(&self) -> &str {
        self.pod.namespace.as_deref().unwrap_or_default()
    }

    /// Whom its claims belong to.
    pub(super) fn owner(&self) -> Owner {
        match self.identity().owner {
            // What the runtime says counts: it knows static pods, and pods without an object.
            Owner::Pod { namespace, name, .. } => {
                Owner::Pod { namespace, name, uid: self.uid.clone() }
            }
            node @ Owner::Node { .. } => node,
        }
    }

    /// The element of Multus' annotation that an interface comes from, and its place there.
    fn selection(&self, ifname: &str) -> Result<Option<(usize, NetworkSelection)>, CniError> {
        pod::network_selection(&self.pod, ifname).map_err(refused)
    }

    /// Interfaces that Multus' annotation asks for.
    pub(super) fn interfaces_of_multus(&self) -> Result<Vec<String>, CniError> {
        let Some(text) = self.pod.annotations.get(pod::NETWORKS) else { return Ok(Vec::new()) };
        let selections = pod::parse_networks(text, self.namespace_name()).map_err(refused)?;
        Ok(selections.into_iter().map(|selection| selection.interface).collect())
    }

    /// Namespace and name of the NetworkAttachmentDefinition that an interface comes from.
    pub(super) fn definition(&self, ifname: &str) -> Option<(String, String)> {
        pod::definition_of(&self.pod, ifname)
    }

    /// Pods of StatefulSets and virtual machines keep their addresses over a new UID.
    pub(super) fn is_sticky(&self) -> bool {
        self.identity().sticky
    }

    /// Whether a virtual machine migrates to the pod.
    pub(super) fn moves(&self) -> bool {
        self.identity().moves
    }

    fn identity(&self) -> Identity {
        let mut pod = Pod::new("", PodSpec::default());
        pod.metadata = self.pod.clone();
        pod::identity(&pod, Stickiness::default())
    }
}

/// The application of a pod that asks for automatic pools. A directory knows the pod's own controller
/// only.
async fn application(catalog: &Source, pod: &ObjectMeta) -> Result<Option<Application>, CniError> {
    if ![pod::SUBNET, pod::SUBNETS].iter().any(|key| pod.annotations.contains_key(*key)) {
        return Ok(None);
    }
    let controller = pod.owner_references.iter().find(|o| o.controller == Some(true)).cloned();
    let Some(controller) = controller else { return Ok(None) };
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    let Some(api) = catalog.api() else {
        return Ok(Some(applications::application(namespace, controller)));
    };
    let what = format!("{} {}", controller.kind, controller.name);
    let found = applications::outermost(api.store().api().client(), namespace, controller).await;
    let again = |e| CniError::new(code::TRY_AGAIN_LATER, format!("whom {what} belongs to: {e}"));
    found.map(Some).map_err(again)
}

/// Namespace and name of the pod, as the runtime gives them.
fn pod_names(request: &Request) -> (&str, &str) {
    let args = &request.pod;
    let namespace = if args.namespace.is_empty() { "default" } else { &args.namespace };
    let name = if args.name.is_empty() { &request.container_id } else { &args.name };
    (namespace, name)
}

/// Is the API's pod the one that the runtime makes a sandbox for? What a pod of the same name asks
/// for is not its business.
fn same_pod(request: &Request, found: Option<&Pod>) -> Result<(), CniError> {
    let (namespace, name) = pod_names(request);
    let again = |message: String| Err(CniError::new(code::TRY_AGAIN_LATER, message));
    let Some(pod) = found else {
        return again(format!("pod {namespace}/{name} does not exist; was it deleted?"));
    };
    let wanted = &request.pod.uid;
    let static_pod = pod.metadata.annotations.contains_key(CONFIG_HASH);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !wanted.is_empty() && wanted != uid && !static_pod {
        return again(format!(
            "pod {namespace}/{name} has UID {uid} by now, the runtime asks for {wanted}; the older \
             pod is gone"
        ));
    }
    Ok(())
}

fn described_annotations(request: &Request) -> Labels {
    let config = request.config.runtime_config.as_ref();
    let described = config.and_then(|c| c.other.get(POD_ANNOTATIONS));
    described.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}

/// One interface that the call shall make.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// What is wished.
    pub(super) wish: Wish,
    /// Is it the one that the runtime named?
    pub(super) own: bool,
    /// Its place among the pod's interfaces, where that is known.
    pub(super) index: Option<usize>,
}

/// The interfaces that the call shall make, its own first.
pub(super) fn interfaces(request: &Request, asker: &Asker) -> Result<Vec<Asked>, CniError> {
    let chained = request.prev_result.is_some() && request.config.network.is_empty();
    let main = request.ifname == MAIN_INTERFACE;
    let mut asked = Vec::new();
    if !chained {
        let wish = own_wish(request, asker)?;
        let index = pod::place_of(&asker.pod, &request.ifname).map_err(refused)?;
        asked.push(Asked { wish, own: true, index });
    }
    let annotation = asker.pod.annotations.get(pod::INTERFACES);
    if let Some(text) = annotation.filter(|_| chained || main) {
        let taken = ["lo", request.ifname.as_str()];
        let wishes = pod::parse_interfaces(text, &taken).map_err(refused)?;
        let further = wishes.into_iter().enumerate();
        asked.extend(further.map(|(place, wish)| Asked {
            wish,
            own: false,
            index: Some(place + 1),
        }));
    }
    Ok(asked)
}

/// The interface that the runtime named.
fn own_wish(request: &Request, asker: &Asker) -> Result<Wish, CniError> {
    let config = &request.config;
    let network = if config.network.is_empty() { DEFAULT_NETWORK } else { &config.network };
    let mut wish = wish_of(&request.ifname, network, config.interface.as_ref())?;
    let runtime = config.runtime_config.clone().unwrap_or_default();
    if let Some((_, selection)) = asker.selection(&request.ifname)? {
        selection.check().map_err(refused)?;
        wish.ips = selection.ips;
        wish.mac = selection.mac;
        wish.default_route = selection.default_route;
    }
    add_exact(&mut wish, &runtime)?;
    if let Some(text) = runtime.mac.filter(|mac| !mac.is_empty()) {
        let parsed = text.parse();
        let mac =
            parsed.map_err(|e| refused(Problem::error("runtimeConfig.mac", &text, format!("{e}"))));
        wish.mac = Some(mac?);
    }
    Ok(wish)
}

/// The host ports that the runtime asks for.
pub(super) fn host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, Problem> {
    const AT: &str = "runtimeConfig.portMappings";
    let one = |mapping: &PortMapping| {
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                let message = "is not one of tcp, udp, sctp";
                return Err(Problem::error(format!("{AT}.protocol"), other, message));
            }
        };
        let host_ip =
            match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Problem::error(format!("{AT}.hostIP"), text, "is not an address")
                })?),
            };
        let (host_port, container_port) = (mapping.host_port, mapping.container_port);
        if container_port == 0 {
            return Err(Problem::error(format!("{AT}.containerPort"), 0, "is no port"));
        }
        Ok(HostPort { host_ip, host_port, container_port, protocol })
    };
    // Port 0 on the node: none is wanted.
    mappings.iter().filter(|m| m.host_port != 0).map(one).collect()
}

/// Addresses that the runtime asks for.
fn add_exact(wish: &mut Wish, runtime: &RuntimeConfig) -> Result<(), CniError> {
    for text in &runtime.ips {
        let host = text.split('/').next().unwrap_or_default();
        match host.parse() {
            Ok(address) if wish.ips.contains(&address) => {}
            Ok(address) => wish.ips.push(address),
            Err(_) => {
                let problem = Problem::error("runtimeConfig.ips", text, "is not an address");
                return Err(refused(problem));
            }
        }
    }
    Ok(())
}

/// Another plugin's interface, of which only the addresses are our business.
pub(super) fn lan_interface(request: &Request, asker: &Asker) -> Result<Asked, CniError> {
    let mut wish = Wish {
        at: "the CNI configuration's ipam".into(),
        name: request.ifname.clone(),
        ..Wish::default()
    };
    let index = pod::place_of(&asker.pod, &request.ifname).map_err(refused)?;
    if let Some((_, selection)) = asker.selection(&request.ifname)? {
        wish.ips = selection.ips;
        wish.at = selection.at;
    }
    add_exact(&mut wish, &request.config.runtime_config.clone().unwrap_or_default())?;
    Ok(Asked { wish, own: true, index })
}

/// The configuration's options are the annotation's keys: one reader for both.
fn wish_of(
    name: &str,
    network: &str,
    options: Option<&InterfaceOptions>,
) -> Result<Wish, CniError> {
    const AT: &str = "the CNI configuration's interface";
    let mut object = serde_json::to_value(options.cloned().unwrap_or_default())
        .map_err(|e| CniError::new(code::INTERNAL, e.to_string()))?;
    object["name"] = name.into();
    object["network"] = network.into();
    let text = serde_json::Value::from(vec![object]).to_string();
    let wishes = pod::parse_interfaces(&text, &["lo"]).map_err(|mut problem| {
        problem.field = problem.field.replace(&format!("{}[0]", pod::INTERFACES), AT);
        refused(problem)
    })?;
    let wish = wishes.into_iter().next().unwrap_or_default();
    Ok(Wish { at: AT.into(), ..wish })
}

/// What no later object can cure.
#[expect(clippy::needless_pass_by_value, reason = "it serves as the argument of map_err")]
pub(super) fn refused(problem: Problem) -> CniError {
    CniError::new(code::REFUSED, problem.to_string())
}

#[cfg(test)]
mod tests {
    use cni::netconf::NetConf;
    use cni::rpc::{CallMode, Command, PodArgs};
    use multinet::types::network::InterfaceType;

    use super::*;

    fn request(ifname: &str, network: &str) -> Request {
        Request {
            version: cni::rpc::VERSION,
            command: Command::Add,
            mode: CallMode::Interface,
            container_id: "c1".into(),
            netns: "/proc/self/ns/net".into(),
            ifname: ifname.into(),
            pod: PodArgs { namespace: "ns".into(), name: "p".into(), ..PodArgs::default() },
            config: NetConf { network: network.into(), ..NetConf::default() },
            prev_result: None,
        }
    }

    fn described(request: &mut Request, annotation: &str) {
        let annotations = serde_json::json!({ pod::INTERFACES: annotation });
        let other = [(POD_ANNOTATIONS.to_owned(), annotations)].into();
        request.config.runtime_config = Some(RuntimeConfig { other, ..RuntimeConfig::default() });
    }

    fn names(request: &Request) -> Vec<String> {
        let asker = Asker::new(&Snapshot::default(), request, "n1", &PodObjects::default());
        let asked = interfaces(request, &asker).unwrap();
        asked.iter().map(|a| format!("{}@{}", a.wish.network, a.wish.name)).collect()
    }

    #[test]
    fn the_annotation_is_served_on_eth0_and_where_chained() {
        let two = r#"[{"name":"eth1","network":"blue"},{"name":"memif1","network":"red"}]"#;
        let mut eth0 = request("eth0", "green");
        described(&mut eth0, two);
        assert_eq!(names(&eth0), ["green@eth0", "blue@eth1", "red@memif1"]);
        let net1 = Request { ifname: "net1".into(), ..eth0.clone() };
        assert_eq!(names(&net1), ["green@net1"]);
        let mut chained = request("eth0", "");
        described(&mut chained, two);
        chained.prev_result = Some(cni::result::CniResult::default());
        assert_eq!(names(&chained), ["blue@eth1", "red@memif1"]);
    }

    #[test]
    fn without_a_network_the_call_is_for_default() {
        assert_eq!(names(&request("eth0", "")), ["default@eth0"]);
    }

    #[test]
    fn the_configurations_options_are_read_like_the_annotations() {
        let options = InterfaceOptions { rx_queues: Some(2), ..InterfaceOptions::default() };
        let wish = wish_of("memif0", "blue", Some(&options)).unwrap();
        assert_eq!((wish.kind, wish.rx_queues), (Some(InterfaceType::Memif), Some(2)));
        let bad = InterfaceOptions { mode: Some("l7".into()), ..InterfaceOptions::default() };
        let error = wish_of("memif0", "blue", Some(&bad)).unwrap_err();
        assert!(error.msg.contains("the CNI configuration's interface.mode"), "{}", error.msg);
    }

    #[test]
    fn a_pod_without_uid_is_known_by_its_sandbox() {
        let asker =
            Asker::new(&Snapshot::default(), &request("eth0", ""), "n1", &PodObjects::default());
        assert_eq!(asker.uid, "c1");
        assert_eq!(asker.namespace_labels["kubernetes.io/metadata.name"], "ns");
    }
}
