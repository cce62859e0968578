//! What only an API server can do to a store.

use std::net::IpAddr;

use bowline_kube::{ApiStore, Change, Selection, follow, follow_specs};
use futures::StreamExt;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL};
use multinet::types::core::Namespace;
use multinet::types::meta::LabelSelector;
use multinet::types::pool::{IPPoolSpec, IPPoolStatus, SpiderIPPool};
use testapi::{TestApi, User};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_unavailable_and_a_refusal_says_so() {
    let mut api = TestApi::start(&[User::named("nobody")]).await;
    let store = ApiStore::new(api.client("admin").await);
    let missing = store.get::<AddressBlock>(None, "none").await.unwrap_err();
    assert!(missing.to_string().contains("install Bowline's resource definitions"), "{missing}");
    assert!(matches!(missing, StoreError::Unavailable(_)), "{missing:?}");
    api.install_crds().await;
    assert_eq!(store.get::<AddressBlock>(None, "none").await, Ok(None));
    let nobody = ApiStore::new(api.client("nobody").await);
    let refused = nobody.list::<AddressBlock>(&LabelSelector::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)) && !refused.is_race(), "{refused:?}");
    assert!(refused.to_string().contains("\"nobody\" cannot list"), "{refused}");
    let mut nameless = AddressBlock::around("blue", IpAddr::from([10, 0, 0, 0]));
    nameless.metadata.name = "No Name".into();
    let refused = store.create(&nameless).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    api.kill_server();
    let down = store.get::<AddressBlock>(None, "none").await.unwrap_err();
    assert!(matches!(down, StoreError::Unavailable(_)), "{down:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_whole_however_long_and_watches_tell_what_changes() {
    let api = TestApi::start(&[]).await;
    api.install_crds().await;
    let store = ApiStore::new(api.client("admin").await);
    let mut made = Vec::new();
    for n in 0..510u32 {
        let address = IpAddr::from((0x0a00_0000 + n * 64).to_be_bytes());
        made.push(AddressBlock::around("many", address));
    }
    let writes = made.iter().map(|block| store.create(block));
    let written: Vec<_> = futures::stream::iter(writes).buffer_unordered(20).collect().await;
    assert!(written.iter().all(Result::is_ok), "{:?}", written.iter().find(|w| w.is_err()));
    let many = LabelSelector::label(NETWORK_LABEL, "many");
    let listed = store.list::<AddressBlock>(&many).await.unwrap();
    assert_eq!(listed.len(), 510);
    let noted = |b: &AddressBlock| b.metadata.other.contains_key("managedFields");
    assert!(!listed.iter().any(noted), "who owns which field takes more room than the object");

    let selection = Selection::label(NETWORK_LABEL, "few");
    let mut changes = Box::pin(follow::<AddressBlock>(store.client(), &selection));
    assert_eq!(changes.next().await, Some(Change::All(Vec::new())), "only what is selected");
    let block = AddressBlock::around("few", IpAddr::from([10, 0, 0, 0]));
    let mut block = store.create(&block).await.unwrap();
    assert_eq!(changes.next().await, Some(Change::Set(block.clone())));
    block.spec.node = Some("n1".into());
    let block = store.update(&block).await.unwrap();
    assert_eq!(changes.next().await, Some(Change::Set(block.clone())));
    store.delete(&block).await.unwrap();
    assert!(matches!(changes.next().await, Some(Change::Gone(_))));
    // Objects of the API server's own kinds come without kind in lists.
    let all = follow::<Namespace>(store.client(), &Selection::named("default"));
    let Some(Change::All(found)) = Box::pin(all).next().await else { panic!("no first list") };
    assert_eq!(found.iter().map(Namespace::name).collect::<Vec<_>>(), ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pools_status_is_not_fetched_again_and_again() {
    let api = TestApi::start(&[]).await;
    api.install_crds().await;
    let store = ApiStore::new(api.client("admin").await);
    let spec = IPPoolSpec { subnet: "10.1.0.0/24".into(), ..IPPoolSpec::default() };
    let mut pool = store.create(&SpiderIPPool::new("p", spec)).await.unwrap();
    let selection = Selection::default();
    let mut changes =
        Box::pin(follow_specs::<SpiderIPPool>(store.client(), &selection, |pool| pool));
    let Some(Change::All(first)) = changes.next().await else { panic!("no first list") };
    assert_eq!(first.len(), 1);
    // A status first, then a spec: the first change told is the spec's.
    let status = IPPoolStatus { total_ip_count: Some(7), ..IPPoolStatus::default() };
    pool.status = Some(status);
    pool = store.update_status(&pool).await.unwrap();
    pool.spec.ips = vec!["10.1.0.1-10.1.0.9".into()];
    let pool = store.update(&pool).await.unwrap();
    let Some(Change::Set(told)) = changes.next().await else { panic!("no change") };
    assert_eq!(told.spec, pool.spec);
}
