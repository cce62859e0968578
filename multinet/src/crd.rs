//! CustomResourceDefinitions of the nine kinds, made from the Rust types: fields, limits and sentences
//! are written once, beside the fields.
//!
//! Kubernetes takes *structural* schemas only: no references, a type for every field, choices as
//! `enum`. [`structural`] brings what `schemars` says into that form.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::types::block::{AddressBlock, AddressBlockSpec};
use crate::types::coordinator::{CoordinatorSpec, CoordinatorStatus, SpiderCoordinator};
use crate::types::endpoint::{EndpointStatus, SpiderEndpoint};
use crate::types::meta::Resource;
use crate::types::multus::{MultusConfigSpec, SpiderMultusConfig};
use crate::types::network::{Network, NetworkSpec, NetworkStatus};
use crate::types::node::{NodeState, NodeStateSpec, NodeStateStatus};
use crate::types::pool::{
    IPPoolSpec, IPPoolStatus, ReservedIPSpec, SpiderIPPool, SpiderReservedIP,
};
use crate::types::subnet::{SpiderSubnet, SubnetSpec, SubnetStatus};

/// Every definition, as the API server takes it.
#[must_use]
pub fn definitions() -> Vec<Value> {
    let mut all = bowlines();
    all.extend(spiderpools());
    all
}

fn bowlines() -> Vec<Value> {
    let network = json!([{
        "rule": "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
        "message": "metadata.name must be 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    }, {
        // Taken out of the spec and put in again it would become another.
        "rule": "!has(oldSelf.status) || !has(oldSelf.status.vni) || !has(self.spec.vni) || self.spec.vni == oldSelf.status.vni",
        "message": "vni cannot be changed; make a new Network"
    }]);
    vec![
        Definition::of::<Network>("net")
            .spec::<NetworkSpec>()
            .status::<NetworkStatus>()
            .rules(network)
            .column("VNI", "integer", ".status.vni")
            .column("ENCAPSULATION", "string", ".spec.encapsulation")
            .column("MTU", "integer", ".status.mtu")
            .column("ATTACHMENTS", "integer", ".status.attachments")
            .column("NODES", "integer", ".status.nodes")
            .column("READY", "string", READY)
            .column("AGE", "date", AGE)
            .build(),
        Definition::of::<AddressBlock>("ab")
            .spec::<AddressBlockSpec>()
            .column("NETWORK", "string", ".spec.network")
            .column("CIDR", "string", ".spec.cidr")
            .column("NODE", "string", ".spec.node")
            .column("AGE", "date", AGE)
            .build(),
        Definition::of::<NodeState>("nst")
            .spec::<NodeStateSpec>()
            .status::<NodeStateStatus>()
            .column("VTEP", "string", ".spec.uplinks[0].ipv4")
            .column("VTEP6", "string", ".spec.uplinks[0].ipv6")
            .column("AGENT", "string", ".spec.versions.agent")
            .column("DATAPLANE", "string", ".spec.versions.dataplane")
            .column("READY", "string", READY)
            .column("AGE", "date", AGE)
            .build(),
    ]
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")].status";
const AGE: &str = ".metadata.creationTimestamp";

/// Upstream's shapes, short names and columns.
fn spiderpools() -> Vec<Value> {
    let app_namespace = r".spec.podAffinity.matchLabels['ipam\.spidernet\.io/app\-namespace']";
    vec![
        Definition::of::<SpiderIPPool>("sp")
            .spec::<IPPoolSpec>()
            .status::<IPPoolStatus>()
            .column("VERSION", "string", ".spec.ipVersion")
            .column("SUBNET", "string", ".spec.subnet")
            .column("ALLOCATED-IP-COUNT", "integer", ".status.allocatedIPCount")
            .column("TOTAL-IP-COUNT", "integer", ".status.totalIPCount")
            .column("DEFAULT", "boolean", ".spec.default")
            .wide_column("DISABLE", "boolean", ".spec.disable")
            .wide_column("NodeName", "string", ".spec.nodeName")
            .wide_column("MultusName", "string", ".spec.multusName")
            .wide_column("APP-NAMESPACE", "string", app_namespace)
            .build(),
        Definition::of::<SpiderSubnet>("ss")
            .spec::<SubnetSpec>()
            .status::<SubnetStatus>()
            .column("VERSION", "string", ".spec.ipVersion")
            .column("SUBNET", "string", ".spec.subnet")
            .column("ALLOCATED-IP-COUNT", "integer", ".status.allocatedIPCount")
            .column("TOTAL-IP-COUNT", "integer", ".status.totalIPCount")
            .build(),
        Definition::of::<SpiderReservedIP>("sr")
            .spec::<ReservedIPSpec>()
            .column("VERSION", "string", ".spec.ipVersion")
            .build(),
        Definition::of::<SpiderEndpoint>("se")
            .plain_status::<EndpointStatus>()
            .column("INTERFACE", "string", ".status.current.ips[0].interface")
            .column("IPV4POOL", "string", ".status.current.ips[0].ipv4Pool")
            .column("IPV4", "string", ".status.current.ips[0].ipv4")
            .column("IPV6POOL", "string", ".status.current.ips[0].ipv6Pool")
            .column("IPV6", "string", ".status.current.ips[0].ipv6")
            .column("NODE", "string", ".status.current.node")
            .build(),
        Definition::of::<SpiderCoordinator>("scc")
            .spec::<CoordinatorSpec>()
            .status::<CoordinatorStatus>()
            .build(),
        Definition::of::<SpiderMultusConfig>("smc").spec::<MultusConfigSpec>().build(),
    ]
}

struct Definition {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static str,
    properties: Map<String, Value>,
    rules: Option<Value>,
    columns: Vec<Value>,
    subresource: bool,
}

impl Definition {
    fn of<R: Resource>(short: &'static str) -> Self {
        let (group, version) = R::API_VERSION.split_once('/').unwrap_or(("", R::API_VERSION));
        let text = json!({"type": "string"});
        let properties = [("apiVersion", text.clone()), ("kind", text)]
            .into_iter()
            .chain([("metadata", json!({"type": "object"}))]);
        Definition {
            group,
            version,
            kind: R::KIND,
            plural: R::PLURAL,
            namespaced: R::NAMESPACED,
            short,
            properties: properties.map(|(k, v)| (k.into(), v)).collect(),
            rules: None,
            columns: Vec::new(),
            subresource: false,
        }
    }

    fn spec<T: JsonSchema>(mut self) -> Self {
        self.properties.insert("spec".into(), schema_of::<T>());
        self
    }

    /// A status that is written apart from the spec.
    fn status<T: JsonSchema>(mut self) -> Self {
        self.subresource = true;
        self.plain_status::<T>()
    }

    fn plain_status<T: JsonSchema>(mut self) -> Self {
        let mut status = schema_of::<T>();
        // Programs write a status whole: a default would only hide what they left out.
        remove_defaults(&mut status);
        self.properties.insert("status".into(), status);
        self
    }

    fn rules(mut self, rules: Value) -> Self {
        self.rules = Some(rules);
        self
    }

    fn column(mut self, name: &str, kind: &str, path: &str) -> Self {
        self.columns.push(json!({"name": name, "type": kind, "jsonPath": path}));
        self
    }

    /// A column of `kubectl get -o wide`.
    fn wide_column(mut self, name: &str, kind: &str, path: &str) -> Self {
        let column = json!({"name": name, "type": kind, "jsonPath": path, "priority": 10});
        self.columns.push(column);
        self
    }

    fn build(self) -> Value {
        let mut schema = json!({"type": "object", "properties": self.properties});
        if let Some(rules) = self.rules {
            schema["x-kubernetes-validations"] = rules;
        }
        let mut version = json!({
            "name": self.version,
            "served": true,
            "storage": true,
            "schema": {"openAPIV3Schema": schema},
        });
        if self.subresource {
            version["subresources"] = json!({"status": {}});
        }
        if !self.columns.is_empty() {
            version["additionalPrinterColumns"] = self.columns.into();
        }
        let category = self.group.split('.').next().unwrap_or_default();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", self.plural, self.group)},
            "spec": {
                "group": self.group,
                "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_lowercase(),
                    "shortNames": [self.short],
                    "categories": [category],
                },
                "versions": [version],
            },
        })
    }
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// Brings a schema, and all within it, into the structural form.
fn structural(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    for key in ["title", "examples", "$schema"] {
        object.remove(key);
    }
    unwrap_option(object);
    choices_to_enum(object);
    // Kubernetes knows no formats of unsigned numbers; their limits are there already.
    if !matches!(object.get("format").and_then(Value::as_str), None | Some("int32" | "int64")) {
        object.remove("format");
    }
    // An empty default says nothing, and would hide that a required field is missing.
    let says_nothing = |v: &Value| *v == json!("") || *v == json!([]) || *v == json!({});
    if object.get("default").is_some_and(says_nothing) {
        object.remove("default");
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            structural(inner);
        }
    }
}

/// What may be absent is simply not required: `null` is no value of its own.
fn unwrap_option(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get("type") {
        let present = types.iter().find(|t| *t != "null").cloned();
        object.insert("type".into(), present.unwrap_or_default());
    }
    if let Some(Value::Array(options)) = object.remove("anyOf") {
        let present = options.into_iter().find(|o| o["type"] != "null");
        if let Some(Value::Object(inner)) = present {
            for (key, value) in inner {
                object.entry(key).or_insert(value);
            }
        }
    }
    // `schemars` adds `null` to what it knows as choices of an Option.
    if let Some(Value::Array(choices)) = object.get_mut("enum") {
        choices.retain(|c| !c.is_null());
    }
}

/// Choices that are described one by one become a list; the descriptions stay in the Rust types.
fn choices_to_enum(object: &mut Map<String, Value>) {
    let Some(Value::Array(options)) = object.remove("oneOf") else { return };
    let names = options.iter().flat_map(|o| match (&o["const"], &o["enum"]) {
        (Value::Null, Value::Array(several)) => several.clone(),
        (one, _) => vec![one.clone()],
    });
    let names: Vec<Value> = names.collect();
    object.insert("type".into(), "string".into());
    object.insert("enum".into(), names.into());
}

fn remove_defaults(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    object.remove("default");
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(remove_defaults);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            remove_defaults(inner);
        }
    }
}
