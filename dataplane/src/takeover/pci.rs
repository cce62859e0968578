//! A NIC on the PCI bus changes its driver: from the kernel's to vfio-pci, by which this process
//! reaches the hardware, and back.
//!
//! `driver_override` names the one driver that may have the device, and `drivers_probe` has the
//! kernel look for it. The override is taken off again once the driver is there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::link::{Change, Link};
use super::netlink::Netlink;

const BUS: &str = "/sys/bus/pci";
/// The driver that hands a device to a process.
pub(super) const VFIO: &str = "vfio-pci";
/// Drivers without a kernel interface to lose, and those that share their NIC with DPDK.
const SHARING: &[&str] = &["mlx4_core", "mlx5_core"];
/// Some drivers come up beside the call that asks for them, and rename their interface later.
const DRIVER_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A device's place on the bus, as in `0000:3b:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no PCI address, such as 0000:3b:00.0");
        let hex = |part: &str, digits: usize| {
            let sound = part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
            u32::from_str_radix(part, 16).ok().filter(|_| sound).ok_or_else(wrong)
        };
        let (domain, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (bus, rest) = rest.split_once(':').ok_or_else(wrong)?;
        let (device, function) = rest.split_once('.').ok_or_else(wrong)?;
        let (device, function) = (hex(device, 2)?, hex(function, 1)?);
        if device > 31 || function > 7 {
            return Err(wrong());
        }
        Ok(Self {
            domain: hex(domain, 4)?,
            bus: hex(bus, 2)? as u8,
            device: device as u8,
            function: function as u8,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl PciAddress {
    fn path(self) -> PathBuf {
        Path::new(BUS).join("devices").join(self.to_string())
    }

    /// Whether the bus has such a device.
    pub(super) fn exists(self) -> bool {
        self.path().exists()
    }

    /// The driver that has it.
    pub(super) fn driver(self) -> Option<String> {
        name_behind(&self.path().join("driver"))
    }

    /// The kernel's interface on it. A virtio NIC has one more device in between.
    pub(super) fn interface(self) -> Option<String> {
        let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let first = |path: PathBuf| entries(&path).next()?.file_name().into_string().ok();
        let path = self.path();
        let below = entries(&path)
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"));
        std::iter::once(path.clone())
            .chain(below.map(|entry| entry.path()))
            .find_map(|place| first(place.join("net")))
    }

    /// What stands in the way of handing the device to this process, and what to do.
    pub(super) fn obstacle(self, interface: &str) -> Option<String> {
        if !self.exists() {
            return Some(format!("there is no PCI device {self}; `lspci -D` lists them"));
        }
        let on_it = self.interface();
        if on_it.as_deref() != Some(interface) {
            let found = on_it.as_deref().unwrap_or("no interface");
            return Some(format!(
                "PCI device {self} has {found}; `readlink /sys/class/net/{interface}/device` says \
                 where {interface} is"
            ));
        }
        let driver = self.driver().unwrap_or_default();
        if SHARING.contains(&driver.as_str()) {
            return Some(format!(
                "its driver {driver} shares the NIC with DPDK and must keep it; use \
                 {interface}=net_af_xdp"
            ));
        }
        if !Path::new(BUS).join("drivers").join(VFIO).exists() {
            return Some(format!("the kernel has no driver {VFIO}; run `modprobe {VFIO}`"));
        }
        self.group_obstacle()
    }

    /// A process gets whole IOMMU groups only.
    fn group_obstacle(self) -> Option<String> {
        let group = self.path().join("iommu_group");
        if !group.exists() {
            return Some(format!(
                "PCI device {self} is behind no IOMMU; boot with intel_iommu=on or amd_iommu=on, or \
                 use net_af_xdp or packet instead"
            ));
        }
        let others = fs::read_dir(group.join("devices")).into_iter().flatten().flatten();
        let others = others.filter_map(|entry| entry.file_name().to_str()?.parse::<Self>().ok());
        let in_use = others.filter(|other| *other != self).find_map(|other| {
            let driver = other.driver()?;
            (driver != VFIO && driver != "pcieport").then_some((other, driver))
        });
        in_use.map(|(other, driver)| {
            format!(
                "PCI device {other} is in the same IOMMU group and used by {driver}; a process gets \
                 both or none, so free it first (`dpdk-devbind.py -u {other}`)"
            )
        })
    }

    /// Gives the device to a driver, whoever has it now. Done at once when that one has it.
    pub(super) fn bind(self, driver: &str) -> io::Result<()> {
        let overriding = self.path().join("driver_override");
        fs::write(&overriding, format!("{driver}\n"))?;
        if self.driver().as_deref() != Some(driver) {
            if self.driver().is_some() {
                fs::write(self.path().join("driver/unbind"), self.to_string())?;
                wait(|| self.driver().is_none().then_some(()))
                    .ok_or_else(|| io::Error::other("the old driver does not let go of it"))?;
            }
            fs::write(Path::new(BUS).join("drivers_probe"), self.to_string())?;
            wait(|| (self.driver().as_deref() == Some(driver)).then_some(())).ok_or_else(|| {
                io::Error::other(format!("{driver} did not take PCI device {self}; see `dmesg`"))
            })?;
        }
        fs::write(&overriding, "\n")
    }

    /// Waits for the kernel's interface, and gives it its name: another one may have been free first.
    pub(super) fn named_interface(self, netlink: &mut Netlink, name: &str) -> io::Result<Link> {
        let found = wait(|| {
            let now = self.interface()?;
            let link = Link::find(netlink, &now).ok().flatten()?;
            if now == name {
                return Some(link);
            }
            // udev may be at it, too: whoever is second looks again.
            let _ = Change::of(link.index).up(false).send(netlink);
            let _ = Change::of(link.index).name(name).send(netlink);
            None
        });
        found.ok_or_else(|| io::Error::other(format!("PCI device {self} has no interface {name}")))
    }
}

/// What `look` finds in time.
fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + DRIVER_LIMIT;
    loop {
        match look() {
            None if Instant::now() < deadline => std::thread::sleep(PAUSE),
            found => return found,
        }
    }
}

fn name_behind(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let text = "0000:3b:1f.7";
        assert_eq!(text.parse::<PciAddress>().expect("an address").to_string(), text);
        for bad in [
            "eth0",
            "3b:00.0",
            "0000:3b:00",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "000:3b:00.0",
            "0000:+b:00.0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
