//! Writes deploy/crds: one file for each kind. `cargo run -p multinet --example crds`
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    std::fs::create_dir_all(&folder)?;
    for definition in multinet::crd::definitions() {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let text = serde_yaml_ng::to_string(&definition).map_err(std::io::Error::other)?;
        let head = "# Made from the Rust types by `cargo run -p multinet --example crds`.\n";
        std::fs::write(folder.join(format!("{name}.yaml")), format!("{head}{text}"))?;
    }
    Ok(())
}
