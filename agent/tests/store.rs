//! The directory store: the suite that every store must pass. `BOWLINE_STORE_FULL=1`: a hundred agents with
//! ten pods each.

use std::path::Path;

use agent::catalog::{AnyStore, Directory};
use agent::cni_server::queue::{Held, WriteQueue};
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use judge::Version;
use multinet::conformance::{self, BlockOn, Crowd, Ground};
use multinet::ipam::{Candidate, Request};
use multinet::range::{AddressSet, Family};
use multinet::rules::{Binding, ReuseDelay, Strategy};
use multinet::types::block::Owner;
use tempfile::TempDir;

/// In memory where there is such a place: every write waits for the disk.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

fn is_full() -> bool {
    std::env::var_os("BOWLINE_STORE_FULL").is_some()
}

fn step() -> usize {
    if is_full() { 1 } else { 8 }
}

/// A handle of an agent of its own: nothing is shared but the files.
fn open(directory: &TempDir) -> Directory {
    Directory::open(directory.path()).unwrap()
}

const BLOCK_ON: BlockOn<'_> = &|future| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future);
};

#[test]
fn the_directory_store_conforms() {
    let directory = directory();
    let open = || open(&directory);
    conformance::check(Ground { open: &open, block_on: BLOCK_ON, history: None, step: step() });
}

#[test]
fn as_many_pods_as_addresses() {
    let (agents, pods) = if is_full() { (100, 10) } else { (12, 1) };
    let directory = directory();
    let open = || open(&directory);
    let ground = Ground { open: &open, block_on: BLOCK_ON, history: None, step: step() };
    conformance::crowd(ground, Crowd { agents, pods, interfaces: 3, trouble_every: 17 });
    // The files themselves, read by nobody of ours.
    let files = std::fs::read_dir(directory.path().join("AddressBlock")).unwrap();
    let mut addresses = 0;
    for file in files {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let object = serde_yaml_ng::from_str(&text).unwrap();
        let entries = Version::of(&object).entries;
        addresses += entries.len();
        let held: Vec<_> = entries.into_iter().filter(|(_, holder)| holder.is_some()).collect();
        assert!(held.is_empty(), "leaked: {held:?}");
    }
    assert_eq!(addresses, (agents * pods * 2 * 3) as usize, "every address was given once");
}

/// Who comes or goes while another writes waits, and the next of them writes for all: when the first of
/// them has its answer, everything is done.
#[tokio::test]
async fn who_comes_or_goes_together_shares_a_write() {
    const PODS: usize = 8;
    let directory = directory();
    let store = AnyStore::Directory(open(&directory));
    let queue = WriteQueue::default();
    let held = async || {
        let blocks = store.near_blocks().await.unwrap();
        blocks.iter().map(|block| block.held().count()).sum::<usize>()
    };
    let turn = store.turn("blue").await;
    let claims = (0..PODS).map(|n| queue.claim(&store, "blue", vec![request(n)]));
    let mut claims: FuturesUnordered<_> = claims.collect();
    assert!(claims.next().now_or_never().is_none(), "it is another's turn");
    drop(turn);
    claims.next().await.unwrap().unwrap();
    assert_eq!(held().await, PODS);
    while let Some(claim) = claims.next().await {
        claim.unwrap();
    }

    let turn = store.turn("blue").await;
    let releases = (0..PODS).map(|n| {
        let interfaces = vec!["eth0".to_owned()];
        queue.release(&store, "blue", Held { sandbox_id: format!("sandbox-{n}"), interfaces })
    });
    let mut releases: FuturesUnordered<_> = releases.collect();
    assert!(releases.next().now_or_never().is_none(), "it is another's turn");
    drop(turn);
    releases.next().await.unwrap().unwrap();
    assert_eq!(held().await, 0);
}

fn request(n: usize) -> Request {
    let pool = Candidate {
        pool: "blue".into(),
        addresses: AddressSet::parse(Family::V4, &["10.0.0.1-10.0.0.99".to_owned()]).unwrap(),
        strategy: Strategy::Lowest,
        reuse_delay: ReuseDelay::default(),
        binding: Binding::Never,
    };
    Request {
        owner: Owner::Pod { namespace: "x".into(), name: format!("p{n}"), uid: n.to_string() },
        sandbox_id: format!("sandbox-{n}"),
        interface: "eth0".into(),
        family: Family::V4,
        node: "n1".into(),
        candidates: vec![pool],
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: 1,
    }
}
