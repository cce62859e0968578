//! `match_master_subnet`: the addresses of the node's device that another plugin's interface is made on.

use std::net::IpAddr;
use std::path::Path;

use cni::error::CniError;
use cni::netconf::NetConf;
use ipnet::IpNet;
use multinet::rules::Problem;

use super::ask::refused;
use super::server::pod_failure;
use crate::pod::policy;

/// Keys of plugins' configurations: a device's name (macvlan, ipvlan), a virtual function's place on
/// the bus (SR-IOV).
const MASTER: &str = "master";
const DEVICE_ID: &str = "deviceID";

/// The addresses of that device; `None` where any pool may serve. In the node's namespace.
pub(super) fn addresses(config: &NetConf) -> Result<Option<Vec<IpAddr>>, CniError> {
    let ipam = config.ipam.as_ref();
    if ipam.and_then(|ipam| ipam.match_master_subnet) != Some(true) {
        return Ok(None);
    }
    let text = |key: &str| config.other.get(key).and_then(|value| value.as_str());
    let named = text(MASTER).map(str::to_owned);
    let function = || physical_function(Path::new("/sys"), text(DEVICE_ID)?);
    let Some(device) = named.or_else(function) else {
        let message = format!(
            "needs the device that the interface is made on: the configuration names none by \
             {MASTER}, and no physical function belongs to its {DEVICE_ID}"
        );
        let value = text(DEVICE_ID).unwrap_or_default();
        return Err(refused(Problem::error("ipam.match_master_subnet", value, message)));
    };
    let view = policy::view().map_err(|e| pod_failure(&e))?;
    match view.link(&device) {
        Some(link) => Ok(Some(link.addresses.iter().map(IpNet::addr).collect())),
        None => {
            let message = "is no interface of this node";
            Err(refused(Problem::error(MASTER, device, message)))
        }
    }
}

/// The network device of the physical function that a virtual one belongs to.
fn physical_function(sys: &Path, device_id: &str) -> Option<String> {
    let is_address = device_id.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    if !is_address {
        return None; // it becomes a part of a path
    }
    let devices = sys.join("bus/pci/devices").join(device_id).join("physfn/net");
    let mut names: Vec<_> = std::fs::read_dir(devices).ok()?.flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    names.first()?.file_name().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_function_leads_to_its_physical_one() {
        let sys = tempfile::tempdir().unwrap();
        let net = sys.path().join("bus/pci/devices/0000:3b:02.1/physfn/net/ens1f0");
        std::fs::create_dir_all(net).unwrap();
        let find = |id| physical_function(sys.path(), id);
        assert_eq!(find("0000:3b:02.1").as_deref(), Some("ens1f0"));
        assert_eq!(find("0000:3b:02.7"), None);
        assert_eq!(find("../devices/0000:3b:02.1"), None);
    }

    #[test]
    fn it_is_asked_for_by_the_configuration_alone() {
        let read = |text: &str| addresses(&serde_json::from_str::<NetConf>(text).unwrap());
        assert_eq!(read(r#"{"ipam": {}}"#).unwrap(), None);
        let on = r#"{"master": "lo", "ipam": {"match_master_subnet": true}}"#;
        assert!(read(on).unwrap().is_some());
        for (config, word) in [
            (r#"{"ipam": {"match_master_subnet": true}}"#, "the configuration names none"),
            (r#"{"master": "gone0", "ipam": {"match_master_subnet": true}}"#, "no interface"),
        ] {
            let error = read(config).unwrap_err();
            assert!(error.msg.contains(word), "{}", error.msg);
        }
    }
}
