//! What a pod's interfaces of ours are, written on the pod: in `bowline.dev/network-status`, and in
//! the annotation that Multus would write where there is no Multus.

use std::sync::Arc;

use multinet::types::mac::Mac;
use serde_json::{Value, json};

use super::ask::Asker;
use super::device_info;
use super::server::CniServer;
use crate::catalog::ApiCatalog;
use crate::install::is_multus_in;
use crate::journal::{Attachment, Phase};

/// Ours.
const OWN: &str = "bowline.dev/network-status";
/// Everybody's (Network Plumbing Working Group, "Kubernetes Network Custom Resource Definition
/// De-facto Standard" 1.3, section 5).
const COMMON: &str = "k8s.v1.cni.cncf.io/network-status";

/// Tells, in the background: nothing waits for an annotation.
pub(super) fn tell(server: &CniServer, asker: &Asker, attachment: &Attachment) {
    let Some(api) = server.core.catalog.api() else { return };
    // Not the owner's: a virtual machine's claims have the machine's name.
    let (namespace, name) = (asker.namespace_name(), &asker.pod.name);
    let sandbox = &attachment.key.container_id;
    let all = server.core.attachments();
    let of_pod = all.iter().filter(|a| a.key.container_id == *sandbox && a.phase == Phase::Ready);
    let status: Vec<Value> = of_pod.flat_map(describe).collect();
    let text = Value::from(status).to_string();
    let mut annotations = json!({ OWN: text });
    // It may have been installed, or removed, since the last pod.
    if !is_multus_in(&server.settings.cni_conf_dir) {
        annotations[COMMON] = text.into();
    }
    let uid = attachment.owner.key();
    tokio::spawn(write(api.clone(), namespace.to_owned(), name.clone(), uid, annotations));
}

async fn write(
    api: Arc<ApiCatalog>,
    namespace: String,
    name: String,
    uid: String,
    annotations: Value,
) {
    let client = api.store().api().client();
    let written = bowline_kube::annotate_pod(client, &namespace, &name, &uid, annotations).await;
    if let Err(e) = written {
        tracing::warn!("network-status of pod {namespace}/{name} cannot be written: {e}");
    }
}

fn describe(attachment: &Attachment) -> Vec<Value> {
    let one = |interface: &crate::journal::AttachedInterface| {
        let plan = &interface.plan;
        let ips: Vec<String> = plan.addresses.iter().map(|a| a.addr().to_string()).collect();
        let mut status = json!({
            "name": interface.network,
            "interface": plan.name,
            "ips": ips,
            "mac": Mac(plan.mac).to_string(),
            "mtu": plan.mtu,
            "default": !interface.default_in.is_empty(),
        });
        if let Some(info) = device_info::describe(interface) {
            status["device-info"] = info;
        }
        status
    };
    attachment.interfaces.iter().map(one).collect()
}
