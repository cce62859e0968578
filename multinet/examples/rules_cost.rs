//! What the rules cost with many objects: the check of a catalogue, and one pass over applications with
//! automatic pools, as the controller makes it.
//!
//! ```text
//! cargo run --release -p multinet --example rules_cost > bench/results/rules-cost.json
//! ```
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first thing that is wrong")]

use std::time::Instant;

use multinet::auto::{Action, AppPools, Application, Present, Wanted, plan_auto_pools};
use multinet::rules::{Catalog, Checked};
use multinet::types::meta::Resource;
use serde_json::{Value, json};

const RUNS: usize = 7;

/// An object from its metadata and spec.
fn object<R: Resource>(metadata: &Value, spec: &Value) -> R {
    serde_json::from_value(json!({
        "apiVersion": R::API_VERSION, "kind": R::KIND, "metadata": metadata, "spec": spec
    }))
    .unwrap()
}

/// Each Network lists a pool of its own.
fn networks(count: u32) -> Catalog {
    let mut catalog = Catalog::default();
    for n in 0..count {
        let name = format!("n{n}");
        let spec = json!({"vni": n + 100, "ipPools": {"ipv4": [name]}});
        catalog.networks.insert(name.clone(), object(&json!({"name": name}), &spec));
        let spec = json!({"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.200"]});
        catalog.pools.insert(name.clone(), object(&json!({"name": name}), &spec));
    }
    catalog
}

/// Pools of different prefixes in one domain.
fn prefixes(count: u32) -> Catalog {
    let mut catalog = Catalog::default();
    for n in 0..count {
        let (name, start) = (format!("p{n}"), format!("10.{}.{}", n / 256, n % 256));
        let spec =
            json!({"subnet": format!("{start}.0/24"), "ips": [format!("{start}.10-{start}.200")]});
        catalog.pools.insert(name.clone(), object(&json!({"name": name}), &spec));
    }
    catalog
}

/// Applications that ask for pools of one subnet.
fn applications(count: u32) -> (Vec<Application>, Wanted) {
    let app = |n: u32| Application {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        namespace: "shop".into(),
        name: format!("web-{n}"),
        uid: format!("uid-{n:08}"),
    };
    let annotations = [("ipam.spidernet.io/subnet".into(), r#"{"ipv4": ["s4"]}"#.into())];
    (
        (0..count).map(app).collect(),
        Wanted::read(&annotations.into_iter().collect(), Some(3)).unwrap(),
    )
}

/// The pools of those applications.
fn automatic(apps: &[Application], wanted: &Wanted) -> Catalog {
    let mut catalog = Catalog::default();
    let spec = json!({"subnet": "10.0.0.0/8", "ips": ["10.0.0.10-10.200.0.0"]});
    catalog.subnets.insert("s4".into(), object(&json!({"name": "s4", "uid": "s"}), &spec));
    // Each beside what the others have is what is measured, not how they came about.
    let checked = Checked::new(&catalog);
    for (n, app) in apps.iter().enumerate() {
        for action in plan(app, wanted, &checked, &AppPools::default()) {
            let Action::Create(pool) = action else { continue };
            let mut pool = *pool;
            let first = u32::from_be_bytes([10, 0, 0, 10]) + 4 * u32::try_from(n).unwrap();
            let text = |a: u32| std::net::Ipv4Addr::from(a).to_string();
            pool.spec.ips = vec![format!("{}-{}", text(first), text(first + 3))];
            catalog.pools.insert(pool.metadata.name.clone(), pool);
        }
    }
    catalog
}

fn plan(app: &Application, wanted: &Wanted, checked: &Checked, pools: &AppPools) -> Vec<Action> {
    let present = Present { checked, pools, is_held: &|_, _| false, spare: 1 };
    plan_auto_pools(app, wanted, present).unwrap()
}

/// Median, least and most of milliseconds.
fn measure(what: &str, count: u32, mut run: impl FnMut()) -> Value {
    let mut took: Vec<f64> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let (median, least, most) = (took[RUNS / 2], took[0], took[RUNS - 1]);
    eprintln!("{what:<24} {count:>6}  {median:>10.2} ms  ({least:.2} to {most:.2})");
    json!({"what": what, "objects": count, "median_ms": median, "min_ms": least, "max_ms": most})
}

fn main() {
    let largest: u32 = std::env::args().nth(1).map_or(10_000, |n| n.parse().unwrap());
    let mut rows = Vec::new();
    for count in [100, 1_000, 10_000].into_iter().filter(|n| *n <= largest) {
        let shapes = [("networks", networks(count)), ("prefixes", prefixes(count))];
        for (what, catalog) in &shapes {
            let usable = Checked::new(catalog).pools.len();
            assert_eq!(usable, catalog.pools.len(), "{what}");
            rows.push(measure(what, count, || drop(Checked::new(catalog))));
        }
        let (apps, wanted) = applications(count);
        let catalog = automatic(&apps, &wanted);
        assert_eq!(Checked::new(&catalog).pools.len(), apps.len());
        rows.push(measure("automatic pools", count, || drop(Checked::new(&catalog))));
        let checked = Checked::new(&catalog);
        rows.push(measure("a pass over applications", count, || {
            let own = AppPools::among(&catalog.pools);
            for app in &apps {
                assert_eq!(plan(app, &wanted, &checked, &own).len(), 0);
            }
        }));
    }
    println!("{}", serde_json::to_string_pretty(&rows).unwrap());
}
