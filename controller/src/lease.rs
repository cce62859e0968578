//! Who leads: one Lease, replaced by compare-and-swap.
//!
//! A candidate trusts no other clock: it measures with its own how long the Lease has not changed, and
//! takes it after the duration that the holder wrote. A holder that cannot renew stops leading
//! before anybody else may start. Jobs stay correct even if two lead.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

/// What this replica knows of the Lease.
#[derive(Debug, Default)]
struct Observed {
    /// As last read.
    spec: Option<LeaseSpec>,
    /// Since when, by this machine's clock, it has looked like that.
    since: Option<Instant>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write this: it is ours, or ours to take.
    Write(Box<LeaseSpec>),
    /// Somebody else leads.
    Wait,
}

/// One replica's candidacy.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    observed: Observed,
    leads: watch::Sender<bool>,
}

impl Candidate {
    /// A candidate for the Lease `name`.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        duration: Duration,
    ) -> Self {
        Candidate {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            identity: identity.into(),
            duration,
            observed: Observed::default(),
            leads: watch::Sender::new(false),
        }
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Stands for election until it is dropped.
    pub async fn run(&mut self) {
        // As client-go: leading ends after two thirds of the duration without renewal.
        let (pause, patience) = (self.duration / 8, self.duration * 2 / 3);
        let mut renewed = Instant::now();
        loop {
            let asked = Instant::now();
            let left = patience.saturating_sub(renewed.elapsed()).max(pause);
            match tokio::time::timeout(left, self.pass()).await {
                Ok(Ok(true)) => {
                    renewed = asked;
                    self.set(true);
                }
                Ok(Ok(false)) => self.set(false),
                Ok(Err(error)) => tracing::warn!("the Lease {}: {error}; tried again", self.name),
                Err(_) => tracing::warn!("the Lease {}: no answer in time", self.name),
            }
            if renewed.elapsed() >= patience {
                self.set(false);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn set(&self, leads: bool) {
        let changed = self.leads.send_if_modified(|had| std::mem::replace(had, leads) != leads);
        if changed {
            let (name, identity) = (&self.name, &self.identity);
            tracing::info!(name, identity, leads, "leadership changed");
        }
    }

    /// Reads, decides, writes. Whether this replica leads.
    async fn pass(&mut self) -> kube::Result<bool> {
        let found = self.api.get_opt(&self.name).await?;
        let spec = found.as_ref().and_then(|l| l.spec.clone());
        self.observed.see(spec.as_ref());
        let step = self.observed.step(&self.identity, self.duration, Timestamp::now());
        let Step::Write(spec) = step else { return Ok(false) };
        let parameters = PostParams::default();
        let written = match found {
            Some(mut lease) => {
                lease.spec = Some(*spec);
                self.api.replace(&self.name, &parameters, &lease).await
            }
            None => {
                let mut lease = Lease { spec: Some(*spec), ..Lease::default() };
                lease.metadata.name = Some(self.name.clone());
                self.api.create(&parameters, &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observed.see(lease.spec.as_ref());
                Ok(true)
            }
            // Another candidate was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, so that the next leader need not wait.
    pub async fn resign(self) {
        if !self.leads.send_replace(false) {
            return;
        }
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            if let Err(error) = self.api.replace(&self.name, &PostParams::default(), &lease).await {
                tracing::warn!("the Lease {} was not given back: {error}", self.name);
            }
        }
    }
}

impl Observed {
    fn see(&mut self, spec: Option<&LeaseSpec>) {
        if self.since.is_none() || self.spec.as_ref() != spec {
            self.spec = spec.cloned();
            self.since = Some(Instant::now());
        }
    }

    fn step(&self, identity: &str, duration: Duration, now: Timestamp) -> Step {
        let old = self.spec.clone().unwrap_or_default();
        let holder = old.holder_identity.as_deref().unwrap_or("");
        let ours = holder == identity;
        let valid = Duration::from_secs(
            old.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0),
        );
        let expired = self.since.is_none_or(|since| since.elapsed() >= valid);
        if !ours && !holder.is_empty() && !expired {
            return Step::Wait;
        }
        let now = Some(MicroTime(now));
        let seconds = i32::try_from(duration.as_secs().max(1)).unwrap_or(i32::MAX);
        Step::Write(Box::new(LeaseSpec {
            holder_identity: Some(identity.into()),
            lease_duration_seconds: Some(seconds),
            acquire_time: if ours { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    fn step(spec: Option<LeaseSpec>, ago: Duration) -> Step {
        let since = Instant::now().checked_sub(ago);
        let observed = Observed { spec, since };
        observed.step("me", DURATION, Timestamp::UNIX_EPOCH)
    }

    fn transitions(step: Step) -> Option<i32> {
        match step {
            Step::Write(spec) => spec.lease_transitions,
            Step::Wait => None,
        }
    }

    #[test]
    fn a_fresh_lease_of_another_is_left_alone() {
        assert_eq!(step(Some(held_by("other", 15)), Duration::from_secs(5)), Step::Wait);
    }

    #[test]
    fn an_unchanged_lease_of_another_is_taken_after_its_duration() {
        let taken = step(Some(held_by("other", 15)), Duration::from_secs(16));
        assert_eq!(transitions(taken), Some(4));
    }

    #[test]
    fn one_that_was_given_back_or_never_held_is_taken_at_once() {
        assert_eq!(transitions(step(Some(held_by("", 1)), Duration::ZERO)), Some(4));
        assert_eq!(transitions(step(None, Duration::ZERO)), Some(1));
    }

    #[test]
    fn an_own_lease_is_renewed_without_transition() {
        assert_eq!(transitions(step(Some(held_by("me", 15)), Duration::ZERO)), Some(3));
    }

    #[test]
    fn what_changes_counts_anew() {
        let mut observed = Observed { spec: None, since: Instant::now().checked_sub(DURATION) };
        observed.see(Some(&held_by("other", 15)));
        assert_eq!(observed.step("me", DURATION, Timestamp::UNIX_EPOCH), Step::Wait);
    }
}
