//! What is delivered: the chart, the plain YAML made from it, the images' steps.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, SYSTEM};
use serde::Deserialize;
use serde_json::{Value, json};

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

/// Values that make no sense together or at all are refused, by a sentence that names them.
pub(crate) fn nonsense_is_refused(cluster: &Cluster) -> anyhow::Result<()> {
    for (set, words) in [
        ("dataplane.worker=2", "worker"),
        ("dataplane.workers=many", "want integer"),
        ("dataplane.uplinks={eth0}", "does not match pattern"),
        ("dataplane.poll=sometimes", "must be one of 'busy', 'adaptive'"),
        ("dataplane.cpus=first", "does not match pattern"),
        ("dataplane.hugepages.kind=hugepages-2Mi", "dataplane.hugepages.amount is empty"),
        ("dataplane.hugepages.amount=1Gi", "dataplane.hugepages.kind is empty"),
        ("dataplane.resources.limit.cpu=1", "limit"),
        ("agent.tolerations[0].operator=Always", "must be one of 'Exists', 'Equal'"),
        ("agent.cni.binDir=opt/cni", "does not match pattern"),
        ("agent.maxUnavailable=0", "minimum: got 0, want 1"),
        ("agent.metricsAddress=9410", "want string"),
        ("agent.metricsAddress=:9410", "is not an address and a port"),
        ("controller.replicas=-1", "minimum: got -1, want 0"),
        ("controller.reclaim.interval=often", "does not match pattern"),
        ("images.pullSecrets[0].nam=x", "name"),
        ("images.prefix=registry.example.com/bowline", "does not end in"),
        ("apiServer.port=70000", "maximum: got 70,000, want 65,535"),
        ("apiServer.host=https://192.0.2.10", "is not a bare address or name"),
        ("defaultNetwork.mtu=-1", "minimum: got -1, want 0"),
        ("defaultNetwork.ipv4.subnet=banana", "is not a prefix of IPv4"),
        ("defaultNetwork.ipv4.subnet=10.50.0.0/31", "at most /30"),
        ("defaultNetwork.ipv4.subnet=10.50.1.0/16", "write 10.50.0.0/16"),
        ("defaultNetwork.ipv4.gateway=10.50.0.1", "is outside of defaultNetwork.ipv4.subnet"),
        ("defaultNetwork.ipv4.ips={10.244.0.2-10.245.0.2}", "is outside of"),
        ("defaultNetwork.ipv4.ips={all}", "is not an address of IPv4"),
        ("defaultNetwork.ipv4.subnet=", "pods would have no addresses"),
        ("defaultNetwork.ipv6.subnet=10.244.0.0/16", "is not a prefix of IPv6"),
        ("defaultNetwork.ipv6.subnet=fd00::8/120", "say defaultNetwork.ipv6.gateway and .ips"),
        ("defaultNetwork.ipv6.subnet=fd00::/64,defaultNetwork.mtu=1000", "1280 or more"),
    ] {
        let chart = cluster.scripts().join("../chart/bowline");
        let rendered = render(cluster, &["template", "x", &chart.to_string_lossy(), "--set", set]);
        let said = format!("{:#}", rendered.err().with_context(|| format!("{set} was taken"))?);
        ensure!(said.contains(words), "{set} is refused, but not by \"{words}\": {said}");
    }
    Ok(())
}

/// Each value of an operator's is found where Kubernetes or a program reads it.
pub(crate) fn values_reach_their_places(cluster: &Cluster) -> anyhow::Result<()> {
    let chart = cluster.scripts().join("../chart/bowline");
    let values = "images.prefix=registry.example.com/net/,images.pullPolicy=Always,images.pullSecrets[0].name=pull,\
        apiServer.host=192.0.2.10,apiServer.port=443,defaultNetwork.mtu=1400,\
        defaultNetwork.ipv4.subnet=10.50.0.0/24,defaultNetwork.ipv6.subnet=fd00:50::/64,defaultNetwork.masquerade=false,\
        dataplane.uplinks={eth0=packet,eth1=packet},dataplane.cpus=3,dataplane.hugepages.kind=hugepages-1Gi,\
        dataplane.hugepages.amount=2Gi,dataplane.resources.limits.memory=1Gi,dataplane.tolerations[0].key=only,\
        dataplane.nodeSelector.pool=fast,agent.metricsAddress=127.0.0.1:9999,agent.maxUnavailable=10%,\
        agent.cni.primary=false,agent.cni.confDir=/etc/other,agent.resources.requests.cpu=1,controller.replicas=3,\
        controller.autoPools.enabled=false,controller.reclaim.onReadyNodes=false,controller.reclaim.interval=1m,\
        controller.webhookPort=9643,webhooks.enabled=false,admissionPolicies.enabled=false"
        .replace(' ', "");
    let args = ["template", "x", &chart.to_string_lossy(), "-n", SYSTEM, "--set", &values];
    let objects =
        objects(&render(cluster, &[&args[..], &["--set-string", "images.tag=7.1"]].concat())?)?;
    let places = [
        (
            "DaemonSet",
            "bowline-dataplane",
            "/spec/template/spec/containers/0/image",
            json!("registry.example.com/net/bowline:7.1"),
        ),
        (
            "Deployment",
            "bowline-controller",
            "/spec/template/spec/containers/0/image",
            json!("registry.example.com/net/bowline-controller:7.1"),
        ),
        (
            "Job",
            "bowline-uninstall",
            "/spec/template/spec/imagePullSecrets",
            json!([{"name": "pull"}]),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/imagePullSecrets",
            json!([{"name": "pull"}]),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/containers/0/imagePullPolicy",
            json!("Always"),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/containers/0/env/0/value",
            json!("192.0.2.10"),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/containers/0/env/1/value",
            json!("443"),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/containers/0/readinessProbe/httpGet",
            json!({"path": "/readyz", "port": 9999, "host": "127.0.0.1"}),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/updateStrategy/rollingUpdate/maxUnavailable",
            json!("10%"),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/containers/0/resources/requests/cpu",
            json!(1),
        ),
        (
            "DaemonSet",
            "bowline-agent",
            "/spec/template/spec/volumes/5/hostPath/path",
            json!("/etc/other"),
        ),
        (
            "DaemonSet",
            "bowline-dataplane",
            "/spec/template/spec/containers/0/resources/limits",
            json!({"memory": "1Gi", "hugepages-1Gi": "2Gi"}),
        ),
        (
            "DaemonSet",
            "bowline-dataplane",
            "/spec/template/spec/tolerations",
            json!([{"key": "only"}]),
        ),
        ("DaemonSet", "bowline-dataplane", "/spec/template/spec/nodeSelector/pool", json!("fast")),
        ("Deployment", "bowline-controller", "/spec/replicas", json!(3)),
        (
            "Deployment",
            "bowline-controller",
            "/spec/template/spec/containers/0/ports/0/containerPort",
            json!(9643),
        ),
        ("Network", "default", "/spec/mtu", json!(1400)),
        (
            "Network",
            "default",
            "/spec/ipPools",
            json!({"ipv4": ["default-v4"], "ipv6": ["default-v6"]}),
        ),
        (
            "SpiderIPPool",
            "default-v4",
            "/spec",
            json!({"subnet": "10.50.0.0/24", "gateway": "10.50.0.1", "ips": ["10.50.0.2-10.50.0.254"]}),
        ),
        (
            "SpiderIPPool",
            "default-v6",
            "/spec",
            json!({"subnet": "fd00:50::/64", "gateway": "fd00:50::1", "ips": ["fd00:50::2-fd00:50::ffff"]}),
        ),
        (
            "SpiderIPPool",
            "default-v6",
            "/metadata/annotations/bowline.dev~1masquerade",
            json!("false"),
        ),
    ];
    for (kind, name, place, expected) in places {
        let object = find(&objects, kind, name).with_context(|| format!("no {kind} {name}"))?;
        ensure!(
            object.pointer(place) == Some(&expected),
            "{kind} {name} {place}: {:?}",
            object.pointer(place)
        );
    }
    for (kind, name, flags) in [
        (
            "DaemonSet",
            "bowline-dataplane",
            &["--uplink=eth0=packet", "--uplink=eth1=packet", "--cpus=3"][..],
        ),
        ("DaemonSet", "bowline-agent", &["--no-cni-conf", "--metrics=127.0.0.1:9999"]),
        (
            "Deployment",
            "bowline-controller",
            &["--reclaim-on-ready-nodes=false", "--reclaim-interval=1m", "--auto-pools=false"],
        ),
    ] {
        let container =
            &find(&objects, kind, name).context(name)?["spec"]["template"]["spec"]["containers"][0];
        let words = [&container["command"], &container["args"]]
            .into_iter()
            .filter_map(Value::as_array)
            .flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        ensure!(flags.iter().all(|flag| words.contains(flag)), "{name}: {flags:?} in {words:?}");
    }
    for kind in [
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
    ] {
        ensure!(objects.iter().all(|o| o["kind"] != kind), "a {kind} though it is switched off");
    }
    Ok(())
}

/// The objects in YAML of several documents.
fn objects(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml);
    Ok(documents.map(Value::deserialize).collect::<Result<Vec<_>, _>>()?)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
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

/// No container engine is at hand. What the Dockerfiles copy exists, what they compile and run is what the images of
/// the test cluster are made by.
pub(crate) fn dockerfiles_run_the_image_script(cluster: &Cluster) -> anyhow::Result<()> {
    let top = cluster.scripts().join("../..");
    let read = |path: &str| {
        let path = top.join(path);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let packages = read("Cargo.lock")?;
    let archive = read("deploy/images/build.sh")?;
    for what in ["node", "controller"] {
        let text = read(&format!("deploy/images/{what}.Dockerfile"))?;
        let step = format!("RUN deploy/images/rootfs.sh {what} target/release /rootfs");
        ensure!(text.lines().any(|line| line == step), "{what}.Dockerfile lacks: {step}");
        let last = text.split("FROM scratch").nth(1).context("no stage from scratch")?;
        ensure!(last.contains("COPY --from=build /rootfs/ /"), "{what}: {last}");
        ensure!(!last.contains("RUN"), "{what}: the last stage has nothing to run commands with");
        for copied in text.lines().filter_map(|line| line.strip_prefix("COPY ")) {
            let source = copied.split(' ').find(|word| !word.starts_with("--")).unwrap_or_default();
            let there = copied.starts_with("--from=build ") || top.join(source).exists();
            ensure!(there, "{what}.Dockerfile copies {source}, which does not exist");
        }
        let compiled = text.lines().find_map(|line| line.strip_prefix("RUN cargo build --release"));
        for package in compiled.context("nothing is compiled")?.split(" -p ").skip(1) {
            let known = packages.contains(&format!("name = \"{package}\"\n"));
            ensure!(known, "{what}.Dockerfile compiles {package}, which is no package");
        }
        let entry = text.lines().find_map(|line| line.strip_prefix("ENTRYPOINT "));
        let entry = entry.context("no ENTRYPOINT")?.replace(' ', "");
        ensure!(archive.contains(&entry), "build.sh starts something else than {entry}");
    }
    Ok(())
}

/// The controller starts with nothing but the files of its image around it, as the user that its Dockerfile names. (The
/// cluster's nodes start the other image so.)
pub(crate) fn the_controllers_image_needs_no_root(cluster: &Cluster) -> anyhow::Result<()> {
    let images = cluster.scripts().join("../images");
    let release = cluster.scripts().join("../../target/release");
    let binaries = std::env::var_os("BOWLINE_BINARIES").map_or(release, Into::into);
    let dockerfile = std::fs::read_to_string(images.join("controller.Dockerfile"))?;
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER "));
    let user = user.filter(|user| !user.starts_with('0')).context("the controller runs as root")?;
    let folder = tempfile::tempdir()?;
    // The user of the image has to come in.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let root = folder.path().join("rootfs");
    printed(Command::new(images.join("rootfs.sh")).arg("controller").args([&binaries, &root]))?;
    let mut alone = Command::new("chroot");
    alone.arg(format!("--userspec={user}")).arg(&root).arg("/usr/bin/bowline-controller");
    let said = printed(alone.arg("--version"))?;
    ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    Ok(())
}

fn printed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
