//! Kubernetes' own tests, one of each kind (`make conformance` runs all 47), and Multus beside us.

use anyhow::{Context, ensure};
use bowline_e2e::Cluster;

/// DNS, session affinity, NodePort, the API server's proxy, host ports.
pub(crate) fn one_of_each(cluster: &Cluster) -> anyhow::Result<()> {
    let said = cluster.run("conformance/run.sh", &["one-of-each"])?;
    let last = said.lines().last().context("no result")?;
    ensure!(last.starts_with("conformance: 5 of 5 passed"), "{said}");
    Ok(())
}

/// Makes Multus the nodes' CNI, with Bowline's configuration as its delegate.
pub(crate) fn use_multus(cluster: &Cluster) -> anyhow::Result<()> {
    let path = cluster.scripts().join("manifests/nad-crd.yaml");
    cluster.apply(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    for node in [1, 2] {
        cluster.run("multus.sh", &[&node.to_string(), "on"])?;
    }
    Ok(())
}

/// Bowline is the nodes' CNI again.
pub(crate) fn drop_multus(cluster: &Cluster) -> anyhow::Result<()> {
    for node in [1, 2] {
        cluster.run("multus.sh", &[&node.to_string(), "off"])?;
    }
    Ok(())
}
