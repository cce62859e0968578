//! The steps of a takeover and of its way back. Each looks first and may be repeated.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::config::NetConfig;
use super::journal::{Journal, Pci, Phase, Store};
use super::link::{self, Change, Link};
use super::netlink::Netlink;
use super::pci::{self, PciAddress};
use super::prove;
use super::{Error, Hook, Moved, Spec, Step, Taken, Use, boot_id};
use crate::sys::{ethtool, netns, tun};

/// Attaches the step and the interface to the kernel's answer.
trait Named<T> {
    fn named(self, step: &'static str, interface: &str) -> Result<T, Error>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, step: &'static str, interface: &str) -> Result<T, Error> {
        self.map_err(|source| Error::Step { step, interface: interface.to_owned(), source })
    }
}

/// The real NIC, if it is in the node (a tap of the name is ours, not the NIC).
pub(super) fn nic_in_node(netlink: &mut Netlink, interface: &str) -> Result<Option<Link>, Error> {
    let found = Link::find(netlink, interface).named("looking", interface)?;
    Ok(found.filter(|link| link.kind != "tun"))
}

/// Checks the NIC, says what will be done, and reads what must be kept.
pub(super) fn plan(
    netlink: &mut Netlink,
    spec: &Spec,
    nic: &Link,
    old: Option<&Journal>,
) -> Result<Journal, Error> {
    let interface = &spec.interface;
    check(netlink, nic)?;
    let pci = leaves_kernel(spec)?;
    let mut config =
        NetConfig::read(netlink, nic.index, interface).named("reading the addresses", interface)?;
    if prove::learn(netlink, nic.index, &config).is_ok() {
        config = NetConfig::read(netlink, nic.index, interface)
            .named("reading the addresses", interface)?;
    }
    let netns = match old.filter(|journal| journal.pci.is_none()) {
        _ if pci.is_some() => String::new(),
        Some(journal) => journal.netns.clone(),
        None => free_name(interface)?,
    };
    tracing::info!(
        interface,
        mac = ?nic.mac,
        mtu = nic.mtu,
        addresses = config.describe(),
        routes = config.routes.len(),
        neighbours = config.neighbours.len(),
        link_up = nic.up,
        carrier = nic.carrier,
        also_used_by = packet_users(nic.index),
        namespace = netns,
        pci = ?pci,
        "taking the interface over: it moves into the namespace, or from its kernel driver to \
         vfio-pci; a tap takes its place in the node"
    );
    Ok(Journal::new(
        interface,
        (netns, pci),
        format!("bltap{}", nic.index),
        nic,
        (offloads_on(interface, spec.purpose), rx_queues(interface)),
        config,
        boot_id(),
        netns::cookie(),
    ))
}

/// The device that changes its driver, and the driver that it has, if that is how it is to be used.
fn leaves_kernel(spec: &Spec) -> Result<Option<Pci>, Error> {
    let Use::Pci(address) = spec.purpose else { return Ok(None) };
    let refused = |reason| Error::Refused { interface: spec.interface.clone(), reason };
    if let Some(reason) = address.obstacle(&spec.interface) {
        return Err(refused(reason));
    }
    let driver = address.driver();
    let driver = driver.ok_or_else(|| refused(format!("PCI device {address} has no driver")))?;
    Ok(Some(Pci { address: address.to_string(), driver }))
}

/// Refuses what would not survive the move.
fn check(netlink: &mut Netlink, nic: &Link) -> Result<(), Error> {
    let refused = |reason: String| Error::Refused { interface: nic.name.clone(), reason };
    if nic.loopback {
        return Err(refused("it is the loopback device; name the interface of a NIC".to_owned()));
    }
    let all = Link::all(netlink).named("listing the links", &nic.name)?;
    if let Some(master) = nic.master {
        let name = all.iter().find(|l| l.index == master).map_or("?", |l| l.name.as_str());
        return Err(refused(format!(
            "it belongs to {name}; take it out (`ip link set {} nomaster`), or take {name} over",
            nic.name
        )));
    }
    let above: Vec<&str> = all
        .iter()
        .filter(|l| l.below == Some(nic.index) && l.kind != "veth")
        .map(|l| l.name.as_str())
        .collect();
    if above.is_empty() {
        return Ok(());
    }
    Err(refused(format!("{} sits on top of it; delete it first", above.join(", "))))
}

/// A name for the namespace that nobody has: several nodes may share /run/netns.
fn free_name(interface: &str) -> Result<String, Error> {
    let base = format!("bowline-{interface}-{:x}", netns::cookie());
    for number in 1_u32.. {
        let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        match netns::open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
            Err(error) => return Err(error).named("looking for the namespace", interface),
            Ok(_) => tracing::warn!(name, "a namespace of this name is left from something else"),
        }
    }
    Ok(base)
}

/// How many packet sockets sit on the NIC: a DHCP client, lldpd, tcpdump. They stay with the NIC.
fn packet_users(index: u32) -> String {
    let table = fs::read_to_string("/proc/net/packet").unwrap_or_default();
    let sockets = table
        .lines()
        .skip(1)
        .filter(|line| line.split_whitespace().nth(4).and_then(|i| i.parse().ok()) == Some(index))
        .count();
    match sockets {
        0 => "nobody".to_owned(),
        n => format!("{n} packet sockets (DHCP client, LLDP, capture …): restart these programs"),
    }
}

/// Switches that must be off, because a frame must leave and arrive as one frame on the wire.
fn unwanted(purpose: Use) -> &'static [ethtool::Switch] {
    match purpose {
        // The virtio-net header tells what is left to do; only merging is in the way.
        Use::Packet => &[ethtool::GRO, ethtool::LRO],
        Use::AfPacket | Use::AfXdp => &ethtool::ALL,
        // The kernel's driver leaves it, and sets the hardware up anew when it comes back.
        Use::Pci(_) => &[],
    }
}

fn offloads_on(interface: &str, purpose: Use) -> Vec<String> {
    let Ok(socket) = ethtool::open() else { return Vec::new() };
    unwanted(purpose)
        .iter()
        .filter(|switch| ethtool::get(&socket, interface, **switch).unwrap_or(false))
        .map(|switch| switch.name.to_owned())
        .collect()
}

fn rx_queues(interface: &str) -> Option<u32> {
    let socket = ethtool::open().ok()?;
    ethtool::rx_queues(&socket, interface).ok().map(|queues| queues.count)
}

/// What to say when the interface is nowhere and no journal knows about it.
pub(super) fn nothing_to_take(netlink: &mut Netlink, spec: &Spec, store: &Store) -> Error {
    let tap = Link::find(netlink, &spec.interface).ok().flatten().is_some();
    let reason = if tap {
        format!(
            "it is a tap, and there is no journal {} that says whose; start with the state folder \
             of the data plane that made it",
            store.path().display()
        )
    } else {
        "there is no such interface; `ip link` lists those of this node".to_owned()
    };
    Error::Refused { interface: spec.interface.clone(), reason }
}

/// From wherever things are to "taken".
pub(super) fn take(
    netlink: &mut Netlink,
    spec: &Spec,
    store: Store,
    mut journal: Journal,
    resumed: bool,
    hook: Hook<'_>,
) -> Result<Taken, Error> {
    let interface = journal.interface.clone();
    let host_tap = make_tap(netlink, &journal, spec.queues).named("making the tap", &interface)?;
    hook(Step::TapMade)?;
    let Some(moved) = remove_nic(netlink, spec, &journal, hook)? else {
        return Err(forget(netlink, &store, &journal));
    };
    if name_tap(netlink, &journal).named("naming the tap", &interface)?
        || journal.phase != Phase::Taken
    {
        hook(Step::TapNamed)?;
        configure(netlink, &journal, true).named("configuring the tap", &interface)?;
        hook(Step::TapConfigured)?;
        journal.phase = Phase::Taken;
        store.save(&journal)?;
    }
    hook(Step::Committed)?;
    tracing::info!(interface, resumed, "the interface is taken over");
    Ok(Taken {
        host_tap,
        moved: moved.kernels(),
        mac: journal.mac,
        mtu: journal.mtu,
        name: interface,
        resumed,
        journal,
        store,
    })
}

/// What became of the NIC.
enum Removed {
    Moved(Moved),
    Unbound,
}

impl Removed {
    fn kernels(self) -> Option<Moved> {
        match self {
            Self::Moved(moved) => Some(moved),
            Self::Unbound => None,
        }
    }
}

/// Takes the NIC out of the node, or sees that it is out; `None`: it is nowhere.
fn remove_nic(
    netlink: &mut Netlink,
    spec: &Spec,
    journal: &Journal,
    hook: Hook<'_>,
) -> Result<Option<Removed>, Error> {
    let interface = &journal.interface;
    let Some(pci) = &journal.pci else {
        let moved = move_nic(netlink, spec, journal, hook)?;
        return Ok(moved.map(Removed::Moved));
    };
    let address = pci.address().named("reading the PCI address", interface)?;
    if !address.exists() {
        return Ok(None);
    }
    address.bind(pci::VFIO).named("handing the PCI device to vfio-pci", interface)?;
    hook(Step::NicMoved)?;
    Ok(Some(Removed::Unbound))
}

fn move_nic(
    netlink: &mut Netlink,
    spec: &Spec,
    journal: &Journal,
    hook: Hook<'_>,
) -> Result<Option<Moved>, Error> {
    let interface = &journal.interface;
    let netns = make_namespace(&journal.netns).named("making the namespace", interface)?;
    hook(Step::NamespaceMade)?;
    if let Some(nic) = nic_in_node(netlink, interface)? {
        Change::of(nic.index)
            .namespace(netns.as_fd())
            .send(netlink)
            .named("moving the NIC", interface)?;
    }
    hook(Step::NicMoved)?;
    let Some((ifindex, rx_queues)) =
        netns::run_in(netns.as_fd(), || prepare(spec, journal.rx_queues))
            .and_then(|inner| inner)
            .named("preparing the NIC", interface)?
    else {
        return Ok(None);
    };
    hook(Step::NicPrepared)?;
    Ok(Some(Moved { netns, ifindex, rx_queues }))
}

/// Opens the tap under whichever of its two names it has.
fn make_tap(netlink: &mut Netlink, journal: &Journal, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let named = Link::find(netlink, &journal.interface)?.is_some_and(|link| link.kind == "tun");
    let name = if named { &journal.interface } else { &journal.tap };
    open_tap(name, queues)
}

const TUN: &str = "/dev/net/tun";

/// A tap that outlives us, and keeps what the node knows of its neighbours meanwhile.
///
/// Without a process it has no carrier, for which the kernel forgets all neighbours of a device. It
/// would then ask for them while nobody listens, and again only a second later.
fn open_tap(name: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let tap = tun::open_tap(name, queues).map_err(|error| match fs::exists(TUN) {
        Ok(false) => io::Error::new(
            error.kind(),
            "/dev/net/tun is missing: run 'modprobe tun', or start the container with --device /dev/net/tun",
        ),
        _ => error,
    })?;
    if let Some(queue) = tap.first() {
        tun::set_persistent(queue, true)?;
    }
    for setting in ["ipv4/conf/NAME/arp_evict_nocarrier", "ipv6/conf/NAME/ndisc_evict_nocarrier"] {
        // Linux 5.16 and newer have them.
        let path = format!("/proc/sys/net/{}", setting.replace("NAME", name));
        fs::write(path, "0").or_else(if_it_exists)?;
    }
    Ok(tap)
}

/// The namespace, without IPv6: the NIC must not answer for the node.
fn make_namespace(name: &str) -> io::Result<OwnedFd> {
    let made = match netns::create(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match netns::open(name) {
            // A crash came between the file and the mount on it; the file is gone now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => netns::create(name)?,
            opened => opened?,
        },
        created => created?,
    };
    netns::run_in(made.as_fd(), || {
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").or_else(if_it_exists)
    })??;
    Ok(made)
}

fn if_it_exists(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// In the NIC's namespace: no address, everything received, nothing merged. The NIC's number and its
/// receive queues; `None`: no NIC here.
fn prepare(spec: &Spec, queues_before: Option<u32>) -> io::Result<Option<(u32, u32)>> {
    let interface = &spec.interface;
    let mut netlink = Netlink::open()?;
    let Some(nic) = Link::find(&mut netlink, interface)? else { return Ok(None) };
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1")
        .or_else(if_it_exists)?;
    let socket = ethtool::open()?;
    for switch in unwanted(spec.purpose) {
        // A device that does not have the switch, or cannot turn it, has nothing to turn off.
        let _ = ethtool::set(&socket, interface, *switch, false);
    }
    // No program is the normal case, and some drivers refuse to hear about it.
    let _ = Change::of(nic.index).without_xdp().send(&mut netlink);
    let queues = limit_queues(&socket, spec, queues_before)?;
    Change::of(nic.index).promiscuous(true).up(true).send(&mut netlink)?;
    Ok(Some((nic.index, queues)))
}

/// Leaves a NIC for XDP no more receive queues than will have a socket: a frame that arrives on
/// another one is lost. DPDK's driver opens several only where they are paired. The answer is how
/// many it has.
fn limit_queues(socket: &OwnedFd, spec: &Spec, before: Option<u32>) -> io::Result<u32> {
    // One that does not say has one.
    let Ok(now) = ethtool::rx_queues(socket, &spec.interface) else { return Ok(1) };
    let most = if now.paired { u32::from(spec.queues) } else { 1 };
    let wanted = before.unwrap_or(now.count).min(most);
    if spec.purpose != Use::AfXdp || wanted == now.count {
        return Ok(now.count);
    }
    ethtool::set_rx_queues(socket, &spec.interface, wanted).map_err(|error| {
        let setting = if now.paired { "combined" } else { "rx" };
        let name = &spec.interface;
        io::Error::new(
            error.kind(),
            format!(
                "it has {} receive queues, of which XDP sockets would read {wanted}, and                  `ethtool -L {name} {setting} {wanted}` is refused ({error}); use {name}=packet",
                now.count
            ),
        )
    })?;
    Ok(wanted)
}

/// Gives the tap the NIC's name and looks; whether it did not have them.
fn name_tap(netlink: &mut Netlink, journal: &Journal) -> io::Result<bool> {
    let Some(tap) = Link::find(netlink, &journal.tap)? else { return Ok(false) };
    Change::of(tap.index)
        .mac(journal.mac)
        .mtu(journal.mtu)
        .tx_queue_len(journal.tx_queue_len)
        .name(&journal.interface)
        .send(netlink)?;
    Ok(true)
}

/// Puts the configuration on whatever has the interface's name in the node.
fn configure(netlink: &mut Netlink, journal: &Journal, up: bool) -> io::Result<()> {
    let interface = &journal.interface;
    let device = Link::by_name(netlink, interface)?;
    // The link-local address comes with the others, at once usable. The kernel would make its own
    // and first ask the network about it for a second (RFC 4862 §5.4). Both settings get their
    // kept values in the end.
    for (setting, value) in [("addr_gen_mode", "1"), ("accept_dad", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{setting}");
        fs::write(path, value).or_else(if_it_exists)?;
    }
    Change::of(device.index).up(up).send(netlink)?;
    for refusal in journal.config.apply(netlink, device.index, interface) {
        tracing::warn!(interface, refusal, "not everything could be kept");
    }
    Ok(())
}

/// From wherever things are to "as before", with what the host tap has now.
pub(super) fn give_back(
    netlink: &mut Netlink,
    store: &Store,
    journal: &mut Journal,
    hook: Hook<'_>,
) -> Result<(), Error> {
    let interface = journal.interface.clone();
    let tap = Link::find(netlink, &interface)
        .named("looking", &interface)?
        .filter(|link| link.kind == "tun");
    if let Some(tap) = tap.filter(|_| journal.phase == Phase::Taken) {
        journal.config =
            NetConfig::read(netlink, tap.index, &interface).named("reading the tap", &interface)?;
        journal.up = tap.up;
    }
    journal.phase = Phase::GivingBack;
    store.save(journal)?;
    hook(Step::GivingBack)?;
    // Not moved, or moved back before a crash: then it may lack its configuration all the same.
    let nic_is_here = nic_in_node(netlink, &interface)?.is_some();
    delete_taps(netlink, journal).named("deleting the tap", &interface)?;
    hook(Step::TapDeleted)?;
    let returned = match &journal.pci {
        Some(pci) => rebind(netlink, journal, pci),
        None if nic_is_here => Ok(true),
        None => bring_back(journal),
    };
    if !returned.named("bringing the NIC back", &interface)? {
        return Err(forget(netlink, store, journal));
    }
    hook(Step::NicReturned)?;
    configure(netlink, journal, journal.up).named("configuring the NIC", &interface)?;
    hook(Step::NicConfigured)?;
    remove_namespace(journal).named("removing the namespace", &interface)?;
    hook(Step::NamespaceRemoved)?;
    store.remove()?;
    hook(Step::JournalRemoved)?;
    tracing::info!(interface, "the interface is given back");
    Ok(())
}

/// One that leaves the kernel has none.
fn remove_namespace(journal: &Journal) -> io::Result<()> {
    if journal.pci.is_some() { Ok(()) } else { netns::remove(&journal.netns) }
}

fn delete_taps(netlink: &mut Netlink, journal: &Journal) -> io::Result<()> {
    remove_tap(netlink, &journal.interface)?;
    remove_tap(netlink, &journal.tap)
}

/// Deletes the tap of this name, if there is one.
pub(super) fn remove_tap(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    match Link::find(netlink, name)?.filter(|link| link.kind == "tun") {
        Some(tap) => link::delete(netlink, tap.index),
        None => Ok(()),
    }
}

/// A tap that replaces nothing, and its MAC address: one that is there already keeps it, because
/// others know it, while some devices make up a new one at each start.
pub(super) fn stand_alone_tap(
    netlink: &mut Netlink,
    name: &str,
    mac: [u8; 6],
    mtu: u16,
    queues: u16,
) -> io::Result<(Vec<OwnedFd>, [u8; 6])> {
    let old = Link::find(netlink, name)?;
    let tap = open_tap(name, queues)?;
    let mac = old.map_or(mac, |link| link.mac);
    let link = Link::by_name(netlink, name)?;
    Change::of(link.index).mac(mac).mtu(u32::from(mtu)).up(true).send(netlink)?;
    Ok((tap, mac))
}

/// Gives the device back to its kernel driver, which makes a new interface; `false` when the device
/// is not there.
fn rebind(netlink: &mut Netlink, journal: &Journal, pci: &Pci) -> io::Result<bool> {
    let address: PciAddress = pci.address()?;
    if !address.exists() {
        return Ok(false);
    }
    address.bind(&pci.driver)?;
    let nic = address.named_interface(netlink, &journal.interface)?;
    if nic.mac != journal.mac {
        // Not of an interface that is up, as it is when it was never taken.
        Change::of(nic.index).up(false).send(netlink)?;
        Change::of(nic.index).mac(journal.mac).send(netlink)?;
    }
    Change::of(nic.index).mtu(journal.mtu).tx_queue_len(journal.tx_queue_len).send(netlink)?;
    Ok(true)
}

/// Moves the NIC from its namespace to the thread's; `false` when it is not there.
fn bring_back(journal: &Journal) -> io::Result<bool> {
    let node = netns::current()?;
    let from = match netns::open(&journal.netns) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    netns::run_in(from.as_fd(), || {
        let mut netlink = Netlink::open()?;
        let Some(nic) = Link::find(&mut netlink, &journal.interface)? else { return Ok(false) };
        let _ = Change::of(nic.index).without_xdp().send(&mut netlink);
        Change::of(nic.index).promiscuous(false).up(false).send(&mut netlink)?;
        let socket = ethtool::open()?;
        for switch in ethtool::ALL {
            if journal.offloads.iter().any(|name| name == switch.name) {
                // As with switching off: a refusal leaves a slower, working NIC.
                let _ = ethtool::set(&socket, &journal.interface, switch, true);
            }
        }
        if let Some(queues) =
            journal.rx_queues.filter(|n| rx_queues(&journal.interface) != Some(*n))
        {
            let _ = ethtool::set_rx_queues(&socket, &journal.interface, queues);
        }
        Change::of(nic.index).namespace(node.as_fd()).send(&mut netlink)?;
        Ok(true)
    })?
}

/// The NIC is gone (its namespace was deleted, a virtual one died with its peer): nothing is left
/// to give back, so the tap, the name and the journal go too.
fn forget(netlink: &mut Netlink, store: &Store, journal: &Journal) -> Error {
    let interface = journal.interface.clone();
    let cleaned = delete_taps(netlink, journal)
        .and_then(|()| remove_namespace(journal))
        .named("cleaning up", &interface)
        .and_then(|()| store.remove());
    match cleaned {
        Ok(()) => Error::NicLost { interface, place: journal.place() },
        Err(error) => error,
    }
}
