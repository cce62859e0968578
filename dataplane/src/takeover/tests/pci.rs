//! A PCI bus that this test plays: its folders are laid over /sys/bus/pci, and a thread does what the
//! kernel does when a driver is taken off a NIC and another one put on. The interfaces are real.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::*;

const ADDRESS: &str = "0000:3b:00.0";
const NEIGHBOUR: &str = "0000:3b:00.1";
const KERNELS: &str = "e1000e";

/// The bus, for the calling thread and those that it makes.
pub(super) struct Bus {
    root: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    kernel: Option<JoinHandle<()>>,
}

impl Bus {
    /// One NIC, with the interface eth0.
    pub(super) fn new(peer: OwnedFd) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path();
        let device = path.join("devices").join(ADDRESS);
        for folder in [
            device.join("net/eth0"),
            path.join("groups/7/devices").join(ADDRESS),
            path.join("drivers").join(KERNELS),
            path.join("drivers/vfio-pci"),
        ] {
            fs::create_dir_all(folder).expect("made");
        }
        fs::write(device.join("driver_override"), "(null)\n").expect("written");
        symlink("../../groups/7", device.join("iommu_group")).expect("linked");
        let told: Vec<_> = ["drivers_probe", "drivers/e1000e/unbind", "drivers/vfio-pci/unbind"]
            .map(|name| listen(path.join(name)))
            .into();
        let kernel = Kernel { root: path.to_owned(), device, peer };
        kernel.drive(KERNELS);
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("root");
        mount(Some(path), "/sys/bus/pci", none, MsFlags::MS_BIND, none).expect("mounted");
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let kernel = std::thread::spawn(move || kernel.run(told, &over));
        Self { root, stop, kernel: Some(kernel) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(super) fn driver(&self) -> String {
        address().driver().expect("a driver")
    }

    /// Nothing of ours stays but the driver.
    pub(super) fn is_clean(&self) -> bool {
        let setting = self.path("devices").join(ADDRESS).join("driver_override");
        fs::read_to_string(setting).expect("readable").trim().is_empty()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(kernel) = self.kernel.take() {
            let _ = kernel.join();
        }
        // The folders go with this, and the next bus of this thread wants the place.
        let _ = umount2("/sys/bus/pci", MntFlags::MNT_DETACH);
    }
}

pub(super) fn address() -> PciAddress {
    ADDRESS.parse().expect("an address")
}

/// A file that the kernel is told something by.
fn listen(path: PathBuf) -> File {
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("made");
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).expect("opened")
}

struct Kernel {
    root: PathBuf,
    device: PathBuf,
    peer: OwnedFd,
}

impl Kernel {
    fn run(self, mut told: Vec<File>, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            for (number, file) in told.iter_mut().enumerate() {
                let mut word = [0; 64];
                let Ok(bytes) = file.read(&mut word) else { continue };
                match (&word[..bytes] == ADDRESS.as_bytes(), number) {
                    (true, 0) => self.probe(),
                    (true, _) => self.unbind(),
                    (false, _) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn unbind(&self) {
        fs::remove_file(self.device.join("driver")).expect("bound");
        let interfaces = self.device.join("net");
        for interface in fs::read_dir(&interfaces).into_iter().flatten().flatten() {
            run(&format!("ip link del {}", interface.file_name().display()));
        }
        let _ = fs::remove_dir_all(interfaces);
    }

    fn probe(&self) {
        let wanted = fs::read_to_string(self.device.join("driver_override")).expect("readable");
        let driver = if wanted.trim().is_empty() { KERNELS } else { wanted.trim() };
        if !self.root.join("drivers").join(driver).exists() {
            return;
        }
        self.drive(driver);
        if driver == KERNELS {
            // Under the first free name, as kernels do; and a moment after the driver.
            plug_in("eth7", &self.peer);
            fs::create_dir_all(self.device.join("net/eth7")).expect("made");
            self.rename();
        }
    }

    fn drive(&self, driver: &str) {
        symlink(format!("../../drivers/{driver}"), self.device.join("driver")).expect("free");
    }

    /// The folder follows the interface's name.
    fn rename(&self) {
        let mut netlink = Netlink::open().expect("netlink");
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if Link::find(&mut netlink, "eth0").expect("netlink").is_some() {
                let net = self.device.join("net");
                return fs::rename(net.join("eth7"), net.join("eth0")).expect("renamed");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const FORWARD: &[Step] = &[
    Step::JournalWritten,
    Step::TapMade,
    Step::NicMoved,
    Step::TapNamed,
    Step::TapConfigured,
    Step::Committed,
];

#[test]
fn a_nic_changes_its_driver_and_comes_back() {
    let rig = Rig::on_pci();
    let taken = rig.begin().expect("taken");
    assert!(taken.moved.is_none());
    rig.taken(&taken);
    run("ip addr add 10.9.5.5/24 dev eth0");
    drop(taken);
    let taken = rig.begin().expect("resumed");
    assert!(taken.resumed);
    run("ip addr del 10.9.5.5/24 dev eth0");
    taken.restore().expect("given back");
    rig.given_back();
}

#[test]
fn a_crash_at_any_step_is_healed_or_undone() {
    for step in FORWARD {
        let rig = Rig::on_pci();
        assert!(rig.begin_until(*step), "{step:?} is a step");
        let taken = rig.begin().unwrap_or_else(|error| panic!("after {step:?}: {error}"));
        rig.taken(&taken);
        drop(taken);
        assert!(rollback("eth0", rig.state()).unwrap_or_else(|e| panic!("after {step:?}: {e}")));
        rig.given_back();
        assert!(rig.begin_until(*step));
        assert!(rollback("eth0", rig.state()).unwrap_or_else(|e| panic!("after {step:?}: {e}")));
        rig.given_back();
    }
}

#[test]
fn a_crash_on_the_way_back_is_healed_or_undone() {
    for step in BACK {
        let rig = Rig::on_pci();
        drop(rig.begin().expect("taken"));
        assert!(rig.rollback_until(*step), "{step:?} is a step");
        let taken = rig.begin().unwrap_or_else(|error| panic!("after {step:?}: {error}"));
        rig.taken(&taken);
        drop(taken);
        assert!(rig.rollback_until(*step));
        let left = *step != Step::JournalRemoved;
        assert_eq!(rollback("eth0", rig.state()).expect("given back"), left, "{step:?}");
        rig.given_back();
    }
}

#[test]
fn a_nic_may_be_used_in_another_way_after_a_kill() {
    let rig = Rig::on_pci();
    drop(rig.begin().expect("taken"));
    let moved = begin(&Rig::spec(), rig.state()).expect("taken by the kernel's driver");
    assert_eq!(rig.bus.as_ref().expect("a bus").driver(), KERNELS);
    assert!(moved.moved.is_some() && !moved.resumed);
    drop(moved);
    let taken = rig.begin().expect("taken from the kernel");
    rig.taken(&taken);
    taken.restore().expect("given back");
    rig.given_back();
}

#[test]
fn what_cannot_leave_the_kernel_is_refused_in_words() {
    let rig = Rig::on_pci();
    let bus = rig.bus.as_ref().expect("a bus");
    let refused = |purpose: &str| {
        let purpose = Use::Pci(purpose.parse().expect("an address"));
        let spec = Spec { purpose, ..Rig::spec() };
        begin(&spec, rig.state()).expect_err("refused").to_string()
    };
    assert!(refused("0000:ff:00.0").contains("there is no PCI device 0000:ff:00.0"));
    let neighbour = bus.path("devices").join(NEIGHBOUR);
    fs::create_dir_all(&neighbour).expect("made");
    assert!(refused(NEIGHBOUR).contains("has no interface"));
    let member = bus.path("groups/7/devices").join(NEIGHBOUR);
    symlink(&neighbour, &member).expect("linked");
    symlink("../../drivers/ahci", neighbour.join("driver")).expect("linked");
    assert!(refused(ADDRESS).contains("same IOMMU group and used by ahci"));
    fs::remove_file(member).expect("removed");
    let group = bus.path("devices").join(ADDRESS).join("iommu_group");
    fs::remove_file(&group).expect("removed");
    assert!(refused(ADDRESS).contains("behind no IOMMU"));
    symlink("../../groups/7", &group).expect("linked");
    let vfio = bus.path("drivers/vfio-pci");
    fs::rename(&vfio, bus.path("drivers/gone")).expect("renamed");
    assert!(refused(ADDRESS).contains("modprobe vfio-pci"));
    rig.unchanged();
    fs::rename(bus.path("drivers/gone"), vfio).expect("renamed");
    rig.begin().expect("the control").restore().expect("given back");
}
