//! What of an AddressBlock's JSON matters here.

use serde_json::Value;

/// A version of an AddressBlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The object's name.
    pub name: String,
    /// Its resource version.
    pub version: String,
    /// The Network.
    pub network: String,
    /// It was the last: the object was deleted.
    pub gone: bool,
    /// Addresses, with UID and sandbox of who holds them.
    pub entries: Vec<(String, Option<(String, String)>)>,
}

impl Version {
    /// The version that an object's JSON is.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let spec = &object["spec"];
        let entries = spec["entries"].as_array().into_iter().flatten().map(|entry| {
            let held = matches!(entry["state"].as_str(), Some("Intent" | "Allocated"));
            let holder = || (text(&entry["owner"]["uid"]), text(&entry["sandboxID"]));
            (text(&entry["address"]), held.then(holder))
        });
        Self {
            name: text(&object["metadata"]["name"]),
            version: text(&object["metadata"]["resourceVersion"]),
            network: text(&spec["network"]),
            gone: false,
            entries: entries.collect(),
        }
    }

    /// What a line of a Kubernetes watch tells; none: it tells of no object.
    #[must_use]
    pub fn of_watch(line: &Value) -> Option<Self> {
        let version = Self::of(&line["object"]);
        match line["type"].as_str()? {
            "ADDED" | "MODIFIED" => Some(version),
            "DELETED" => Some(Self { gone: true, ..version }),
            _ => None,
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
