//! Ethernet devices: probing, configuration, start and stop, what they are and what they counted.

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use dpdk_sys as sys;

use crate::eal::{Eal, devices_change};
use crate::error::{Error, reason};
use crate::home::Home;
use crate::mempool::Mempool;
use crate::queue::{RxQueue, TxQueue};
use crate::wake::Before;

/// A probed port. The device handle and every queue hold one; the last to go closes the device.
#[derive(Debug)]
pub(crate) struct Port {
    id: u16,
    name: String,
    /// Buffers for the receive queues: they must outlive the device.
    pool: Arc<Mempool>,
    /// Where calls that control the device run.
    home: Home,
}

impl Port {
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    fn check(&self, ret: i32, operation: &'static str) -> Result<(), Error> {
        if ret >= 0 {
            return Ok(());
        }
        Err(Error::Device { device: self.name.clone(), operation, reason: reason(ret) })
    }
}

impl Port {
    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let mut raw = sys::rte_eth_stats::default();
        // SAFETY: the port exists; `raw` is written.
        let ret = unsafe { sys::rte_eth_stats_get(self.id, &raw mut raw) };
        self.check(ret, "reading its counters")?;
        Ok(Stats {
            rx_packets: raw.ipackets,
            rx_bytes: raw.ibytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            rx_no_mbuf: raw.rx_nombuf,
            tx_packets: raw.opackets,
            tx_bytes: raw.obytes,
            tx_errors: raw.oerrors,
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let id = self.id;
        let _changing = devices_change();
        // SAFETY: this is the last user of the port: device and queues hold Arcs. Stopping a port
        // that is not started and removing one that refuses are harmless.
        self.home.run(move || unsafe {
            sys::rte_eth_dev_stop(id);
            if sys::bl_eth_remove(id) != 0 {
                sys::rte_eth_dev_close(id);
            }
        });
    }
}

/// A device, named by DPDK's device arguments.
#[derive(Debug)]
pub struct EthDev {
    port: Arc<Port>,
    configured: Option<Configured>,
    /// Its queues did not come up.
    spoiled: bool,
    before: Before,
}

#[derive(Debug)]
struct Configured {
    conf: sys::bl_eth_conf,
    offloads: Offloads,
}

/// What a device is and can do.
#[derive(Debug, Clone)]
pub struct EthInfo {
    /// The driver's name.
    pub driver: String,
    /// The kernel interface under the device, 0 if there is none.
    pub if_index: u32,
    /// The largest MTU.
    pub max_mtu: u16,
    /// The most receive queues.
    pub max_rx_queues: u16,
    /// The most transmit queues.
    pub max_tx_queues: u16,
    /// What can be left to the device.
    pub offloads: Offloads,
}

/// Work that a device does (or that was switched on).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent ability of a NIC")]
pub struct Offloads {
    /// Verifies IPv4, TCP and UDP checksums.
    pub rx_checksum: bool,
    /// Takes VLAN tags out.
    pub rx_vlan_strip: bool,
    /// Spreads a large frame over several buffers.
    pub rx_scatter: bool,
    /// Spreads flows over queues by a hash.
    pub rss: bool,
    /// Fills TCP and UDP checksums.
    pub tx_l4_checksum: bool,
    /// Fills IPv4 header checksums.
    pub tx_ip_checksum: bool,
    /// Cuts TCP super-frames.
    pub tx_tso: bool,
    /// Sends chains of buffers.
    pub tx_multi_segments: bool,
    /// Inserts VLAN tags.
    pub tx_vlan_insert: bool,
}

/// How to configure a device.
#[derive(Debug, Clone)]
pub struct EthConfig {
    /// Receive queues; flows are spread over them by RSS where the device can.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Ring size of a receive queue, adjusted to what the device has.
    pub rx_descriptors: u16,
    /// Ring size of a transmit queue, adjusted to what the device has.
    pub tx_descriptors: u16,
    /// Ask for receive interrupts ([`RxQueue::wake_fd`] of real NICs). Where the driver has none,
    /// the device is configured without; drivers that have sockets are woken by these.
    pub rx_interrupts: bool,
    /// The MTU to set; `None` leaves it as it is (1500 for most drivers).
    pub mtu: Option<u16>,
}

impl Default for EthConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            rx_interrupts: false,
            mtu: None,
        }
    }
}

/// The device's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Carrier present.
    pub up: bool,
    /// Speed; 0 or `u32::MAX` where the device does not know.
    pub speed_mbps: u32,
}

/// What the device counted since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames lost because no buffer was free in time.
    pub rx_missed: u64,
    /// Damaged frames.
    pub rx_errors: u64,
    /// Failed buffer allocations of the receiver.
    pub rx_no_mbuf: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
}

impl EthDev {
    /// Brings a device up by its arguments: `net_af_packet0,iface=eth0`, `0000:00:09.0`, … The
    /// part before the first comma must be unused in this process, but for a PCI device that DPDK
    /// found ready when it started.
    ///
    /// # Errors
    /// [`Error::Probe`] when driver, interface or device are not there or not free.
    pub fn probe(_eal: Eal, arguments: &str, pool: Arc<Mempool>) -> Result<Self, Error> {
        let failed = |ret| Error::Probe { device: arguments.to_owned(), reason: reason(ret) };
        let name = arguments.split(',').next().unwrap_or_default();
        let text = CString::new(arguments).map_err(|_| Error::Nul(arguments.to_owned()))?;
        let c_name = CString::new(name).map_err(|_| Error::Nul(name.to_owned()))?;
        let _changing = devices_change();
        let before = Before::now();
        // SAFETY: the EAL is initialised; both strings are NUL-terminated and only read.
        let ret = unsafe { sys::rte_dev_probe(text.as_ptr()) };
        let found_at_start = ret == -libc::EEXIST && name.contains(':');
        if ret < 0 && !found_at_start {
            return Err(failed(ret));
        }
        let mut id = u16::MAX;
        // SAFETY: as above; `id` is written on success.
        let ret = unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut id) };
        if ret != 0 {
            return Err(failed(ret));
        }
        let port = Arc::new(Port { id, name: name.to_owned(), pool, home: Home::here() });
        Ok(Self { port, configured: None, spoiled: false, before })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.port.name
    }

    /// What the device is and can do.
    ///
    /// # Errors
    /// [`Error::Device`] when it does not answer.
    pub fn info(&self) -> Result<EthInfo, Error> {
        let raw = self.raw_info()?;
        // SAFETY: the shim leaves at least one NUL at the end of the zeroed array.
        let driver = unsafe { CStr::from_ptr(raw.driver.as_ptr()) };
        Ok(EthInfo {
            driver: driver.to_string_lossy().into_owned(),
            if_index: raw.if_index,
            max_mtu: raw.max_mtu,
            max_rx_queues: raw.max_rx_queues,
            max_tx_queues: raw.max_tx_queues,
            offloads: Offloads::from_bits(
                raw.rx_offload_capa,
                raw.tx_offload_capa,
                raw.rss_hash_functions,
            ),
        })
    }

    fn raw_info(&self) -> Result<sys::bl_eth_info, Error> {
        let mut raw = sys::bl_eth_info::default();
        // SAFETY: the port exists; `raw` is written.
        let ret = unsafe { sys::bl_eth_info(self.port.id, &raw mut raw) };
        self.port.check(ret, "reading its abilities")?;
        Ok(raw)
    }

    /// Sets up queues and switches on what the device can do for us. Once, before [`Self::start`]:
    /// a device whose queues did not come up must be probed anew, under another name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the limit, or [`Error::Device`] with the driver's answer.
    pub fn configure(&mut self, config: &EthConfig) -> Result<Offloads, Error> {
        if self.spoiled {
            return Err(Error::Device {
                device: self.port.name.clone(),
                operation: "setting up its queues",
                reason: "it failed before; probe it again".to_owned(),
            });
        }
        let info = self.raw_info()?;
        self.within("rx_queues", config.rx_queues, info.max_rx_queues)?;
        self.within("tx_queues", config.tx_queues, info.max_tx_queues)?;
        let mut conf = device_conf(config, &info, self.port.pool.data_bytes());
        let port = Arc::clone(&self.port);
        port.home.run(|| {
            self.switch_on(&mut conf)?;
            self.set_up_queues(config, &conf)?;
            let Some(mtu) = config.mtu else { return Ok(()) };
            // SAFETY: the port exists and is configured.
            let ret = unsafe { sys::rte_eth_dev_set_mtu(self.port.id, mtu) };
            self.port.check(ret, "setting the MTU")
        })?;
        let offloads =
            Offloads::from_bits(conf.rx_offloads, conf.tx_offloads, conf.rss_hash_functions);
        self.configured = Some(Configured { conf, offloads });
        Ok(offloads)
    }

    fn within(&self, field: &'static str, value: u16, max: u16) -> Result<(), Error> {
        if (1..=max).contains(&value) {
            return Ok(());
        }
        Err(Error::Unsupported {
            device: self.port.name.clone(),
            field,
            value: u64::from(value),
            allowed: format!("1 to {max}"),
        })
    }

    fn switch_on(&self, conf: &mut sys::bl_eth_conf) -> Result<(), Error> {
        // SAFETY: the port exists and is stopped.
        let mut ret = unsafe { sys::bl_eth_configure(self.port.id, conf) };
        if ret < 0 && conf.rx_interrupts != 0 {
            // Some drivers refuse receive interrupts here rather than say they have none.
            conf.rx_interrupts = 0;
            // SAFETY: as above.
            ret = unsafe { sys::bl_eth_configure(self.port.id, conf) };
        }
        self.port.check(ret, "configuring it")
    }

    fn set_up_queues(&mut self, config: &EthConfig, conf: &sys::bl_eth_conf) -> Result<(), Error> {
        let Port { id, pool, .. } = &*self.port;
        // SAFETY: the port exists and is stopped; the pool outlives it (Port holds it).
        let ret = unsafe {
            let socket = sys::rte_eth_dev_socket_id(*id);
            let (rx, tx) = (config.rx_descriptors, config.tx_descriptors);
            sys::bl_eth_queue_setup(*id, conf, rx, tx, socket, pool.as_ptr())
        };
        let outcome = self.port.check(ret, "setting up its queues");
        if outcome.is_err() {
            self.spoil();
        }
        outcome
    }

    /// The af_xdp driver (seen with 22.11) is left in pieces by a queue that does not come up. A
    /// second attempt would number the entries of its new fill ring on from those of the lost one:
    /// the kernel reads entries that nobody wrote, and puts frames where no buffer is. Closing it
    /// writes to memory that it has freed, and would not release queues that did come up: it stays
    /// as it is, until the process ends.
    fn spoil(&mut self) {
        self.spoiled = true;
        if self.info().is_ok_and(|info| info.driver == "net_af_xdp") {
            std::mem::forget(Arc::clone(&self.port));
        }
    }

    /// Starts the device and hands out its queues.
    ///
    /// # Errors
    /// [`Error::QueuesInUse`] when it runs already; [`Error::Device`] when the driver refuses or
    /// [`Self::configure`] was not called.
    pub fn start(&mut self) -> Result<(Vec<RxQueue>, Vec<TxQueue>), Error> {
        self.no_queues_out()?;
        let port = &self.port;
        let Some(configured) = &self.configured else {
            return Err(Error::Device {
                device: port.name.clone(),
                operation: "starting it",
                reason: "it is not configured".to_owned(),
            });
        };
        // SAFETY: the port exists and is configured.
        let ret = port.home.run(|| unsafe { sys::rte_eth_dev_start(port.id) });
        port.check(ret, "starting it")?;
        let interrupts = interrupt_fds(port.id, &configured.conf);
        let armed = interrupts.is_some();
        let mut wakes = interrupts
            .or_else(|| {
                let queues = configured.conf.rx_queues;
                port.home.run(|| socket_fds(&self.before, port, queues))
            })
            .unwrap_or_default()
            .into_iter();
        let rx = (0..configured.conf.rx_queues)
            .map(|index| {
                let wake = wakes.next();
                RxQueue {
                    port: Arc::clone(port),
                    index,
                    interrupts: armed && wake.is_some(),
                    wake,
                    _not_sync: PhantomData,
                }
            })
            .collect();
        let tx = (0..configured.conf.tx_queues)
            .map(|index| TxQueue { port: Arc::clone(port), index, _not_sync: PhantomData })
            .collect();
        Ok((rx, tx))
    }

    fn no_queues_out(&self) -> Result<(), Error> {
        let queues = Arc::strong_count(&self.port) - 1;
        if queues == 0 {
            return Ok(());
        }
        Err(Error::QueuesInUse { device: self.port.name.clone(), queues })
    }

    /// Stops the device; it can be started again. Dropping the device closes it.
    ///
    /// # Errors
    /// [`Error::QueuesInUse`] while a queue of it exists.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.no_queues_out()?;
        // SAFETY: the port exists, and nobody polls it: there is no queue.
        let ret = self.port.home.run(|| unsafe { sys::rte_eth_dev_stop(self.port.id) });
        self.port.check(ret, "stopping it")
    }

    /// What [`Self::configure`] switched on.
    pub fn offloads(&self) -> Offloads {
        self.configured.as_ref().map(|c| c.offloads).unwrap_or_default()
    }

    /// Receives frames for any MAC address, or not.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver cannot.
    pub fn set_promiscuous(&self, on: bool) -> Result<(), Error> {
        // SAFETY: the port exists.
        let ret = self.port.home.run(|| unsafe {
            if on {
                sys::rte_eth_promiscuous_enable(self.port.id)
            } else {
                sys::rte_eth_promiscuous_disable(self.port.id)
            }
        });
        self.port.check(ret, "changing promiscuous mode")
    }

    /// Receives all multicast frames.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver cannot.
    pub fn set_all_multicast(&self) -> Result<(), Error> {
        // SAFETY: the port exists.
        let ret = self.port.home.run(|| unsafe { sys::rte_eth_allmulticast_enable(self.port.id) });
        self.port.check(ret, "enabling all multicast")
    }

    /// The device's MAC address.
    ///
    /// # Errors
    /// [`Error::Device`] when it has none.
    pub fn mac(&self) -> Result<[u8; 6], Error> {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: the port exists; `address` is written.
        let ret = unsafe { sys::rte_eth_macaddr_get(self.port.id, &raw mut address) };
        self.port.check(ret, "reading its MAC address")?;
        Ok(address.addr_bytes)
    }

    /// The link, without waiting for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver does not answer.
    pub fn link(&self) -> Result<Link, Error> {
        let mut raw = sys::bl_eth_link::default();
        // SAFETY: the port exists; `raw` is written.
        let ret = self.port.home.run(|| unsafe { sys::bl_eth_link(self.port.id, &raw mut raw) });
        self.port.check(ret, "reading its link")?;
        Ok(Link { up: raw.up != 0, speed_mbps: raw.speed_mbps })
    }

    /// The device's counters.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver has none.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.port.stats()
    }
}

const RX_CHECKSUM: u64 =
    sys::BL_OFFLOAD_RX_IPV4_CKSUM | sys::BL_OFFLOAD_RX_UDP_CKSUM | sys::BL_OFFLOAD_RX_TCP_CKSUM;
const TX_L4_CHECKSUM: u64 = sys::BL_OFFLOAD_TX_UDP_CKSUM | sys::BL_OFFLOAD_TX_TCP_CKSUM;

impl Offloads {
    fn from_bits(rx: u64, tx: u64, rss: u64) -> Self {
        let has = |bits: u64, mask: u64| bits & mask == mask;
        Self {
            rx_checksum: has(rx, RX_CHECKSUM),
            rx_vlan_strip: has(rx, sys::BL_OFFLOAD_RX_VLAN_STRIP),
            rx_scatter: has(rx, sys::BL_OFFLOAD_RX_SCATTER),
            rss: rss != 0,
            tx_l4_checksum: has(tx, TX_L4_CHECKSUM),
            tx_ip_checksum: has(tx, sys::BL_OFFLOAD_TX_IPV4_CKSUM),
            tx_tso: has(tx, sys::BL_OFFLOAD_TX_TCP_TSO),
            tx_multi_segments: has(tx, sys::BL_OFFLOAD_TX_MULTI_SEGS),
            tx_vlan_insert: has(tx, sys::BL_OFFLOAD_TX_VLAN_INSERT),
        }
    }
}

/// Everything that helps and that the device has. VLAN stripping stays off: the path reads tags in
/// place, and a frame for the node must cross unchanged.
fn device_conf(config: &EthConfig, info: &sys::bl_eth_info, data_bytes: u16) -> sys::bl_eth_conf {
    let mtu = config.mtu.unwrap_or(0);
    // Ethernet header, two tags and the frame check sequence around the MTU.
    let frame_bytes = u32::from(mtu) + 14 + 8 + 4;
    let scatter = if frame_bytes > u32::from(data_bytes) { sys::BL_OFFLOAD_RX_SCATTER } else { 0 };
    let tx = TX_L4_CHECKSUM
        | sys::BL_OFFLOAD_TX_IPV4_CKSUM
        | sys::BL_OFFLOAD_TX_TCP_TSO
        | sys::BL_OFFLOAD_TX_MULTI_SEGS;
    sys::bl_eth_conf {
        rx_queues: config.rx_queues,
        tx_queues: config.tx_queues,
        mtu: u32::from(mtu),
        rx_offloads: info.rx_offload_capa & (RX_CHECKSUM | scatter),
        tx_offloads: info.tx_offload_capa & tx,
        rss_hash_functions: if config.rx_queues > 1 { info.rss_hash_functions } else { 0 },
        rx_interrupts: u8::from(config.rx_interrupts),
    }
}

/// One descriptor per queue from DPDK's interrupt API, or none.
fn interrupt_fds(port: u16, conf: &sys::bl_eth_conf) -> Option<Vec<OwnedFd>> {
    if conf.rx_interrupts == 0 {
        return None;
    }
    (0..conf.rx_queues)
        .map(|queue| {
            // SAFETY: the port is started; the answer is a descriptor of the driver or negative.
            let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue) };
            if fd < 0 {
                return None;
            }
            // SAFETY: the driver keeps it open while the port exists; this is a duplicate.
            unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()
        })
        .collect()
}

fn socket_fds(before: &Before, port: &Port, queues: u16) -> Option<Vec<OwnedFd>> {
    let mut raw = sys::bl_eth_info::default();
    // SAFETY: the port exists; `raw` is written.
    if unsafe { sys::bl_eth_info(port.id, &raw mut raw) } != 0 || raw.if_index == 0 {
        return None;
    }
    before.appeared(raw.if_index, usize::from(queues))
}
