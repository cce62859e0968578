//! What the runtime is told about an attachment. Pure.

use cni::result::{CniResult, Interface, IpConfig, Route};
use multinet::range::Family;
use multinet::types::mac::Mac;

use crate::journal::Attachment;
use crate::pod::Device;

/// The result of ADD in the form of 1.1.0.
pub(super) fn result_of(attachment: &Attachment) -> CniResult {
    let mut result = CniResult { cni_version: "1.1.0".into(), ..CniResult::default() };
    for (index, attached) in attachment.interfaces.iter().enumerate() {
        let plan = &attached.plan;
        let socket_path = match plan.device {
            Device::Memif => format!("@{}", plan.name),
            Device::Tap { .. } => String::new(),
        };
        result.interfaces.push(Interface {
            name: plan.name.clone(),
            mac: Mac(plan.mac).to_string(),
            mtu: Some(plan.mtu),
            sandbox: attachment.netns.display().to_string(),
            socket_path,
            pci_id: String::new(),
        });
        for address in &plan.addresses {
            let family = Family::of(address.addr());
            let mut gateways = attached.gateways.iter().filter(|g| Family::of(**g) == family);
            result.ips.push(IpConfig {
                address: address.to_string(),
                gateway: gateways.next().map(ToString::to_string),
                interface: Some(index),
            });
        }
        result.routes.extend(plan.routes.iter().map(|route| Route {
            dst: route.dst.to_string(),
            gw: route.gw.map(|gw| gw.to_string()),
            ..Route::default()
        }));
    }
    result
}
