//! The demo's catalog: Networks with the same addresses, each with its two pools.

use anyhow::Context;
use std::path::Path;

/// A Network of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// VNI 56.
    Blue,
    /// VNI 57; the same addresses.
    Red,
    /// VNI 58, and MTU 9000 whatever the uplinks carry: its pods are on one node.
    Jumbo,
}

impl Network {
    /// All.
    pub const ALL: [Self; 3] = [Self::Blue, Self::Red, Self::Jumbo];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Red => "red",
            Self::Jumbo => "jumbo",
        }
    }

    fn vni(self) -> u32 {
        match self {
            Self::Blue => 56,
            Self::Red => 57,
            Self::Jumbo => 58,
        }
    }

    /// 0 = as the uplinks carry it.
    fn mtu(self) -> u32 {
        if self == Self::Jumbo { 9000 } else { 0 }
    }
}

/// Writes the catalog as a person would.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for network in Network::ALL {
        let path = folder.join(format!("{}.yaml", network.name()));
        let text = text(network);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn text(network: Network) -> String {
    let (name, vni, mtu) = (network.name(), network.vni(), network.mtu());
    format!(
        "\
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {{name: {name}}}
spec:
  vni: {vni}
  mtu: {mtu}
  namespaceSelector: {{}}
  ipPools: {{ipv4: [{name}-v4], ipv6: [{name}-v6]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: {name}-v4, labels: {{bowline.dev/network: {name}}}}}
spec: {{subnet: 10.0.0.0/24, gateway: 10.0.0.1, ips: [10.0.0.10-10.0.0.200]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: {name}-v6, labels: {{bowline.dev/network: {name}}}}}
spec: {{subnet: 'fd00::/64', gateway: 'fd00::1', ips: ['fd00::10-fd00::200']}}
"
    )
}
