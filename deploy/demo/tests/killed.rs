//! A demo that is killed is in nobody's way: the next one starts, and `clean` leaves nothing. In a machine
//! of the test's own, with another first process and nothing in /run, beside whatever runs on this one.
//! Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a demo may take to come to a stage, unoptimised on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program among the others: beside the data plane that is tested, or as this test was built.
fn demo() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_BIN_EXE_bowline-demo"));
    let beside = |dataplane| Path::new(&dataplane).with_file_name("bowline-demo");
    std::env::var_os("BOWLINE_DATAPLANE").map_or_else(own, beside)
}

/// Runs the test of this name in a machine of its own, unless this is that run.
fn alone(test: &str) -> bool {
    const INSIDE: &str = "BOWLINE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let own = std::env::current_exe().expect("Linux");
    let script = r#"mount -t tmpfs none /run && exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        script,
    ]);
    command.arg(own).args([test, "--exact", "--nocapture"]).env(INSIDE, "yes");
    let status = command.status().expect("util-linux");
    assert!(status.success(), "{status}");
    false
}

/// What runs beside the test, which is the first process of its machine. The dead have no words.
fn processes() -> Vec<String> {
    let number = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let others = names_in("/proc").into_iter().filter(|name| number(name) && name != "1");
    let words = others.map(|id| fs::read_to_string(format!("/proc/{id}/cmdline")));
    words.flatten().filter(|words| !words.is_empty()).collect()
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn start(out: &Path) -> Child {
    let said = fs::File::create(out.join("said")).expect("a file");
    let mut command = Command::new(demo());
    command.args(["run", "--uplink", "packet", "--out"]).arg(out);
    command.stdin(Stdio::null()).stderr(said.try_clone().expect("a duplicate")).stdout(said);
    command.spawn().expect("run 'cargo build --workspace' first")
}

fn said(out: &Path) -> String {
    fs::read_to_string(out.join("said")).unwrap_or_default()
}

fn clean() -> String {
    let output = Command::new(demo()).arg("clean").output().expect("the program just run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A stage is a name and whether a demo, of which this is what it said so far, has come to it.
type Stage = (&'static str, fn(&str) -> bool);

const STAGES: [Stage; 4] = [
    ("the first namespace", |_| names_in("/run/netns").contains(&"bwd-fabric".to_owned())),
    ("a data plane", |_| Path::new("/run/bowline-demo/node1/dataplane.sock").exists()),
    ("a pod", |_| {
        names_in("/run/netns").iter().filter(|name| name.starts_with("bwd-")).count() > 3
    }),
    ("the first check", |said| said.lines().count() > 4),
];

#[test]
fn wherever_a_demo_is_killed_the_next_one_starts_and_clean_leaves_nothing() {
    if !alone("wherever_a_demo_is_killed_the_next_one_starts_and_clean_leaves_nothing") {
        return;
    }
    let out = tempfile::tempdir().expect("a folder");
    for (stage, reached) in STAGES {
        let mut demo = start(out.path());
        let deadline = Instant::now() + PATIENCE;
        while !reached(&said(out.path())) {
            let ended = demo.try_wait().expect("our child");
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "before {stage}: {}", said(out.path()));
            std::thread::sleep(Duration::from_millis(2));
        }
        demo.kill().expect("our child");
        demo.wait().expect("our child");
    }
    assert!(processes().iter().any(|line| line.contains("bowline-dataplane")), "{:?}", processes());
    let removed = clean();
    for what in ["namespace bwd-node1", "namespace bowline-bwd1", "directory /run/bowline-demo"] {
        assert!(removed.contains(what), "{removed}");
    }
    assert_eq!(processes(), Vec::<String>::new());
    assert_eq!(names_in("/run/netns"), Vec::<String>::new());
    assert!(!Path::new("/run/bowline-demo").exists());
    assert_eq!(clean(), "nothing to remove\n");
}
