//! The resource definitions of `deploy/crds`, installed and waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};

const SERVED_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn install(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definitions = read();
    let parameters = PatchParams::apply("bowline-testapi").force();
    for definition in &definitions {
        let name = definition.name_any();
        let applied = api.patch(&name, &parameters, &Patch::Apply(definition)).await;
        applied.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let deadline = Instant::now() + SERVED_WITHIN;
    for definition in &definitions {
        while !is_served(&api, &definition.name_any()).await {
            assert!(Instant::now() < deadline, "{} is not served", definition.name_any());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn is_served(api: &Api<CustomResourceDefinition>, name: &str) -> bool {
    let status = api.get(name).await.ok().and_then(|d| d.status);
    let conditions = status.and_then(|s| s.conditions).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
}

fn read() -> Vec<CustomResourceDefinition> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    let mut definitions = Vec::new();
    for entry in std::fs::read_dir(&directory).into_iter().flatten() {
        let path = entry.expect("read deploy/crds").path();
        let text = std::fs::read_to_string(&path).expect("read a definition");
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let definition = serde::Deserialize::deserialize(document);
            definitions.push(definition.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        }
    }
    assert!(!definitions.is_empty(), "{} holds no definition", directory.display());
    definitions
}
