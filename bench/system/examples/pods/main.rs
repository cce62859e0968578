//! What a pod waits for: the CNI ADD, and all from its creation until it runs, with Bowline and with the
//! reference `bridge` plugin in turn, on one node of the project's own cluster. Both plugins are called through
//! the same script, which notes how long each ADD took.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bowline_bench::report::Machine;
use bowline_e2e::{Cluster, eventually};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};

/// The node whose pods are measured.
const NODE: u8 = 1;
/// Where its runtime finds configurations; ours comes before Bowline's.
const CONFIGURATION: &str = "/etc/cni/net.d/00-bench.conflist";
/// What the scripts note: plugin, microseconds.
const TIMES: &str = "/run/bench-cni-times";
/// Bowline, then its peer.
const PLUGINS: [&str; 2] = ["bowline", "bridge"];
/// A pod is gone by then.
const GONE_WITHIN: Duration = Duration::from_secs(90);

/// Measures pods' starts.
#[derive(Debug, Parser)]
struct Cli {
    /// Turns of each plugin.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Pods that are made at the same time.
    #[arg(long, default_value_t = 10)]
    pods: u32,
    /// Where `pods.json` goes.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench"))]
    out: PathBuf,
}

/// What one plugin took.
#[derive(Debug, Default, Serialize)]
struct Figures {
    /// Calls of the plugin.
    adds: usize,
    add_p50_ms: f64,
    add_p99_ms: f64,
    add_max_ms: f64,
    /// From the creation of all pods of a turn until the last runs: the middle one, and each turn's.
    running_median_s: f64,
    running_s: Vec<f64>,
}

/// `pods.json`.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    pods_at_once: u32,
    plugins: BTreeMap<&'static str, Figures>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let cluster = Cluster::named("bowline-bench");
    cluster.run("cluster.sh", &["installed"])?;
    let measured = measure(&cluster, &cli);
    cluster.run("down.sh", &[])?;
    let plugins = measured?;
    let report = Report { machine: Machine::this(), pods_at_once: cli.pods, plugins };
    let text = serde_json::to_string_pretty(&report)? + "\n";
    println!("{text}");
    std::fs::create_dir_all(&cli.out)?;
    let path = cli.out.join("pods.json");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn measure(cluster: &Cluster, cli: &Cli) -> anyhow::Result<BTreeMap<&'static str, Figures>> {
    for plugin in PLUGINS {
        install_script(cluster, plugin)?;
    }
    let mut running: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    // The first turn of each finds cold caches and does not count.
    for round in 0..=cli.rounds {
        for plugin in PLUGINS {
            let seconds = one_turn(cluster, plugin, round, cli.pods)?;
            if round > 0 {
                running.entry(plugin).or_default().push(seconds);
            }
        }
        if round == 0 {
            cluster.on_node(NODE, &format!("rm {TIMES}"))?;
        }
    }
    let times = cluster.on_node(NODE, &format!("cat {TIMES}"))?;
    let expected = (cli.rounds * cli.pods) as usize;
    let figures = |plugin: &'static str| {
        let adds = times_of(&times, plugin);
        ensure!(adds.len() >= expected, "{} of {expected} pods came by {plugin}", adds.len());
        Ok((plugin, figures(adds, running.remove(plugin).unwrap_or_default())))
    };
    PLUGINS.into_iter().map(figures).collect()
}

/// A plugin of another name that calls this one and notes how long it took.
fn install_script(cluster: &Cluster, plugin: &str) -> anyhow::Result<()> {
    let script = format!(
        "#!/bin/bash\nbegun=${{EPOCHREALTIME/./}}\n/opt/cni/bin/{plugin}\ncode=$?\nended=${{EPOCHREALTIME/./}}\n\
         if [ $CNI_COMMAND = ADD ] && [ $code = 0 ]; then echo {plugin} $((ended - begun)) >> {TIMES}; fi\n\
         exit $code\n"
    );
    let path = format!("/opt/cni/bin/timed-{plugin}");
    let put = format!("cat > {path} <<'END'\n{script}END\nchmod 755 {path}; touch {TIMES}");
    cluster.on_node(NODE, &put).map(drop)
}

fn configuration(plugin: &str) -> Value {
    let mut plugin_of = json!({
        "type": format!("timed-{plugin}"),
        "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true},
    });
    if plugin == "bridge" {
        plugin_of = json!({
            "type": "timed-bridge", "bridge": "bench0", "isGateway": true,
            "ipam": {"type": "host-local", "subnet": "10.99.0.0/24", "dataDir": "/run/bench-ipam"},
        });
    }
    json!({"cniVersion": "1.0.0", "name": plugin, "plugins": [plugin_of]})
}

/// Pods come by this plugin, and go; seconds until the last ran.
fn one_turn(cluster: &Cluster, plugin: &str, round: u32, pods: u32) -> anyhow::Result<f64> {
    let text = configuration(plugin).to_string();
    let put = format!(
        "cat > {CONFIGURATION}.new <<'END'\n{text}\nEND\nmv {CONFIGURATION}.new {CONFIGURATION}"
    );
    cluster.on_node(NODE, &put)?;
    // The runtime reads it when inotify says so; until then pods would come by the other one.
    let warm = format!("warm-{plugin}-{round}");
    eventually("the runtime calls the plugin", GONE_WITHIN, || {
        make(cluster, &warm, 1)?;
        remove(cluster, &warm)?;
        let last = cluster.on_node(NODE, &format!("tail -n 1 {TIMES}"))?;
        Ok(last.starts_with(plugin))
    })?;
    let label = format!("{plugin}-{round}");
    let seconds = make(cluster, &label, pods)?;
    remove(cluster, &label)?;
    Ok(seconds)
}

/// Seconds until all run.
fn make(cluster: &Cluster, label: &str, pods: u32) -> anyhow::Result<f64> {
    let pod = |n: u32| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{label}-{n}"), "labels": {"turn": label}},
            "spec": {
                "nodeName": format!("n{NODE}"), "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "localhost/pause:1"}],
            },
        })
    };
    let items: Vec<Value> = (0..pods).map(pod).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let begun = Instant::now();
    cluster.apply(&list.to_string())?;
    let wait = "wait --for=jsonpath={.status.phase}=Running --timeout=120s pod -l";
    cluster.kubectl(&format!("{wait} turn={label}"))?;
    Ok(begun.elapsed().as_secs_f64())
}

fn remove(cluster: &Cluster, label: &str) -> anyhow::Result<()> {
    cluster.kubectl(&format!("delete pod -l turn={label} --timeout=90s")).map(drop)
}

fn times_of(text: &str, plugin: &str) -> Vec<f64> {
    let own = text.lines().filter_map(|line| line.strip_prefix(plugin)?.trim().parse::<f64>().ok());
    own.map(|us| us / 1000.0).collect()
}

fn figures(mut adds: Vec<f64>, running: Vec<f64>) -> Figures {
    adds.sort_by(f64::total_cmp);
    let at = |share: f64| adds[((adds.len() - 1) as f64 * share).round() as usize];
    let mut sorted = running.clone();
    sorted.sort_by(f64::total_cmp);
    Figures {
        adds: adds.len(),
        add_p50_ms: at(0.5),
        add_p99_ms: at(0.99),
        add_max_ms: at(1.0),
        running_median_s: sorted[sorted.len() / 2],
        running_s: running,
    }
}
