//! A shell that types what a page says: with a network and folders of its own, so that nothing else is
//! on the machine. Only the pods' namespaces get names that nobody else has. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 4] = ["bowline-dataplane", "bowline-agent", "bowline-cni", "bowline"];

/// Where the programs are: beside the data plane that is tested, or as this test was built.
fn programs() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_BIN_EXE_bowline-demo"));
    let one = std::env::var_os("BOWLINE_DATAPLANE").map_or_else(own, PathBuf::from);
    let folder = one.parent().expect("a file's folder").to_owned();
    for name in PROGRAMS {
        let path = folder.join(name);
        assert!(path.exists(), "{} is missing: run 'cargo build --workspace'", path.display());
    }
    folder
}

/// Folders of the programs' defaults, which the shell covers with empty ones. Those that the machine
/// lacks are there for as long as the test.
struct Folders(Vec<&'static Path>);

impl Folders {
    const ALL: [&str; 3] = ["/etc/bowline", "/run/bowline", "/var/lib/bowline"];

    fn make() -> Self {
        let missing = Self::ALL.map(Path::new).into_iter().filter(|path| !path.exists());
        let made: Vec<_> = missing.collect();
        made.iter().for_each(|path| std::fs::create_dir(path).expect("root"));
        Self(made)
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Runs a script in which `pod1` and `pod2` are namespaces of pods, and `served` waits for the agent. What
/// it said, on both outputs; the test fails where it does.
pub(crate) fn by_hand(script: &str) -> (String, String) {
    let script = format!(
        r#"
        set -eu
        for folder in {folders}; do mount -t tmpfs none $folder; done
        ip link set lo up
        PATH={programs}:$PATH
        served() {{
            for _ in $(seq 100); do [ ! -S /run/bowline/cni.sock ] || return 0; sleep 0.1; done
            cat /run/bowline/log
            exit 1
        }}
        finish() {{
            set +e
            [ -z "$(jobs -p)" ] || kill $(jobs -p)
            for pod in pod1 pod2; do [ ! -e /run/netns/$pod ] || ip netns del $pod; done
            wait
        }}
        trap finish EXIT
        {script}
        "#,
        folders = Folders::ALL.join(" "),
        programs = programs().display(),
    );
    let unique = format!("bwr{}", std::process::id());
    let script =
        script.replace("pod1", &format!("{unique}a")).replace("pod2", &format!("{unique}b"));
    let _folders = Folders::make();
    let output = Command::new("timeout")
        .args(["60", "unshare", "--net", "--mount", "bash", "-c", &script])
        .output()
        .expect("util-linux");
    let (out, err) = (output.stdout, output.stderr);
    let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    (out.into_owned(), err.into_owned())
}
