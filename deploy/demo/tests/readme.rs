//! The README's first real use, typed as it stands. The shell that types has a network of its own,
//! with a free interface `eth1`, and its own /etc/bowline, /run/bowline and /var/lib/bowline; only
//! the pods' namespaces get names that nobody else has. Needs root.

mod typing;

const README: &str = include_str!("../../../README.md");

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

#[test]
fn the_steps_of_the_readme_work_as_typed() {
    let Section { catalog_file, catalog, blocks } = Section::read();
    let [start, attach, look] = &blocks[..] else {
        panic!("start, attach and look at it, not {} blocks: {blocks:#?}", blocks.len())
    };
    assert!(README.contains("mkdir -p /etc/bowline/catalog"));
    let again = attach.replace("pod1", "pod2");
    let script = format!(
        r#"
        ip link add eth1 type veth peer name far1
        ip link set far1 up
        ip addr add 192.0.2.1/24 dev eth1
        ip link set eth1 up
        mkdir -p /etc/bowline/catalog
        cat >{catalog_file} <<'YAML'
{catalog}YAML
        exec 3>&2 2>/run/bowline/log
        {start}
        exec 2>&3
        served
        {attach}
        {again}
        {look}
        echo "eth1 is $(ip -d -o link show eth1 | grep -o ' tun ')"
        kill $(jobs -p)
        wait
        echo "eth1 is $(ip -d -o link show eth1 | grep -o ' veth ')"
        ip -o -4 addr show dev eth1
        "#
    );
    let (out, err) = typing::by_hand(&script);
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
