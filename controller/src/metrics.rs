//! What is counted, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A job and how it ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct JobLabel {
    /// Its name.
    pub job: &'static str,
}

/// A pool.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PoolLabel {
    /// Its name.
    pub pool: String,
    /// Its Network; empty = the LAN domain.
    pub network: String,
}

/// Why something was freed, or how a request was answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// One word.
    pub reason: String,
}

/// An admission request and its answer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReviewLabel {
    /// The object's kind.
    pub kind: String,
    /// `allowed`, `warned` or `refused`.
    pub verdict: &'static str,
}

/// All counters; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    passes: Family<JobLabel, Counter>,
    failures: Family<JobLabel, Counter>,
    conflicts: Family<JobLabel, Counter>,
    seconds: Family<JobLabel, Histogram>,
    reviews: Family<ReviewLabel, Counter>,
    reclaimed: Family<ReasonLabel, Counter>,
    /// Addresses of a pool that nobody holds.
    pub free: Family<PoolLabel, Gauge>,
    /// Addresses of a pool.
    pub total: Family<PoolLabel, Gauge>,
    /// 1 while this replica leads.
    pub leads: Gauge,
    /// 1 while writes of addresses are withheld for a live Spiderpool controller.
    pub withheld: Gauge,
    /// NetworkPolicies in the cluster, none of which is enforced.
    pub unenforced_policies: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            passes: Family::default(),
            failures: Family::default(),
            conflicts: Family::default(),
            // From 1 ms to 16 s.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            reviews: Family::default(),
            reclaimed: Family::default(),
            free: Family::default(),
            total: Family::default(),
            leads: Gauge::default(),
            withheld: Gauge::default(),
            unenforced_policies: Gauge::default(),
        }
    }
}

impl Metrics {
    /// A job's pass that ended.
    pub fn pass(&self, job: &'static str, took: Duration, failed: bool) {
        let label = JobLabel { job };
        self.passes.get_or_create(&label).inc();
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
        if failed {
            self.failures.get_or_create(&label).inc();
        }
    }

    /// A write that somebody else was faster than.
    pub fn conflict(&self, job: &'static str) {
        self.conflicts.get_or_create(&JobLabel { job }).inc();
    }

    /// An admission request that was answered.
    pub fn review(&self, kind: &str, verdict: &'static str) {
        self.reviews.get_or_create(&ReviewLabel { kind: kind.into(), verdict }).inc();
    }

    /// An address that was freed.
    pub fn reclaimed(&self, reason: &str) {
        self.reclaimed.get_or_create(&ReasonLabel { reason: reason.into() }).inc();
    }

    /// Everything as text of the OpenMetrics format.
    ///
    /// # Errors
    /// Never in practice: the buffer is memory.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("bowline_controller");
        let r = &mut registry;
        r.register("job_passes", "Passes of a job", self.passes.clone());
        r.register("job_failures", "Passes that failed", self.failures.clone());
        r.register("job_conflicts", "Writes that lost a race", self.conflicts.clone());
        r.register("job_seconds", "Length of a pass", self.seconds.clone());
        r.register("admission_reviews", "Admission requests", self.reviews.clone());
        r.register("reclaimed_addresses", "Addresses freed", self.reclaimed.clone());
        r.register("pool_free_addresses", "Free addresses of a pool", self.free.clone());
        r.register("pool_total_addresses", "Addresses of a pool", self.total.clone());
        r.register("leads", "Whether this replica leads", self.leads.clone());
        r.register("writes_withheld", "Whether Spiderpool's own controller is alive", {
            self.withheld.clone()
        });
        r.register("unenforced_network_policies", "NetworkPolicies, none of them enforced", {
            self.unenforced_policies.clone()
        });
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}
