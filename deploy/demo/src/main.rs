//! `bowline-demo`: what `make demo` and `make demo-clean` run.

use anyhow::{Context, ensure};
use bowline_demo::binaries::{Binaries, Uplink};
use bowline_demo::checks::survive::Probes;
use bowline_demo::checks::{drops, isolation, ratios, reach, recover, throughput};
use bowline_demo::clean;
use bowline_demo::cluster::Cluster;
use bowline_demo::lab::process::wait_for;
use bowline_demo::pod::{self, Pod};
use bowline_demo::report::Report;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Two nodes on one machine, pods on overlapping networks, proof of isolation.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds the two nodes, checks, and takes all down again.
    Run {
        /// How the nodes' uplinks are driven.
        #[arg(long, value_enum, default_value = "net_af_packet")]
        uplink: Uplink,
        /// Leave it running, until `make demo-clean`.
        #[arg(long)]
        keep: bool,
        /// What --keep starts in the background.
        #[arg(long, hide = true)]
        kept: bool,
        /// How often a data plane is killed, the nodes' in turn.
        #[arg(long, default_value_t = 1)]
        kills: u32,
        /// Where the report and the logs go.
        #[arg(long, default_value = "target/demo")]
        out: PathBuf,
    },
    /// Removes all that a demo left behind.
    Clean,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { uplink, keep: true, kept: false, kills, out } => {
            run_in_background(uplink, kills, &out)
        }
        Command::Run { uplink, kept, kills, out, .. } => run(uplink, kept, kills, &out),
        Command::Clean => clean_up(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bowline-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean_up() -> anyhow::Result<bool> {
    ensure_root()?;
    let removed = clean::clean()?;
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(true)
}

fn ensure_root() -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: run 'sudo make demo'");
    Ok(())
}

fn run(uplink: Uplink, keep: bool, kills: u32, out: &Path) -> anyhow::Result<bool> {
    ensure_root()?;
    let begun = Instant::now();
    // What a killed predecessor left would be in the way.
    clean::clean().context("removing what an earlier demo left")?;
    clean::claim()?;
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let out = out.canonicalize()?;
    let mut report = Report { uplink: uplink.name().into(), ..Report::default() };
    println!(
        "two nodes, uplink {}, MTU {} (pods: {}); logs in {}\n",
        uplink.name(),
        uplink.mtu(),
        uplink.pod_mtu(),
        out.display()
    );
    let mut cluster = Cluster::build(Binaries::beside_this(&out)?, uplink, 2)?;
    let probes = Probes::start(&cluster.nodes[0], &cluster.nodes[1])?;
    let pods = match prove(&mut cluster, &probes, kills, &mut report) {
        Ok(pods) => pods,
        Err(error) => {
            report.check("the demo runs to its end", "yes", &format!("{error:#}"), false);
            vec![]
        }
    };
    if !keep && !pods.is_empty() {
        take_down(&cluster, &pods, &probes, &mut report)?;
    }
    drop(probes);
    report.seconds = begun.elapsed().as_secs_f64();
    conclude(&report, &out)?;
    if keep {
        print_hints(&cluster, &pods);
        stay(&cluster, &out, report.ok())?;
    }
    drop((pods, cluster));
    clean::clean()?;
    Ok(report.ok())
}

fn conclude(report: &Report, out: &Path) -> anyhow::Result<()> {
    report.print_throughput();
    report.write(&out.join("report.json"))?;
    let failed = report.checks.iter().filter(|c| !c.ok).count();
    println!(
        "\n{} of {} checks hold, {:.0} s, report in {}",
        report.checks.len() - failed,
        report.checks.len(),
        report.seconds,
        out.join("report.json").display()
    );
    Ok(())
}

fn prove(
    cluster: &mut Cluster,
    probes: &Probes,
    kills: u32,
    report: &mut Report,
) -> anyhow::Result<Vec<Pod>> {
    cluster.start()?;
    settle();
    probes.end("start of the data planes", report);
    let pods = pod::create_all(cluster, &pod::PLANS)?;
    reach::check(&pods, "", report)?;
    isolation::check(&pods, report)?;
    throughput::check_tcp(&pods, report)?;
    let measured = throughput::check_memif(&pods, report)?;
    ratios::check(&pods, &measured, report)?;
    drops::check(cluster, "", report)?;
    for kill in 1..=kills {
        kill_dataplane(cluster, &pods, probes, kill, report)?;
    }
    reach::check(&pods, " after the restart", report)?;
    drops::check(cluster, " after the restart", report)?;
    Ok(pods)
}

/// Detaches the pods as a runtime would, and stops the data planes.
fn take_down(
    cluster: &Cluster,
    pods: &[Pod],
    probes: &Probes,
    report: &mut Report,
) -> anyhow::Result<()> {
    for pod in pods {
        pod::delete(cluster, pod)?;
    }
    probes.begin();
    for node in &cluster.nodes {
        node.dataplane()?.stop()?;
    }
    settle();
    probes.end("stop of the data planes", report);
    Ok(())
}

/// Long enough for a gap to show.
fn settle() {
    std::thread::sleep(Duration::from_millis(1200));
}

fn kill_dataplane(
    cluster: &Cluster,
    pods: &[Pod],
    probes: &Probes,
    kill: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    probes.begin();
    let node = &cluster.nodes[(kill as usize + 1) % cluster.nodes.len()];
    let process = node.dataplane()?;
    let starts = process.starts();
    let killed = Instant::now();
    process.kill()?;
    // The dead one answers nothing from here on.
    wait_for("the data plane's restart", Duration::from_secs(5), || {
        process.check()?;
        Ok(process.starts() > starts && process.pid().is_some())
    })?;
    let what = format!("kill -9 of {}'s data plane", node.name);
    recover::check(pods, killed, &format!(", {what}"), report)?;
    probes.end(&what, report);
    Ok(())
}

fn print_hints(cluster: &Cluster, pods: &[Pod]) {
    let cli = cluster.binaries.cli();
    println!("\nLeft running. In another terminal, for instance:");
    let socket = cluster.nodes[0].dataplane_socket();
    for words in ["get interfaces", "get drops", "top", "trace"] {
        println!("  {} --socket {} {words}", cli.display(), socket.display());
    }
    if let Some(tap) = pods.iter().find(|p| p.station.is_none()) {
        println!("  ip netns exec {} ping 10.0.0.13", tap.netns.name());
    }
    println!("'make demo-clean' removes it.");
}

/// Runs the demo in a session of its own, so that it outlives this terminal, and waits until it has
/// said all that it has to say.
fn run_in_background(uplink: Uplink, kills: u32, out: &Path) -> anyhow::Result<bool> {
    ensure_root()?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut demo = std::process::Command::new("setsid")
        .arg(own)
        .args(["run", "--keep", "--kept", "--uplink", uplink.name()])
        .args(["--kills", &kills.to_string(), "--out"])
        .arg(out)
        .stdin(Stdio::null())
        .spawn()
        .context("starting setsid")?;
    loop {
        if let Some(status) = demo.try_wait()? {
            return Ok(status.success());
        }
        if let Ok(verdict) = std::fs::read_to_string(kept_file()) {
            return Ok(verdict == "ok");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Says that a kept demo has printed everything, and whether all checks hold.
fn kept_file() -> PathBuf {
    Path::new(bowline_demo::RUN_DIR).join("kept")
}

/// Keeps processes and pods alive for as long as the namespaces are there.
fn stay(cluster: &Cluster, out: &Path, ok: bool) -> anyhow::Result<()> {
    let log = std::fs::File::create(out.join("kept.log"))?;
    // Whoever reads the output of `make demo KEEP=1` must see its end.
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    std::fs::write(kept_file(), if ok { "ok" } else { "failed" })?;
    while cluster.nodes.iter().all(|n| n.netns.path().exists()) {
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
