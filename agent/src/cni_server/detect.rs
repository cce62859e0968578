//! Whether a claimed address is really free on the pod's link and its gateway is there, where the pool
//! or the coordinator wants that to be found out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cni::error::{CniError, code};
use multinet::ipam::{self, Holder};
use multinet::types::mac::Mac;

use super::addresses::{Given, millis, now_ms};
use super::ask::Asker;
use super::server::{CniServer, pod_failure};
use crate::journal::AttachmentKey;
use crate::pod::{self, Finding, Netns, Question};

/// An address that somebody else uses is given to nobody for so long; then it is asked for again.
const QUARANTINE: Duration = Duration::from_secs(600);
/// So many addresses in a row that others use are a mistake in the pool, not an accident.
const TRIES: usize = 8;

/// An address that somebody else uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) interface: String,
    pub(super) address: IpAddr,
    pub(super) by: Mac,
}

/// Why an interface is not used as it was planned.
#[derive(Debug)]
pub(super) enum Failed {
    /// Others have these addresses: the pod gets other ones.
    Taken(Vec<Taken>),
    /// Nothing helps but trying again later.
    Other(CniError),
}

impl From<CniError> for Failed {
    fn from(error: CniError) -> Self {
        Self::Other(error)
    }
}

/// What the pools want to know about addresses of one interface. The target of a virtual machine's
/// migration is asked nothing: its source, which was, has the addresses while both run.
pub(super) fn questions<'a>(
    asker: &Asker,
    given: impl Iterator<Item = &'a Given>,
) -> Vec<Question> {
    if asker.moves() {
        return Vec::new();
    }
    let question = |given: &Given| Question {
        address: given.address.addr(),
        conflict: given.pool.detection.conflict,
        gateway: given.pool.gateway.filter(|_| given.pool.detection.gateway),
    };
    given.map(question).filter(|q| q.conflict || q.gateway.is_some()).collect()
}

/// Asks the interface's link.
pub(super) async fn ask(
    server: &CniServer,
    netns: &Arc<Netns>,
    interface: &str,
    questions: Vec<Question>,
) -> Result<(), Failed> {
    if questions.is_empty() {
        return Ok(());
    }
    let (netns, name) = (netns.clone(), interface.to_owned());
    let probe = move || netns.run(|| pod::probe(&name, &questions));
    let findings = server.blocking(probe).await?.map_err(|e| not_made_yet(&e))?;
    let mut taken = Vec::new();
    for finding in findings {
        match finding {
            Finding::Taken { address, by } => {
                taken.push(Taken { interface: interface.to_owned(), address, by: Mac(by) });
            }
            Finding::Silent { gateway } => return Err(silent(interface, gateway).into()),
        }
    }
    if taken.is_empty() { Ok(()) } else { Err(Failed::Taken(taken)) }
}

/// A plugin that asks for addresses before it has made its interface leaves nothing to ask by.
fn not_made_yet(error: &pod::PodError) -> CniError {
    let mut failure = pod_failure(error);
    if error.is_not_found() {
        failure.msg.push_str(
            "; the plugin asks for addresses before it makes the interface, so put the detection \
             into the chained coordinator (detectIPConflict, detectGateway) instead of the pool",
        );
    }
    failure
}

fn silent(interface: &str, gateway: IpAddr) -> CniError {
    let message = format!(
        "the gateway {gateway} does not answer on the link of {interface}; see to the router, the VLAN \
         and the cable, correct spec.gateway of the pool, or switch the detection off"
    );
    CniError::new(code::TRY_AGAIN_LATER, message)
}

/// Addresses in quarantine so far, on behalf of one call.
#[derive(Debug, Default)]
pub(super) struct Conflicts(usize);

impl Conflicts {
    /// Puts addresses that others use aside, so that the next claim takes other ones.
    ///
    /// # Errors
    /// There is no use in another claim.
    pub(super) async fn set_aside(
        &mut self,
        server: &CniServer,
        asker: &Asker,
        key: &AttachmentKey,
        domain_of: impl Fn(&Taken) -> String,
        taken: &[Taken],
    ) -> Result<(), CniError> {
        for taken in taken {
            server.metrics.address_conflicts.inc();
            tracing::warn!(attachment = %key, "{}", sentence(taken));
            if asker.is_sticky() {
                let message = format!(
                    "{}; a StatefulSet's pod or virtual machine keeps its address, so find out who \
                     that is",
                    sentence(taken)
                );
                return Err(CniError::new(code::TRY_AGAIN_LATER, message));
            }
            quarantine(server, &domain_of(taken), &key.container_id, taken).await?;
        }
        self.0 += taken.len();
        match taken.first() {
            Some(last) if self.0 >= TRIES => {
                let message = format!(
                    "{}, and so are {} more; exclude them by spec.excludeIPs of the pool or a \
                     SpiderReservedIP",
                    sentence(last),
                    self.0 - 1
                );
                Err(CniError::new(code::NO_ADDRESS, message))
            }
            _ => Ok(()),
        }
    }
}

/// What a person is told about a conflict.
pub(super) fn sentence(taken: &Taken) -> String {
    let Taken { interface, address, by } = taken;
    format!("{address}, meant for {interface}, is in use by {by} on the same link")
}

/// The sandbox's claim on the address becomes nobody's for a while.
pub(super) async fn quarantine(
    server: &CniServer,
    domain: &str,
    sandbox_id: &str,
    taken: &Taken,
) -> Result<(), CniError> {
    let store = server.core.catalog.store();
    let _turn = store.turn(domain).await;
    let holder = Holder { owner: None, sandbox_id, interface: Some(&taken.interface) };
    let reason = format!("{} answers for it on the link", taken.by);
    let done = ipam::modify(&store, domain, |view| {
        let until_ms = now_ms().saturating_add(millis(QUARANTINE));
        ipam::plan_quarantine(view, taken.address, holder, &reason, now_ms(), until_ms);
    });
    done.await.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))
}
