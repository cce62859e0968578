//! The README's first real use, typed as it stands. The shell that types has a network of its own,
//! with a free interface `eth1`, and its own /etc/bowline, /run/bowline and /var/lib/bowline; only
//! the pods' namespaces get names that nobody else has. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

const README: &str = include_str!("../../../README.md");
const PROGRAMS: [&str; 4] = ["bowline-dataplane", "bowline-agent", "bowline-cni", "bowline"];

/// The lines of the section that a person copies, in blocks.
struct Section {
    catalog_file: &'static str,
    catalog: String,
    blocks: Vec<String>,
}

impl Section {
    fn read() -> Self {
        let text = README.split("## A first real use, by hand").nth(1).expect("the section");
        let text = text.split("\n## ").next().expect("its end");
        let catalog = text.split("```yaml\n").nth(1).and_then(|t| t.split("```").next());
        let catalog = catalog.expect("the network as YAML").to_owned();
        let catalog_file = text.split("```yaml\n# ").nth(1).and_then(|t| t.lines().next());
        let indented = |line: &&str| line.starts_with("    ");
        let mut blocks: Vec<String> = vec![];
        let mut last = "";
        for line in text.lines() {
            match blocks.last_mut() {
                Some(block) if indented(&line) && indented(&last) => *block += line,
                _ if indented(&line) => blocks.push(line.to_owned()),
                _ => {}
            }
            if let Some(block) = blocks.last_mut().filter(|_| indented(&line)) {
                block.push('\n');
            }
            last = line;
        }
        Self { catalog_file: catalog_file.expect("where the YAML goes"), catalog, blocks }
    }
}

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

#[test]
fn the_steps_of_the_readme_work_as_typed() {
    let Section { catalog_file, catalog, blocks } = Section::read();
    let [start, attach, look] = &blocks[..] else {
        panic!("start, attach and look at it, not {} blocks: {blocks:#?}", blocks.len())
    };
    assert!(README.contains("mkdir -p /etc/bowline/catalog"));
    let unique = format!("bwr{}", std::process::id());
    let again = attach.replace("pod1", "pod2");
    let script = format!(
        r#"
        set -eu
        for folder in {folders}; do mount -t tmpfs none $folder; done
        ip link set lo up
        ip link add eth1 type veth peer name far1
        ip link set far1 up
        ip addr add 192.0.2.1/24 dev eth1
        ip link set eth1 up
        PATH={programs}:$PATH
        finish() {{
            set +e
            [ -z "$(jobs -p)" ] || kill $(jobs -p)
            for pod in pod1 pod2; do [ ! -e /run/netns/$pod ] || ip netns del $pod; done
            wait
        }}
        trap finish EXIT
        mkdir -p /etc/bowline/catalog
        cat >{catalog_file} <<'YAML'
{catalog}YAML
        exec 3>&2 2>/run/bowline/log
        {start}
        exec 2>&3
        for _ in $(seq 100); do [ ! -S /run/bowline/cni.sock ] || break; sleep 0.1; done
        [ -S /run/bowline/cni.sock ] || {{ cat /run/bowline/log; exit 1; }}
        {attach}
        {again}
        {look}
        echo "eth1 is $(ip -d -o link show eth1 | grep -o ' tun ')"
        kill $(jobs -p)
        wait
        echo "eth1 is $(ip -d -o link show eth1 | grep -o ' veth ')"
        ip -o -4 addr show dev eth1
        "#,
        folders = Folders::ALL.join(" "),
        programs = programs().display(),
    );
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
    let said = |what: &str| assert!(out.contains(what), "no \"{what}\" in:\n{out}\n{err}");
    said(r#""address":"10.0.0.10/24""#);
    said(r#""address":"10.0.0.11/24""#);
    said("3 received, 0% packet loss");
    said("lookup     10.0.0.11 in blue");
    said("eth1 is  tun ");
    said("eth1 is  veth ");
    said("192.0.2.1/24");
    for command in ["get interfaces", "get drops", "trace"] {
        assert!(look.contains(&format!("bowline {command}")), "{command}");
    }
}
