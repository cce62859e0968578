//! CHECK and STATUS: is what was made still there, and can more be made?

use std::path::Path;

use cni::error::{CniError, code};
use cni::rpc::Request;
use multinet::types::mac::Mac;

use super::result::result_of;
use super::server::{CniServer, pod_failure};
use crate::core::same_netns;
use crate::dataplane;
use crate::journal::{Attachment, AttachmentKey, Phase};
use crate::pod::{self, Device, Found, InterfacePlan};

/// Serves a CHECK.
pub(super) async fn check(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Result<(), CniError> {
    let attachment = server.core.attachment(key).filter(|a| a.phase == Phase::Ready);
    let Some(attachment) = attachment else {
        return Err(failed(format!("{key} is not attached; the pod has to be created anew")));
    };
    compare_result(request, &attachment)?;
    let netns = same_netns(Path::new(&request.netns), attachment.netns_inode).map_err(failed)?;
    let plans: Vec<InterfacePlan> = attachment.interfaces.iter().map(|i| i.plan.clone()).collect();
    server
        .blocking(move || {
            for plan in &plans {
                let found = netns.run(|| pod::inspect(&plan.name)).map_err(|e| pod_failure(&e))?;
                compare_device(plan, found)?;
            }
            Ok(())
        })
        .await??;
    check_dataplane(server, &attachment).await
}

/// Serves a STATUS: can an ADD be served now?
pub(super) async fn status(server: &CniServer) -> Result<(), CniError> {
    if server.dataplane.hello().borrow().is_none() {
        return Err(CniError::new(
            code::NOT_AVAILABLE,
            "the data plane is away; is bowline-dataplane running?",
        ));
    }
    server.look().await.map(drop)
}

/// Everything of ours that the runtime was told must still be true.
fn compare_result(request: &Request, attachment: &Attachment) -> Result<(), CniError> {
    let Some(told) = &request.prev_result else { return Ok(()) };
    let ours = result_of(attachment);
    for interface in &ours.interfaces {
        if !told.interfaces.iter().any(|t| t.name == interface.name && t.mac == interface.mac) {
            let what = format!("interface {} {}", interface.name, interface.mac);
            return Err(failed(format!("{what} is attached, but prevResult lacks it")));
        }
    }
    for ip in &ours.ips {
        if !told.ips.iter().any(|t| t.address == ip.address) {
            return Err(failed(format!("{} is attached, but prevResult lacks it", ip.address)));
        }
    }
    Ok(())
}

fn compare_device(plan: &InterfacePlan, found: Option<Found>) -> Result<(), CniError> {
    let name = &plan.name;
    let Some(found) = found else {
        return Err(failed(format!("the pod has no interface {name} any more")));
    };
    let (kinds, alias): (&[&str], _) = match plan.device {
        Device::Tap { .. } => (&["tun"], pod::TAP_ALIAS),
        // Beside a memif stands a dummy, or a tap where the kernel has none.
        Device::Memif => (&["dummy", "tun"], pod::MEMIF_ALIAS),
    };
    if !kinds.contains(&found.kind.as_str()) || found.alias != alias {
        return Err(failed(format!("{name} is not the device that Bowline made")));
    }
    if found.mac != plan.mac {
        let mac = <[u8; 6]>::try_from(found.mac.as_slice()).map(Mac).unwrap_or_default();
        return Err(failed(format!("{name} has MAC {mac}, not {}", Mac(plan.mac))));
    }
    if found.mtu != plan.mtu {
        return Err(failed(format!("{name} has MTU {}, not {}", found.mtu, plan.mtu)));
    }
    if !found.up {
        return Err(failed(format!("{name} is down")));
    }
    let mut addresses = plan.addresses.iter().map(ipnet::IpNet::addr);
    if let Some(gone) = addresses.find(|a| !found.addresses.iter().any(|f| f.addr() == *a)) {
        return Err(failed(format!("{name} has lost the address {gone}")));
    }
    let carries = matches!(plan.device, Device::Tap { .. });
    match plan.routes.iter().find(|r| carries && !found.routes.contains(r)) {
        Some(route) => Err(failed(format!("{name} has lost the route to {}", route.dst))),
        None => Ok(()),
    }
}

async fn check_dataplane(server: &CniServer, attachment: &Attachment) -> Result<(), CniError> {
    let state = dataplane::actual_state(&server.settings.dataplane_socket).await;
    let state = state.map_err(|e| failed(e.to_string()))?;
    for interface in &attachment.interfaces {
        let id = attachment.key.interface_id(&interface.plan.name);
        let Some(status) = state.interfaces.iter().find(|s| s.id == id) else {
            return Err(failed(format!("the data plane does not know {id}")));
        };
        // A memif without client waits, and that is the pod's own business.
        let down = status.link == i32::from(api::interface_status::Link::Down);
        if down {
            return Err(failed(format!("{id} is down in the data plane: {}", status.reason)));
        }
    }
    Ok(())
}

fn failed(message: String) -> CniError {
    CniError::new(code::CHECK_FAILED, message)
}
