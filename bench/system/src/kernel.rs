//! The kernel's own ways between two pods: a bridge, and VXLAN between two nodes.

use crate::candidate::{Candidate, Load, TcpDevice};
use crate::report::Sample;
use crate::{DEVICE_CPU, GENERATOR_CPU};
use anyhow::Context;
use bowline_demo::lab::netns::Netns;
use bowline_demo::lab::shell;
use bowline_pktgen::port::pin;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

/// Ethernet, IPv4 and UDP headers of a frame.
const HEADER_BYTES: usize = 14 + 20 + 8;
/// Where the frames go; nobody listens, so that only the way there is paid for.
const PORT: u16 = 9;

/// Namespaces that go when this is dropped.
#[derive(Debug)]
struct Namespaces(Vec<Netns>);

impl Namespaces {
    fn create(names: &[&str]) -> anyhow::Result<Self> {
        for name in names {
            // Of a benchmark that was killed.
            Netns::named(name).destroy()?;
        }
        let made = names.iter().map(|name| Netns::create(name));
        Ok(Self(made.collect::<anyhow::Result<_>>()?))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for netns in &self.0 {
            if let Err(error) = netns.destroy() {
                eprintln!("bowline-bench: {error:#}");
            }
        }
    }
}

/// Two pods on veths into a Linux bridge.
///
/// # Errors
/// A namespace or device cannot be made.
pub fn bridge() -> anyhow::Result<TcpDevice> {
    let names = ["bwb-bridge", "bwb-a", "bwb-b"];
    let made = Namespaces::create(&names)?;
    shell::run_all(
        "ip -n bwb-bridge link add br0 type bridge
         ip -n bwb-bridge link set br0 up
         ip -n bwb-bridge link add va type veth peer name eth0 netns bwb-a
         ip -n bwb-bridge link add vb type veth peer name eth0 netns bwb-b
         ip -n bwb-bridge link set va master br0 up
         ip -n bwb-bridge link set vb master br0 up
         ip -n bwb-a addr add 10.0.0.1/24 dev eth0
         ip -n bwb-b addr add 10.0.0.2/24 dev eth0
         ip -n bwb-a link set eth0 up
         ip -n bwb-b link set eth0 up",
    )?;
    Ok(TcpDevice {
        name: "veth-bridge".into(),
        pids: vec![],
        from: Netns::named(names[1]),
        to: Netns::named(names[2]),
        dst: "10.0.0.2".parse()?,
        keep: Box::new(made),
    })
}

/// Pod, veth, bridge, VXLAN device, veth between the nodes, and the same in reverse order.
#[derive(Debug)]
pub struct KernelVxlan {
    from: Netns,
    to: Netns,
    _made: Namespaces,
}

/// See [`KernelVxlan`].
///
/// # Errors
/// A namespace or device cannot be made.
pub fn vxlan() -> anyhow::Result<KernelVxlan> {
    let made = Namespaces::create(&["bwb-n1", "bwb-n2", "bwb-p1", "bwb-p2"])?;
    shell::run("ip -n bwb-n1 link add fabric0 type veth peer name fabric0 netns bwb-n2")?;
    for (own, other) in [(1, 2), (2, 1)] {
        shell::run_all(&format!(
            "ip -n bwb-n{own} addr add 192.0.2.{own}/24 dev fabric0
             ip -n bwb-n{own} link set fabric0 up
             ip -n bwb-n{own} link add br0 type bridge
             ip -n bwb-n{own} link set br0 up
             ip -n bwb-n{own} link add vx type vxlan id 56 dstport 4789 \
                local 192.0.2.{own} remote 192.0.2.{other} dev fabric0
             ip -n bwb-n{own} link set vx master br0 up
             ip -n bwb-n{own} link add pod type veth peer name eth0 netns bwb-p{own}
             ip -n bwb-n{own} link set pod master br0 up
             ip -n bwb-p{own} addr add 10.0.0.{own}/24 dev eth0
             ip -n bwb-p{own} link set eth0 mtu 1450 up"
        ))?;
    }
    let (from, to) = (Netns::named("bwb-p1"), Netns::named("bwb-p2"));
    // Both cores work, as they do for Bowline: the far node's half goes to the device's core.
    let rps = "/sys/class/net/fabric0/queues/rx-0/rps_cpus";
    let echo = format!("echo {:x} > {rps}", 1 << DEVICE_CPU);
    let status = Command::new("ip").args(["netns", "exec", "bwb-n2", "sh", "-c", &echo]).status();
    anyhow::ensure!(status?.success(), "writing {rps} failed");
    Ok(KernelVxlan { from, to, _made: made })
}

impl Candidate for KernelVxlan {
    fn name(&self) -> &str {
        "kernel-vxlan-veth"
    }

    fn freeze(&self) {}

    fn measure(&mut self, load: Load, time: Duration) -> anyhow::Result<Sample> {
        let payload = vec![0xa5; load.size.saturating_sub(HEADER_BYTES)];
        let before = self.to.run(received)?;
        let start = Instant::now();
        let sent = self.from.run(|| {
            pin(GENERATOR_CPU)?;
            let socket = UdpSocket::bind("10.0.0.1:0")?;
            socket.connect(("10.0.0.2", PORT))?;
            let mut sent = 0_u64;
            while start.elapsed() < time {
                for _ in 0..64 {
                    // Refused: what was sent before came to a closed port.
                    sent += u64::from(socket.send(&payload).is_ok());
                }
            }
            Ok(sent)
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let count = self.to.run(received)?.saturating_sub(before);
        anyhow::ensure!(count > 0, "nothing came through the kernel's VXLAN");
        let loss_ratio = 1.0 - (count as f64 / sent.max(1) as f64).min(1.0);
        Ok(Sample { rate: count as f64 / seconds, loss_ratio, ..Sample::default() })
    }
}

/// Frames that the calling thread's namespace has received on `eth0`.
fn received() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1)).context("no eth0")?;
    Ok(word.parse()?)
}
