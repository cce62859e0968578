//! What an agent may do, and what it does.

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, SYSTEM, refused, text};
use serde_json::Value;

/// The token of node 1's agent is refused on node 2's objects, and taken on its own.
pub(crate) fn worth_its_node(cluster: &Cluster) -> anyhow::Result<()> {
    let agent = cluster.part("agent", 1)?;
    let token = cluster.kubectl(&format!(
        "-n {SYSTEM} create token bowline-agent --bound-object-kind Pod --bound-object-name {agent}"
    ))?;
    let token = token.trim();
    let as_agent = |words: &[&str]| {
        // The administrator's token must not be in the kubeconfig: it would win.
        let mut args = vec!["--token", token];
        args.extend(words);
        cluster.run("kubectl-as.sh", &args)
    };
    let mark = "{\"metadata\":{\"labels\":{\"touched\":\"yes\"}}}";
    let touch = |node: &str| as_agent(&["patch", "nodestate", node, "--type=merge", "-p", mark]);
    touch("n1").context("its own NodeState")?;
    refused(touch("n2"), "may not write NodeState n2")?;
    refused(as_agent(&["label", "node", "n2", "touched=yes"]), "may not change node n2")?;
    let blocks = cluster.get("addressblocks")?;
    let held_by = |block: &&Value| {
        let entries = block["spec"]["entries"].as_array().into_iter().flatten();
        entries.into_iter().any(|e| e["node"] == "n2" && e["state"] == "Allocated")
    };
    let items = blocks["items"].as_array().context("no blocks")?;
    let block = items.iter().find(held_by).context("no address is held by n2")?;
    let name = text(block, "/metadata/name")?;
    let emptied = "{\"spec\":{\"entries\":[]}}";
    // Agents have no right to patch blocks: only to replace them, which needs the version.
    refused(
        as_agent(&["patch", "addressblock", name, "--type=merge", "-p", emptied]),
        "forbidden",
    )?;
    let mut robbed = block.clone();
    robbed["spec"]["entries"] = serde_json::json!([]);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), robbed.to_string())?;
    let replaced = as_agent(&["replace", "-f", &file.path().to_string_lossy()]);
    refused(replaced, "another node holds it")
}

/// Bowline's accounts ask for nothing that they may not have.
pub(crate) fn grants_suffice(cluster: &Cluster) -> anyhow::Result<()> {
    let log = cluster.run("audit.sh", &[])?;
    let refusals: Vec<&str> = log.lines().filter(|l| l.ends_with(" forbidden")).collect();
    ensure!(refusals.is_empty(), "asked for without being allowed: {refusals:#?}");
    let agent = log.lines().filter(|l| l.starts_with("bowline-agent ")).count();
    ensure!(agent >= 5, "the audit log knows nothing of the agents: {log}");
    Ok(())
}
