//! What is delivered: the chart, the plain YAML made from it, the images' steps.

use std::process::Command;

use anyhow::{Context, ensure};
use bowline_e2e::Cluster;

/// `helm lint` without a complaint, values that are not in the schema refused.
pub(crate) fn is_clean(cluster: &Cluster) -> anyhow::Result<()> {
    let chart = cluster.scripts().join("../chart/bowline");
    let chart = chart.to_string_lossy();
    let said = render(cluster, &["lint", "--strict", &chart])?;
    ensure!(said.contains("0 chart(s) failed"), "{said}");
    let wrong = render(cluster, &["template", "x", &chart, "--set", "dataplane.worker=2"]);
    let said = format!("{:#}", wrong.err().context("a misspelt value was taken")?);
    ensure!(said.contains("worker"), "the message does not name the value: {said}");
    Ok(())
}

/// deploy/install/bowline.yaml is what the chart renders.
pub(crate) fn plain_yaml_is_fresh(cluster: &Cluster) -> anyhow::Result<()> {
    let known = cluster.scripts().join("../install/bowline.yaml");
    let known = std::fs::read_to_string(&known).with_context(|| known.display().to_string())?;
    let script = cluster.scripts().join("../install/render.sh");
    let output = Command::new(&script).output().context("running render.sh")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8_lossy(&output.stdout);
    ensure!(
        known == rendered,
        "deploy/install/bowline.yaml is older than the chart: run deploy/install/render.sh > deploy/install/bowline.yaml"
    );
    Ok(())
}

/// The Dockerfiles do what the cluster's images were made by: nothing else may be in them.
pub(crate) fn dockerfiles_run_the_image_script(cluster: &Cluster) -> anyhow::Result<()> {
    for what in ["node", "controller"] {
        let path = cluster.scripts().join(format!("../images/{what}.Dockerfile"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let step = format!("RUN deploy/images/rootfs.sh {what} target/release /rootfs");
        ensure!(text.lines().any(|line| line == step), "{what}.Dockerfile lacks: {step}");
        let last = text.split("FROM scratch").nth(1).context("no stage from scratch")?;
        ensure!(last.contains("COPY --from=build /rootfs/ /"), "{what}: {last}");
        ensure!(!last.contains("RUN"), "{what}: the last stage has nothing to run commands with");
    }
    Ok(())
}

/// helm without a cluster.
fn render(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let binary = format!(". {}/env.sh; exec $BIN/helm \"$@\"", cluster.scripts().display());
    let version = ["--kube-version", "1.35.4"];
    let output =
        Command::new("bash").args(["-c", &binary, "helm"]).args(args).args(version).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {printed}{complaint}", args.join(" "));
    Ok(printed)
}
