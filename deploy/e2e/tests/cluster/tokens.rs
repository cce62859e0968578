//! What an agent may do, and what it does.

use std::collections::BTreeSet;

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
    // Agents replace objects, which needs the version; they have no right to patch these.
    let replace = |object: &Value| {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), object.to_string())?;
        as_agent(&["replace", "-f", &file.path().to_string_lossy()])
    };
    let touch = |node: &str| {
        let mut state = cluster.get(&format!("nodestate {node}"))?;
        state["metadata"]["labels"]["touched"] = "yes".into();
        replace(&state)
    };
    touch("n1").context("its own NodeState")?;
    refused(touch("n2"), "may not write NodeState n2")?;
    refused(as_agent(&["label", "node", "n2", "touched=yes"]), "may not change node n2")?;
    let blocks = cluster.get("addressblocks")?;
    let held_by = |block: &&Value| {
        let entries = block["spec"]["entries"].as_array().into_iter().flatten();
        block["spec"]["node"] == "n2"
            && entries.into_iter().any(|e| e["node"] == "n2" && e["state"] == "Allocated")
    };
    let items = blocks["items"].as_array().context("no blocks")?;
    let block = items.iter().find(held_by).context("nothing is held in a block of n2")?;
    let name = text(block, "/metadata/name")?;
    let emptied = "{\"spec\":{\"entries\":[]}}";
    refused(
        as_agent(&["patch", "addressblock", name, "--type=merge", "-p", emptied]),
        "forbidden",
    )?;
    let changed = |change: fn(&mut Value)| {
        let mut block = block.clone();
        change(&mut block["spec"]);
        replace(&block)
    };
    let rob = changed(|spec| spec["entries"] = serde_json::json!([]));
    refused(rob, "another node holds it")?;
    let move_here = changed(|spec| {
        let entries = spec["entries"].as_array_mut().into_iter().flatten();
        entries.for_each(|entry| entry["node"] = "n1".into());
    });
    refused(move_here, "another node holds it")?;
    let take = changed(|spec| spec["node"] = "n1".into());
    refused(take, "may not take a block that is in use").context("bound to n1")?;
    let unbind = changed(|spec| drop(spec.as_object_mut().map(|spec| spec.remove("node"))));
    refused(unbind, "may not take a block that is in use").context("bound to nobody")?;
    let pass_on = changed(|spec| spec["node"] = "n3".into());
    refused(pass_on, "may not bind a block to another node").context("bound to n3")?;
    let give_away = changed(|spec| {
        let entries = spec["entries"].as_array_mut().into_iter().flatten();
        for entry in entries.filter(|entry| entry["node"] == "n2") {
            entry["interface"] = "mine".into();
        }
    });
    refused(give_away, "may not claim")?;
    let pod = cluster.part("agent", 2)?;
    let label = as_agent(&["-n", SYSTEM, "label", "pod", &pod, "touched=yes"]);
    refused(label, "a pod that runs elsewhere")
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

/// What a test cluster need not make anybody ask for, with the reason: some of it happens by chance.
const MAY_GO_UNUSED: &[(&str, &str)] = &[
    ("bowline-agent patch events.k8s.io/events", "an event that is said again within minutes"),
    ("bowline-controller patch events.k8s.io/events", "an event that is said again within minutes"),
    ("bowline-controller get /nodes", "addresses of a node whose object was deleted"),
    ("bowline-controller update /secrets", "the certificate is replaced after 60 days"),
    ("bowline-controller update bowline.dev/networks/finalizers", OWNER_REFERENCES),
    (
        "bowline-controller update spiderpool.spidernet.io/spidersubnets/finalizers",
        OWNER_REFERENCES,
    ),
    (
        "bowline-controller update spiderpool.spidernet.io/spidermultusconfigs/finalizers",
        OWNER_REFERENCES,
    ),
    ("bowline-uninstall patch /nodes", "a node that is tainted when its agent is gone"),
    (
        "bowline-uninstall update spiderpool.spidernet.io/spiderreservedips",
        "a finalizer that Spiderpool's own controller left",
    ),
];
const OWNER_REFERENCES: &str = "no request: the admission plugin OwnerReferencesPermissionEnforcement asks \
     for it where an object blocks its owner's deletion";

/// And nothing is granted that was not used: the audit log of all cases, the uninstallation among them,
/// against what the chart grants.
pub(crate) fn grants_are_needed(cluster: &Cluster) -> anyhow::Result<()> {
    let log = cluster.run("audit.sh", &[])?;
    let used: BTreeSet<&str> = log.lines().filter_map(|l| l.strip_suffix(" ok")).collect();
    let granted = granted(cluster)?;
    let is_known = |line: &str| MAY_GO_UNUSED.iter().any(|(known, _)| *known == line);
    let idle: Vec<&String> =
        granted.iter().filter(|l| !used.contains(l.as_str()) && !is_known(l)).collect();
    ensure!(idle.is_empty(), "granted, and never used by any case: {idle:#?}");
    let known = MAY_GO_UNUSED.iter().map(|(line, _)| *line);
    let stale: Vec<_> = known.filter(|line| !granted.contains(*line)).collect();
    ensure!(stale.is_empty(), "MAY_GO_UNUSED holds what nobody is granted: {stale:#?}");
    Ok(())
}

/// What the chart grants, a line for each account, verb and resource, as audit.sh writes them.
fn granted(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let scripts = cluster.scripts().display();
    let words = format!(
        "template bowline {scripts}/../chart/bowline -n {SYSTEM} -f {scripts}/values.yaml \
         --show-only templates/rbac.yaml --show-only templates/uninstall.yaml --kube-version 1.35.4"
    );
    let rendered = cluster.run("helm.sh", &words.split_whitespace().collect::<Vec<_>>())?;
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::fs::write(file.path(), rendered)?;
    let path = file.path().to_string_lossy().into_owned();
    let parsed = cluster.kubectl(&format!("create --dry-run=client -o json -f {path}"))?;
    let objects = serde_json::Deserializer::from_str(&parsed).into_iter::<Value>();
    let objects = objects.collect::<Result<Vec<_>, _>>()?;
    let kind =
        |object: &&Value, word: &str| object["kind"].as_str().is_some_and(|k| k.ends_with(word));
    let mut granted = BTreeSet::new();
    for binding in objects.iter().filter(|o| kind(o, "RoleBinding")) {
        let account = text(binding, "/subjects/0/name")?;
        let is_meant = |o: &&Value| {
            o["kind"] == binding["roleRef"]["kind"]
                && o["metadata"]["name"] == binding["roleRef"]["name"]
        };
        let role =
            objects.iter().find(is_meant).with_context(|| format!("no role of {binding}"))?;
        for rule in role["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
            for group in words("apiGroups") {
                for resource in words("resources") {
                    for verb in words("verbs") {
                        let [group, resource, verb] =
                            [&group, &resource, &verb].map(|w| w.as_str().unwrap_or_default());
                        granted.insert(format!("{account} {verb} {group}/{resource}"));
                    }
                }
            }
        }
    }
    ensure!(granted.len() > 50, "the chart grants next to nothing: {granted:?}");
    Ok(granted)
}
