//! `bowline-pktgen`: sends, receives, answers and pings over memif.

use anyhow::Context;
use bowline_pktgen::drive::{Plan, Report, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::{Cidr, Host, parse_mac};
use bowline_pktgen::packet::{PORT, Stream};
use bowline_pktgen::ping::{PingPlan, PingReport, ping};
use bowline_pktgen::port::PortConfig;
use bowline_pktgen::sender::{Sender, Traffic};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::Mac;

/// Traffic generator and sink over a memif client.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How results are printed.
    #[arg(short, long, global = true, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends; answers ARP, neighbour solicitations and echo requests meanwhile.
    Send {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Receives and checks what `send` sends.
    Sink {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Sends on one memif and receives on another, on one thread: for benchmarks.
    Both {
        #[command(flatten)]
        port: PortArgs,
        /// Socket of the receiving memif.
        #[arg(long)]
        rx_socket: String,
        /// Network namespace of the receiving memif.
        #[arg(long)]
        rx_netns: Option<String>,
        /// MAC of the receiving end.
        #[arg(long, value_parser = parse_mac)]
        rx_mac: Option<Mac>,
        /// Address of the receiving end, such as 10.0.0.6/24; repeatable.
        #[arg(long)]
        rx_ip: Vec<Cidr>,
        #[command(flatten)]
        traffic: TrafficArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Answers ARP, neighbour solicitations, echo requests, and sends UDP back to its sender.
    #[command(visible_alias = "respond")]
    Echo {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Sends echo requests.
    Ping {
        #[command(flatten)]
        port: PortArgs,
        /// Whom to ask.
        dst: IpAddr,
        /// How often.
        #[arg(short, long, default_value_t = 3)]
        count: u16,
        /// Milliseconds between two requests.
        #[arg(short, long, default_value_t = 200)]
        interval_ms: u64,
        /// Bytes behind the ICMP header.
        #[arg(short, long, default_value_t = 56)]
        size: usize,
    },
}

#[derive(Debug, Args)]
struct PortArgs {
    /// Socket: `@name` (abstract) or a path.
    #[arg(long, default_value = "@memif1")]
    socket: String,
    /// Network namespace to connect in: a name under /run/netns, or a path.
    #[arg(long)]
    netns: Option<String>,
    /// The interface's number on the socket.
    #[arg(long, default_value_t = 0)]
    id: u32,
    /// Frames without Ethernet header.
    #[arg(long)]
    ip_mode: bool,
    /// Queues to receive from.
    #[arg(long, default_value_t = 1)]
    rx_queues: u16,
    /// Queues to send to.
    #[arg(long, default_value_t = 1)]
    tx_queues: u16,
    /// Slots of a ring: a power of two.
    #[arg(long, default_value_t = 1024)]
    ring_size: u32,
    /// Bytes of a buffer; longer frames take several.
    #[arg(long, default_value_t = 2048)]
    buffer_size: u32,
    /// This end's MAC: the one that was assigned to the pod.
    #[arg(long, value_parser = parse_mac)]
    mac: Option<Mac>,
    /// This end's address with its prefix length, such as 10.0.0.5/24; repeatable.
    #[arg(long)]
    ip: Vec<Cidr>,
    /// Gateway for what is not on the link; repeatable, one per family.
    #[arg(long)]
    gateway: Vec<IpAddr>,
    /// Seconds to wait for the peer.
    #[arg(long, default_value_t = 10)]
    wait_s: u64,
}

#[derive(Debug, Args)]
struct TrafficArgs {
    /// Whom to send to.
    #[arg(long)]
    dst: IpAddr,
    /// The next hop's MAC; asked for by ARP or neighbour discovery when left out.
    #[arg(long, value_parser = parse_mac)]
    dst_mac: Option<Mac>,
    /// Destination addresses, counted up from --dst.
    #[arg(long, default_value_t = 1)]
    dst_count: u16,
    /// UDP destination port.
    #[arg(long, default_value_t = PORT)]
    dst_port: u16,
    /// Frame sizes in bytes, without the wire's checksum; several are used in turn.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    size: Vec<usize>,
    /// Flows, each with its own source port.
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Frames per second; 0 = as many as go.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Number of this stream, by which receivers tell senders apart.
    #[arg(long, default_value_t = 1)]
    stream: u16,
    /// Frames per burst.
    #[arg(long, default_value_t = 32)]
    burst: usize,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Seconds to run.
    #[arg(short, long)]
    duration: Option<f64>,
    /// Frames to send (to receive, for `sink`).
    #[arg(short, long)]
    count: Option<u64>,
    /// Measure the latency of every n-th frame.
    #[arg(long, default_value_t = 16)]
    latency_every: u32,
    /// Spin when idle.
    #[arg(long)]
    busy: bool,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// No progress lines on standard error.
    #[arg(short, long)]
    quiet: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let stop = stop_on_signals()?;
    match &cli.command {
        Command::Send { port, traffic, run: args } => {
            let mut tx = port.open(args)?;
            let mut sender = traffic.sender(port, &mut tx)?;
            print(
                cli.output,
                &run(Some((&mut tx, &mut sender)), None, &args.plan(Some(traffic)), &stop)?,
            )
        }
        Command::Sink { port, run: args } => {
            let mut rx = port.open(args)?;
            print(cli.output, &run(None, Some(&mut rx), &args.plan(None), &stop)?)
        }
        Command::Both { port, rx_socket, rx_netns, rx_mac, rx_ip, traffic, run: args } => {
            let mut tx = port.open(args)?;
            let other = port.config(rx_socket.clone(), rx_netns.clone());
            let host = Host::new(host_mac(port.ip_mode, *rx_mac)?, rx_ip.clone(), vec![]);
            let mut rx = Endpoint::open(&other, host, args.latency_every, port.patience())?;
            let mut sender = traffic.sender(port, &mut tx)?;
            let plan = args.plan(Some(traffic));
            print(cli.output, &run(Some((&mut tx, &mut sender)), Some(&mut rx), &plan, &stop)?)
        }
        Command::Echo { port, run: args } => {
            let mut rx = port.open(args)?;
            rx.host.set_reflect(true);
            print(cli.output, &run(None, Some(&mut rx), &args.plan(None), &stop)?)
        }
        Command::Ping { port, dst, count, interval_ms, size } => {
            let host = port.host()?;
            let config = port.config(port.socket.clone(), port.netns.clone());
            let mut endpoint = Endpoint::open(&config, host, 1, port.patience())?;
            let plan = PingPlan {
                dst: *dst,
                count: *count,
                interval: Duration::from_millis(*interval_ms),
                payload_bytes: *size,
                patience: Duration::from_secs(1),
            };
            let report = ping(&mut endpoint, &plan)?;
            print_ping(cli.output, *dst, &report)?;
            anyhow::ensure!(report.received > 0, "no answer from {dst}");
            Ok(())
        }
    }
}

/// The first SIGINT or SIGTERM ends the run and its report is printed.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking SIGINT and SIGTERM")?;
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = signals.wait();
        told.store(true, Ordering::Relaxed);
        // The second one is for whoever cannot wait for the report.
        let _ = signals.wait();
        std::process::exit(130);
    });
    Ok(stop)
}

fn host_mac(ip_mode: bool, mac: Option<Mac>) -> anyhow::Result<Option<Mac>> {
    if ip_mode {
        return Ok(None);
    }
    Ok(Some(mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1]))))
}

impl PortArgs {
    fn config(&self, socket: String, netns: Option<String>) -> PortConfig {
        PortConfig {
            socket,
            netns,
            id: self.id,
            ip_mode: self.ip_mode,
            rx_queues: self.rx_queues,
            tx_queues: self.tx_queues,
            ring_slots: self.ring_size,
            buffer_bytes: self.buffer_size,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.wait_s)
    }

    fn host(&self) -> anyhow::Result<Host> {
        let mac = host_mac(self.ip_mode, self.mac)?;
        Ok(Host::new(mac, self.ip.clone(), self.gateway.clone()))
    }

    fn open(&self, run: &RunArgs) -> anyhow::Result<Endpoint> {
        if let Some(cpu) = run.cpu {
            bowline_pktgen::port::pin(cpu)?;
        }
        let config = self.config(self.socket.clone(), self.netns.clone());
        Endpoint::open(&config, self.host()?, run.latency_every, self.patience())
    }
}

impl TrafficArgs {
    fn sender(&self, port: &PortArgs, tx: &mut Endpoint) -> anyhow::Result<Sender> {
        let src = tx.host.address_for(self.dst);
        let src = src.with_context(|| format!("no address of {}'s family: give --ip", self.dst))?;
        let macs = match (tx.host.mac(), self.dst_mac) {
            (None, _) => None,
            (Some(own), Some(dst)) => Some((own, dst)),
            (Some(own), None) => tx.resolve(self.dst, port.patience())?.map(|dst| (own, dst)),
        };
        let dst_port = self.dst_port;
        let stream =
            Stream { id: self.stream, macs, src, dst: self.dst, src_port: 20_000, dst_port };
        Sender::new(&Traffic {
            stream,
            sizes: self.size.clone(),
            flows: self.flows,
            dst_count: self.dst_count,
            queues: port.tx_queues.into(),
        })
    }
}

impl RunArgs {
    fn plan(&self, traffic: Option<&TrafficArgs>) -> Plan {
        Plan {
            duration: self.duration.map(Duration::from_secs_f64),
            count: self.count,
            rate_pps: traffic.map(|t| t.rate).filter(|r| *r > 0),
            burst_frames: traffic.map_or(32, |t| t.burst),
            busy: self.busy,
            progress: !self.quiet,
            ..Plan::default()
        }
    }
}

fn print(output: Output, report: &Report) -> anyhow::Result<()> {
    if let Output::Json = output {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let mpps = |pps: f64| format!("{:.3} Mpps", pps / 1e6);
    let gbps = |bps: f64| format!("{:.3} Gb/s", bps / 1e9);
    println!("time      {:.3} s", report.seconds);
    let (tx, rate) = (&report.tx, &report.tx_rate);
    println!("sent      {} frames, {}, {}", tx.frames, mpps(rate.pps), gbps(rate.bps));
    let (rx, rate) = (&report.rx, &report.rx_rate);
    println!("received  {} frames, {}, {}", rx.frames, mpps(rate.pps), gbps(rate.bps));
    if let (Some(lost), Some(ratio)) = (report.lost, report.loss_ratio) {
        println!("lost      {lost} ({:.4} %)", ratio * 100.0);
    }
    println!(
        "order     {} missing, {} reordered, {} duplicates, {} corrupt, {} others",
        rx.missing, rx.reordered, rx.duplicates, report.corrupt, report.others
    );
    let l = &report.latency;
    println!(
        "latency   p50 {} ns, p90 {} ns, p99 {} ns, p99.9 {} ns, max {} ns ({} samples)",
        l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.max_ns, l.samples
    );
    for (stream, totals) in &report.streams {
        println!("stream {stream}: {} frames, {} missing", totals.frames, totals.missing);
    }
    Ok(())
}

fn print_ping(output: Output, dst: IpAddr, report: &PingReport) -> anyhow::Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(report)?),
        Output::Text => println!(
            "{dst}: {} of {} answered, mean {:.0} µs, max {:.0} µs",
            report.received, report.sent, report.mean_us, report.max_us
        ),
    }
    Ok(())
}
