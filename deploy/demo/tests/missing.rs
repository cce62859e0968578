//! What a machine may lack, and the one sentence with the remedy that each gets. Needs root, to make
//! views of the machine without it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DEPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deps.sh");

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bwdtest-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn program(&self, name: &str, says: &str) {
        let path = self.0.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("a program");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a program");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.env("MAKE_GOAL", "demo").output().expect("a program of Debian's base");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// `deps.sh demo` where `prepare` has changed what it sees.
fn in_view(prepare: &str) -> (bool, String) {
    let script = format!("{prepare} && exec {DEPS} demo");
    outcome(Command::new("unshare").args(["--mount", "bash", "-c", &script]))
}

/// One line that ends the target, and says what to do.
fn ends_with(found: &(bool, String), sentence: &str, remedy: &str) {
    let (ok, text) = found;
    assert!(!ok && text.lines().count() == 1, "one sentence: {text}");
    assert!(text.starts_with("bowline: ") && text.contains(sentence), "{text}");
    assert!(text.contains(remedy), "the remedy: {text}");
}

#[test]
fn without_a_toolchain() {
    let none = outcome(Command::new(DEPS).arg("build").env("PATH", "/nowhere"));
    ends_with(&none, "no Rust toolchain", "https://rustup.rs");
    let folder = Folder::new("old-rust");
    folder.program("cargo", "cargo 1.63.0");
    folder.program("rustc", "rustc 1.63.0 (as Debian 12 has it)");
    let path = format!("{}:/usr/bin:/bin", folder.0.display());
    let old = outcome(Command::new(DEPS).arg("build").env("PATH", path));
    ends_with(&old, "Rust 1.63.0 is too old", "rustup update stable");
}

#[test]
fn without_root() {
    let script = std::fs::File::open(DEPS).expect("it exists");
    let mut somebody = Command::new("setpriv");
    somebody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let found = outcome(somebody.args(["bash", "-s", "demo"]).stdin(script));
    ends_with(&found, "this needs root", "sudo make demo");
    let demo = Path::new(env!("CARGO_BIN_EXE_bowline-demo"));
    let copy = Folder::new("no-root");
    std::fs::copy(demo, copy.0.join("bowline-demo")).expect("a copy that anybody may run");
    let mut somebody = Command::new("setpriv");
    somebody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let (ok, text) = outcome(somebody.arg(copy.0.join("bowline-demo")).arg("run"));
    assert!(!ok && text.contains("this needs root: run 'sudo make demo'"), "{text}");
}

#[test]
fn without_tun() {
    let found = in_view("mkdir -p /dev/net && mount -t tmpfs -o ro none /dev/net");
    ends_with(&found, "/dev/net/tun is missing", "modprobe tun");
}

#[test]
fn without_hugepages_it_goes_on_and_says_what_would_be_faster() {
    let folder = Folder::new("meminfo");
    let none = folder.0.join("meminfo");
    std::fs::write(&none, "HugePages_Total:       0\nHugePages_Free:        0\n").expect("a file");
    let (ok, text) = in_view(&format!("mount --bind {} /proc/meminfo", none.display()));
    assert!(ok && text.contains("no hugepages are free, ordinary memory is used"), "{text}");
    assert!(text.contains("echo 512 > /proc/sys/vm/nr_hugepages"), "the remedy: {text}");
    std::fs::write(&none, "HugePages_Total:     512\nHugePages_Free:      512\n").expect("a file");
    let (ok, text) = in_view(&format!("mount --bind {} /proc/meminfo", none.display()));
    assert!(ok && text.is_empty(), "nothing to say: {text}");
}
