//! Many agents at once: as many pods as addresses, each with several interfaces of both families; all
//! are made, deleted and made again under new names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::judge::Event;
use super::watched::{Run, Watched};
use super::{BlockOn, candidate};
use crate::ipam::{Holder, Request, claim, modify, plan_confirm, plan_release};
use crate::range::Family;
use crate::store::Store;
use crate::types::block::Owner;

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Agents, a thread and a handle each.
    pub agents: u32,
    /// Pods of each agent.
    pub pods: u32,
    /// Interfaces of each pod, each in a Network of its own.
    pub interfaces: u32,
}

/// Puts a store through it. Every `open` gives another handle to the same store.
///
/// # Panics
/// With what the store does wrong.
pub fn crowd<S: Store>(open: impl Fn() -> S + Sync, block_on: BlockOn<'_>, crowd: Crowd) {
    let run = Arc::new(Run::default());
    let total = usize::try_from(crowd.agents * crowd.pods).unwrap_or(usize::MAX);
    for generation in 0..2 {
        let given = everyone(crowd, |agent| {
            let store = Watched { inner: open(), run: run.clone() };
            let mut given = Vec::new();
            block_on(Box::pin(async {
                for pod in pods(crowd, agent, generation) {
                    given.extend(pod.add(&store, crowd).await);
                }
            }));
            given
        });
        let distinct: BTreeSet<_> = given.iter().collect();
        let expected = total * 2 * crowd.interfaces as usize;
        assert_eq!((given.len(), distinct.len()), (expected, expected), "given, and distinct");
        assert_eq!(run.holders().len(), expected, "the store holds what was given");
        everyone(crowd, |agent| {
            let store = Watched { inner: open(), run: run.clone() };
            block_on(Box::pin(async {
                for pod in pods(crowd, agent, generation) {
                    pod.del(&store, &run, crowd).await;
                }
            }));
            Vec::new()
        });
        assert_eq!(run.holders().len(), 0, "nobody is left");
    }
}

/// What every agent's thread brings.
fn everyone(crowd: Crowd, work: impl Fn(u32) -> Vec<(u32, IpAddr)> + Sync) -> Vec<(u32, IpAddr)> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..crowd.agents).map(|agent| scope.spawn(move || work(agent))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("an agent failed")).collect()
    })
}

fn pods(crowd: Crowd, agent: u32, generation: u32) -> impl Iterator<Item = CrowdPod> {
    let name = move |pod| CrowdPod { name: format!("{generation}-{agent}-{pod}"), agent };
    (0..crowd.pods).map(name)
}

struct CrowdPod {
    name: String,
    agent: u32,
}

impl CrowdPod {
    fn owner(&self) -> Owner {
        let uid = format!("uid-{}", self.name);
        Owner::Pod { namespace: "ns".into(), name: self.name.clone(), uid }
    }

    /// Exactly as many addresses as pods; each Network has addresses of its own for the judge's sake.
    fn requests(&self, interface: u32, crowd: Crowd) -> [Request; 2] {
        let last = crowd.agents * crowd.pods - 1;
        let four = format!(
            "10.{}.0.0-10.{}.{}.{}",
            100 + interface,
            100 + interface,
            last / 256,
            last % 256
        );
        let six = format!("fd{interface:02x}::-fd{interface:02x}::{last:x}");
        [(Family::V4, four), (Family::V6, six)].map(|(family, range)| Request {
            owner: self.owner(),
            interface: format!("net{interface}"),
            family,
            sandbox_id: format!("sandbox-{}", self.name),
            node: format!("n{}", self.agent),
            candidates: vec![candidate(family, &range)],
            exact: None,
            sticky: false,
            cluster_nodes: crowd.agents,
        })
    }

    async fn add<S: Store>(&self, store: &S, crowd: Crowd) -> Vec<(u32, IpAddr)> {
        let mut given = Vec::new();
        for interface in 0..crowd.interfaces {
            let requests = self.requests(interface, crowd);
            let claims = claim(store, &network(interface), &requests, 1).await;
            let claims = claims.unwrap_or_else(|e| panic!("{e}"));
            given.extend(claims.iter().map(|c| (interface, c.address)));
        }
        given
    }

    async fn del<S: Store>(&self, store: &S, run: &Run, crowd: Crowd) {
        let (owner, sandbox) = (self.owner(), format!("sandbox-{}", self.name));
        run.note(Event::MayRelease { uid: owner.key(), sandbox: sandbox.clone() });
        let holder = Holder { owner: Some(&owner), sandbox_id: &sandbox, interface: None };
        for interface in 0..crowd.interfaces {
            let network = network(interface);
            let released = modify(store, &network, |view| {
                plan_confirm(view, holder, 2);
                plan_release(view, holder, 2)
            });
            // What an attempt that lost its second race wrote counts no more in the last one.
            released.await.unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

fn network(interface: u32) -> String {
    format!("crowd-{interface}")
}
