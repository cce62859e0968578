//! The API store against a real API server: the suite that every store must pass, judged on the raw
//! history of the API server's watch; and requests lost by a proxy. `BOWLINE_STORE_FULL=1`: each call of
//! a life goes wrong once, not every fourth. The crowd is in `agent/tests/crowd.rs`.

mod common;

use bowline_kube::ApiStore;
use common::Server;
use judge::{Event, Judge, Told};
use kube::Client;
use multinet::conformance::{self, Ground};
use multinet::ipam::{self, Candidate, ClaimError, Holder, Request};
use multinet::range::{AddressSet, Family};
use multinet::rules::{Binding, ReuseDelay, Strategy};
use multinet::store::StoreError;
use multinet::types::block::Owner;
use testapi::{Loss, LossyProxy};

fn is_full() -> bool {
    std::env::var_os("BOWLINE_STORE_FULL").is_some()
}

#[test]
fn the_api_store_conforms() {
    let server = Server::start(4);
    let handle = server.runtime.handle();
    conformance::check(Ground {
        open: &|| server.open(),
        block_on: &|future| handle.block_on(future),
        history: Some(&|| server.history()),
        step: if is_full() { 1 } else { 4 },
    });
}

/// One request lost, the first, the second and so on until a run ends untouched.
#[test]
fn a_lost_request_loses_no_address_and_gives_none_twice() {
    let server = Server::start(1);
    for loss in [Loss::BeforeCommit, Loss::AfterCommit] {
        let untouched = (1..60).find(|n| !one_loss(&server, *n, loss));
        let n = untouched.expect("a run without loss ends the search");
        assert!(n > 5, "only {n} requests in a run: the loss was never looked at");
    }
}

/// Whether it came to the loss.
fn one_loss(server: &Server, n: u32, loss: Loss) -> bool {
    let mut judge = Judge::default();
    let lost = server.runtime.block_on(async {
        let proxy = LossyProxy::start(server.open().client().clone()).await;
        let store = ApiStore::new(Client::try_from(proxy.config()).unwrap());
        proxy.lose(n, loss);
        come_and_go(&store, &format!("lost-{n}-{loss:?}").to_lowercase(), &mut judge).await;
        proxy.has_lost()
    });
    // The versions come last: what was asked for is known by then.
    server.history().into_iter().for_each(|version| judge.note(Event::Seen(version)));
    let holders = judge.verdict().unwrap_or_else(|wrong| panic!("{wrong} ({n}, {loss:?})"));
    let mut owners: Vec<&str> = holders.values().map(|(uid, _)| uid.as_str()).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["uid-2", "uid-3"], "request {n} lost {loss:?}");
    lost
}

/// Four pods come, two of them go, each call repeated until it has an answer.
async fn come_and_go(store: &ApiStore, domain: &str, judge: &mut Judge) {
    for pod in 0..4 {
        let request = request(pod);
        loop {
            match ipam::claim(store, domain, std::slice::from_ref(&request), 1).await {
                Ok(claims) => {
                    judge.note(Event::Told(Told {
                        uid: request.owner.key(),
                        sandbox: request.sandbox_id.clone(),
                        network: domain.into(),
                        address: claims[0].address.to_string(),
                    }));
                    break;
                }
                Err(ClaimError::Store(StoreError::Unavailable(_))) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    for pod in 0..2 {
        let Request { owner, sandbox_id, .. } = request(pod);
        judge.note(Event::MayRelease { uid: owner.key(), sandbox: sandbox_id.clone() });
        let holder = Holder { owner: Some(&owner), sandbox_id: &sandbox_id, interface: None };
        let release = |view: &mut ipam::View| ipam::plan_release(view, holder, 2);
        while let Err(error) = ipam::modify(store, domain, release).await {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        }
    }
}

/// One pod's request for one of eight addresses.
fn request(pod: usize) -> Request {
    let addresses = ["10.0.0.10-10.0.0.17".to_owned()];
    Request {
        owner: Owner::Pod {
            namespace: "ns".into(),
            name: format!("p{pod}"),
            uid: format!("uid-{pod}"),
        },
        interface: "eth0".into(),
        family: Family::V4,
        sandbox_id: format!("sandbox-{pod}"),
        node: "n1".into(),
        candidates: vec![Candidate {
            pool: "pool".into(),
            addresses: AddressSet::parse(Family::V4, &addresses).expect("a range"),
            strategy: Strategy::Lowest,
            reuse_delay: ReuseDelay::default(),
            binding: Binding::Auto,
        }],
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: 1,
    }
}
