//! Where the time of an ADD goes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::metrics::{Metrics, StepLabels};

/// A stopwatch for one ADD.
#[derive(Debug)]
pub(super) struct Steps {
    metrics: Arc<Metrics>,
    since: Mutex<Instant>,
}

impl Steps {
    pub(super) fn begin(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: metrics.clone(), since: Mutex::new(Instant::now()) }
    }

    /// What was done since the last call has this name.
    pub(super) fn done(&self, step: &'static str) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let took = now.duration_since(std::mem::replace(&mut *since, now));
        self.metrics.step_seconds.get_or_create(&StepLabels { step }).observe(took.as_secs_f64());
    }
}
