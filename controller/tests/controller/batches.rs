//! Many objects at once: all of them are served, of equal ones one.

use kube::Client;
use multinet::types::meta::Condition;
use serde_json::{Value, json};

use crate::common::{Controller, cluster, create, delete, eventually, get, spider};

const SPIDER: &str = "/apis/spiderpool.spidernet.io/v2beta1";

#[tokio::test(flavor = "multi_thread")]
async fn of_equal_objects_one_wins_and_of_others_all() {
    let (api, client) = cluster().await;
    let controller = Controller::start(&api, "one", &[]).await;
    pools_come_and_go_together(&client).await;
    let pool = json!({"subnet": "10.2.0.0/24", "ips": ["10.2.0.10-10.2.0.20"]});
    let subnet = json!({"subnet": "10.3.0.0/24", "ips": ["10.3.0.10-10.3.0.20"]});
    for (kind, plural, spec) in
        [("SpiderIPPool", "spiderippools", pool), ("SpiderSubnet", "spidersubnets", subnet)]
    {
        one_name(&client, kind, &spec).await;
        delete(&client, &format!("{SPIDER}/{plural}/same")).await.unwrap();
        eventually("it is gone", async || {
            get(&client, &format!("{SPIDER}/{plural}/same")).await.is_none().then_some(())
        })
        .await;
        many_names(&client, kind, plural, &spec).await;
    }
    controller.stop().await;
}

/// Creates all at once.
async fn at_once(client: &Client, objects: Vec<Value>) -> Vec<Result<Value, String>> {
    futures::future::join_all(objects.into_iter().map(|object| create(client, object))).await
}

fn counted(page: &Value) -> usize {
    page["items"].as_array().map_or(0, Vec::len)
}

/// D00006: sixty pools, counted, and deleted in one go.
async fn pools_come_and_go_together(client: &Client) {
    let pool = |n: u8| {
        let spec =
            json!({"subnet": format!("10.1.{n}.0/24"), "ips": [format!("10.1.{n}.1-10.1.{n}.9")]});
        spider("SpiderIPPool", &format!("p{n}"), spec)
    };
    for made in at_once(client, (0..60).map(pool).collect()).await {
        made.unwrap();
    }
    let pools = format!("{SPIDER}/spiderippools");
    eventually("every pool counts its addresses", async || {
        let page = get(client, &pools).await?;
        let counts = page["items"].as_array()?.iter().map(|p| &p["status"]["totalIPCount"]);
        (counts.filter(|c| **c == 9).count() == 60).then_some(())
    })
    .await;
    let paths: Vec<String> = (0..60).map(|n| format!("{pools}/p{n}")).collect();
    for gone in futures::future::join_all(paths.iter().map(|p| delete(client, p))).await {
        gone.unwrap();
    }
    eventually("all are gone", async || (counted(&get(client, &pools).await?) == 0).then_some(()))
        .await;
}

/// A hundred of one name: one is made.
async fn one_name(client: &Client, kind: &str, spec: &Value) {
    let object = spider(kind, "same", spec.clone());
    let made = at_once(client, vec![object; 100]).await;
    let refusals: Vec<String> = made.into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.len(), 99, "{kind}");
    assert!(refusals.iter().all(|why| why.contains("already exists")), "{refusals:?}");
}

/// A hundred of as many names with the same addresses: whatever slips past the webhooks, one serves.
async fn many_names(client: &Client, kind: &str, plural: &str, spec: &Value) {
    let objects = (0..100).map(|n| spider(kind, &format!("same-{n}"), spec.clone()));
    let made = at_once(client, objects.collect()).await;
    let refusals: Vec<String> = made.into_iter().filter_map(Result::err).collect();
    assert!(refusals.len() < 100, "{refusals:?}");
    let named = |why: &String| why.contains("of the older") || why.contains("in the older");
    // On a machine that a neighbour has, the API server waits ten seconds for a webhook and then refuses.
    let late = |why: &String| why.contains("deadline exceeded");
    assert!(refusals.iter().all(|why| named(why) || late(why)), "{refusals:?}");
    eventually(&format!("one {kind} is ready"), async || {
        let page = get(client, &format!("{SPIDER}/{plural}")).await?;
        let items = page["items"].as_array()?;
        let ready = |item: &Value| -> Option<bool> {
            let text = item["metadata"]["annotations"]["bowline.dev/conditions"].as_str()?;
            let conditions: Vec<Condition> = serde_json::from_str(text).ok()?;
            Some(conditions.iter().any(|c| c.kind == "Ready" && c.status == "True"))
        };
        let told: Vec<bool> = items.iter().map(ready).collect::<Option<_>>()?;
        (told.len() + refusals.len() == 100 && told.iter().filter(|r| **r).count() == 1)
            .then_some(())
    })
    .await;
}
