//! A kernel's stack behind a memif: a thread carries frames between the pod's memif and a tap
//! without offloads in its namespace. So ping and TCP talk through a memif.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pod::set_up;
use super::{MemifPod, Netns, Realm, sys};

/// The tap's name in the pod.
pub const DEVICE: &str = "stack0";

/// A memif pod with a stack.
pub struct Pump {
    /// The pod's namespace (a second one; the memif's own holds only the socket).
    pub netns: Netns,
    /// The interface's id at the data plane.
    pub id: String,
    number: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<MemifPod>>,
}

impl Pump {
    /// Puts a stack behind the memif.
    pub fn start(mut pod: MemifPod, mtu: u32) -> Self {
        let netns = Netns::new("stack");
        let tap = netns.run(|| sys::open_plain_tap(DEVICE).expect("/dev/net/tun"));
        set_up(&netns, DEVICE, pod.at.number, mtu);
        netns.tool("ethtool", &format!("-K {DEVICE} tso off gso off gro off"));
        let stop = Arc::new(AtomicBool::new(false));
        let (id, number, told) = (pod.at.id.clone(), pod.at.number, Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !told.load(Ordering::Relaxed) {
                let mut moved = 0;
                for queue in 0..pod.rx.len() {
                    while let Some(frame) = pod.recv(queue) {
                        // A full tap drops, as a NIC would.
                        let _ = nix::unistd::write(&tap, frame);
                        moved += 1;
                    }
                }
                while let Ok(length) = nix::unistd::read(&tap, &mut buffer) {
                    let frame = &buffer[..length];
                    if pod.queue_up(0, [frame]) == 0 {
                        pod.flush(0);
                        break;
                    }
                    moved += 1;
                    if moved > 64 {
                        break;
                    }
                }
                pod.flush(0);
                if moved == 0 {
                    // The memif's ring is looked at every millisecond at least.
                    let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(1_u8));
                }
            }
            pod
        });
        Self { netns, id, number, stop, thread: Some(thread) }
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        Realm::ip4(self.number)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        Realm::ip6(self.number)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; it shows as lost traffic.
            let _ = thread.join();
        }
    }
}
