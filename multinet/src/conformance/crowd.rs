//! Many agents at once: as many pods as addresses, each with several interfaces of both families; all
//! are made, deleted and made again under new names, and calls go wrong meanwhile.

use std::sync::Arc;

use judge::{Event, Told};

use super::watched::{Run, Trouble, Watched};
use super::{Ground, candidate};
use crate::ipam::{
    ClaimError, Holder, MAX_ATTEMPTS, Request, claim, modify, plan_confirm, plan_release,
};
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
    /// About one call in so many goes wrong: lost before or after it is done, refused, stale, or the
    /// agent's last. 0: none does.
    pub trouble_every: u32,
}

impl Crowd {
    /// The Networks of its interfaces.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        (0..self.interfaces).map(network).collect()
    }
}

/// Puts a store through it.
///
/// # Panics
/// With what the store does wrong.
pub fn crowd<S: Store>(ground: Ground<'_, S>, crowd: Crowd) {
    if let Some(history) = ground.history {
        history(); // of others
    }
    let every = crowd.trouble_every;
    let trouble = if every == 0 { Trouble::None } else { Trouble::Every(every) };
    let run = Arc::new(Run::with(trouble));
    let expected = (crowd.agents * crowd.pods * crowd.interfaces * 2) as usize;
    for generation in 0..2 {
        let up = everyone(
            ground,
            &run,
            crowd,
            |store, mut pod| {
                (ground.block_on)(Box::pin(async {
                    pod.add(store, &run).await;
                }));
                pod
            },
            pods(crowd, generation),
        );
        let told: Vec<&Told> = up.iter().flat_map(|pod| &pod.told).collect();
        assert_eq!(told.len(), expected, "given");
        settle(ground, &run, &told);
        everyone(
            ground,
            &run,
            crowd,
            |store, pod| {
                (ground.block_on)(Box::pin(async { pod.del(store, &run).await }));
                pod
            },
            up,
        );
        settle(ground, &run, &[]);
    }
    assert_eq!(run.struck() > 0, every > 0, "calls that went wrong");
}

fn settle<S>(ground: Ground<'_, S>, run: &Run, told: &[&Told]) {
    run.compare(ground.history);
    let holders = run.holders();
    judge::settled(&holders, told.iter().copied()).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Each agent's thread works on its pods, one after the other.
fn everyone<S: Store>(
    ground: Ground<'_, S>,
    run: &Arc<Run>,
    crowd: Crowd,
    work: impl Fn(&Watched<S>, CrowdPod) -> CrowdPod + Sync,
    pods: Vec<CrowdPod>,
) -> Vec<CrowdPod> {
    let (work, mut pods) = (&work, pods.into_iter());
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _agent in 0..crowd.agents {
            let own: Vec<CrowdPod> = pods.by_ref().take(crowd.pods as usize).collect();
            threads.push(scope.spawn(move || {
                let store = Watched::new((ground.open)(), run);
                own.into_iter().map(|pod| work(&store, pod)).collect::<Vec<_>>()
            }));
        }
        threads.into_iter().flat_map(|t| t.join().expect("an agent failed")).collect()
    })
}

/// Every agent's pods, agent by agent.
fn pods(crowd: Crowd, generation: u32) -> Vec<CrowdPod> {
    let agents = (0..crowd.agents).flat_map(|agent| (0..crowd.pods).map(move |pod| (agent, pod)));
    let pod = |(agent, pod)| {
        let name = format!("{generation}-{agent}-{pod}");
        CrowdPod { crowd, name, agent, sandbox: 0, told: Vec::new() }
    };
    agents.map(pod).collect()
}

struct CrowdPod {
    crowd: Crowd,
    name: String,
    agent: u32,
    /// How many sandboxes it had before.
    sandbox: u32,
    /// What the ADD that succeeded returned.
    told: Vec<Told>,
}

impl CrowdPod {
    fn owner(&self) -> Owner {
        let uid = format!("uid-{}", self.name);
        Owner::Pod { namespace: "ns".into(), name: self.name.clone(), uid }
    }

    fn sandbox(&self) -> String {
        format!("sandbox-{}-{}", self.name, self.sandbox)
    }

    /// Exactly as many addresses as pods.
    fn requests(&self, interface: u32) -> [Request; 2] {
        let last = self.crowd.agents * self.crowd.pods - 1;
        let net = 100 + interface;
        let four = format!("10.{net}.0.0-10.{net}.{}.{}", last / 256, last % 256);
        let six = format!("fd{interface:02x}::-fd{interface:02x}::{last:x}");
        [(Family::V4, four), (Family::V6, six)].map(|(family, range)| Request {
            owner: self.owner(),
            interface: format!("net{interface}"),
            family,
            sandbox_id: self.sandbox(),
            node: format!("n{}", self.agent),
            candidates: vec![candidate(family, &range)],
            exact: None,
            sticky: false,
            moves: false,
            cluster_nodes: self.crowd.agents,
        })
    }

    /// As the kubelet does: after a failed ADD the DEL of its sandbox, and another sandbox.
    async fn add<S: Store>(&mut self, store: &Watched<S>, run: &Run) {
        for _ in 0..MAX_ATTEMPTS {
            store.revive();
            match self.claim_all(store, run.now_ms()).await {
                Ok(told) => {
                    told.iter().for_each(|t| run.note(Event::Told(t.clone())));
                    self.told = told;
                    return;
                }
                // What a stale list shows as held may be free.
                Err(error) => assert!(self.crowd.trouble_every > 0, "{error}"),
            }
            self.del(store, run).await;
            self.sandbox += 1;
        }
        panic!("{} got no address in {MAX_ATTEMPTS} sandboxes", self.name);
    }

    async fn claim_all<S: Store>(
        &self,
        store: &Watched<S>,
        now_ms: u64,
    ) -> Result<Vec<Told>, ClaimError> {
        let mut told = Vec::new();
        for interface in 0..self.crowd.interfaces {
            let network = network(interface);
            let claims = claim(store, &network, &self.requests(interface), now_ms).await?;
            told.extend(claims.iter().map(|claim| Told {
                uid: self.owner().key(),
                sandbox: self.sandbox(),
                network: network.clone(),
                address: claim.address.to_string(),
            }));
        }
        Ok(told)
    }

    async fn del<S: Store>(&self, store: &Watched<S>, run: &Run) {
        let (owner, sandbox) = (self.owner(), self.sandbox());
        run.note(Event::MayRelease { uid: owner.key(), sandbox: sandbox.clone() });
        let holder = Holder { owner: Some(&owner), sandbox_id: &sandbox, interface: None };
        for interface in 0..self.crowd.interfaces {
            let network = network(interface);
            loop {
                store.revive();
                let now_ms = run.now_ms();
                let released = modify(store, &network, |view| {
                    plan_confirm(view, holder, now_ms);
                    plan_release(view, holder, now_ms)
                });
                match released.await {
                    Ok(_) => break,
                    Err(error) => assert!(self.crowd.trouble_every > 0, "{error}"),
                }
            }
        }
    }
}

fn network(interface: u32) -> String {
    format!("crowd-{interface}")
}
