//! The node's own traffic: pings and a TCP connection between the nodes, in both families, must
//! never pause for a second, whatever happens to the data plane.

use crate::cluster::Node;
use crate::lab::netns::Netns;
use crate::report::Report;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(10);
const GAP_MAX: Duration = Duration::from_secs(1);
/// Stands for the node's ssh.
const SSH_LIKE_PORT: u16 = 2222;

/// The longest time without an answer.
#[derive(Debug)]
struct Gauge {
    last: Instant,
    worst: Duration,
    answers: u64,
    breaks: u64,
}

#[derive(Debug)]
struct Probe {
    name: String,
    gauge: Arc<Mutex<Gauge>>,
}

impl Probe {
    fn new(name: String) -> Self {
        let gauge = Gauge { last: Instant::now(), worst: Duration::ZERO, answers: 0, breaks: 0 };
        Self { name, gauge: Arc::new(Mutex::new(gauge)) }
    }
}

fn lock(gauge: &Mutex<Gauge>) -> MutexGuard<'_, Gauge> {
    gauge.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answered(gauge: &Mutex<Gauge>) {
    let mut gauge = lock(gauge);
    let now = Instant::now();
    gauge.worst = gauge.worst.max(now.duration_since(gauge.last));
    gauge.last = now;
    gauge.answers += 1;
}

/// Probes from one node to the other; they run until dropped.
#[derive(Debug)]
pub struct Probes {
    probes: Vec<Probe>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pings: Vec<Child>,
}

impl Probes {
    /// Starts them and waits until each has had an answer.
    ///
    /// # Errors
    /// One gets none within five seconds.
    pub fn start(from: &Node, to: &Node) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut probes = Self { probes: vec![], stop, threads: vec![], pings: vec![] };
        probes.serve(&to.netns)?;
        for (family, dst) in [("IPv4", to.ipv4), ("IPv6", to.ipv6)] {
            probes.add_ping(format!("ping {family}"), &from.netns, dst)?;
            probes.add_tcp(format!("TCP {family}"), &from.netns, dst);
        }
        let all_answered = || Ok(probes.probes.iter().all(|p| lock(&p.gauge).answers > 3));
        crate::lab::process::wait_for(
            "answers between the nodes",
            Duration::from_secs(5),
            all_answered,
        )?;
        probes.begin();
        Ok(probes)
    }

    /// A new phase begins: forget the gaps before.
    pub fn begin(&self) {
        for probe in &self.probes {
            let mut gauge = lock(&probe.gauge);
            (gauge.worst, gauge.last, gauge.breaks) = (Duration::ZERO, Instant::now(), 0);
        }
    }

    /// Ends a phase: one check per probe.
    pub fn end(&self, phase: &str, report: &mut Report) {
        for probe in &self.probes {
            let (worst, breaks) = {
                let gauge = lock(&probe.gauge);
                (gauge.worst.max(gauge.last.elapsed()), gauge.breaks)
            };
            let name = format!("node's {} across {phase}", probe.name);
            let broken = if breaks > 0 { ", connection lost" } else { "" };
            let found = format!("longest gap {} ms{broken}", worst.as_millis());
            report.check(&name, "gap < 1000 ms", &found, worst < GAP_MAX && breaks == 0);
        }
    }

    fn add_ping(&mut self, name: String, netns: &Netns, dst: IpAddr) -> anyhow::Result<()> {
        let probe = Probe::new(name);
        let interval = INTERVAL.as_secs_f64().to_string();
        let dst = dst.to_string();
        let mut child = Command::new("ip")
            .args(["netns", "exec", netns.name(), "ping", "-n", "-i", &interval, &dst])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting ping")?;
        let output = child.stdout.take().context("no output")?;
        let gauge = Arc::clone(&probe.gauge);
        self.threads.push(std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for _ in lines.filter(|l| l.contains("bytes from")) {
                answered(&gauge);
            }
        }));
        self.pings.push(child);
        self.probes.push(probe);
        Ok(())
    }

    fn add_tcp(&mut self, name: String, netns: &Netns, dst: IpAddr) {
        let probe = Probe::new(name);
        let (gauge, stop, netns) =
            (Arc::clone(&probe.gauge), Arc::clone(&self.stop), netns.clone());
        self.threads.push(std::thread::spawn(move || {
            if let Err(error) = netns.enter() {
                eprintln!("{error:#}");
                return;
            }
            while !stop.load(Ordering::Relaxed) {
                // An error ends a connection, which counts; the next one shows when all is well again.
                if talk(dst, &gauge, &stop).is_err() {
                    lock(&gauge).breaks += 1;
                    std::thread::sleep(INTERVAL);
                }
            }
        }));
        self.probes.push(probe);
    }

    /// Echoes what comes, one thread per connection.
    fn serve(&mut self, netns: &Netns) -> anyhow::Result<()> {
        let listen = || Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, SSH_LIKE_PORT))?);
        let listener = netns.run(listen)?;
        listener.set_nonblocking(true)?;
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            let mut served = vec![];
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => served.push(std::thread::spawn(move || echo(stream))),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            // They end with their clients.
        }));
        Ok(())
    }
}

fn talk(dst: IpAddr, gauge: &Mutex<Gauge>, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&(dst, SSH_LIKE_PORT).into(), GAP_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 32];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&[7; 32])?;
        stream.read_exact(&mut buffer)?;
        answered(gauge);
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 32];
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for ping in &mut self.pings {
            if let Ok(pid) = i32::try_from(ping.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = ping.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
