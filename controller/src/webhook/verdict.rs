//! Refusals and warnings.

use kube::core::admission::AdmissionResponse;
use multinet::rules::Problem;

/// Longer ones are cut by the API server.
const MAX_WARNING_CHARS: usize = 250;

/// What is said about a request.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// For each of these it is refused.
    pub(super) errors: Vec<String>,
    /// These are told to whoever asks.
    pub(super) warnings: Vec<String>,
}

impl Verdict {
    /// Refuses for errors, tells the rest.
    pub(super) fn of(problems: impl IntoIterator<Item = Problem>) -> Self {
        let mut verdict = Verdict::default();
        verdict.add(problems);
        verdict
    }

    /// Adds problems, each once.
    pub(super) fn add(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            let list = if problem.is_error() { &mut self.errors } else { &mut self.warnings };
            let text = problem.to_string();
            if !list.contains(&text) {
                list.push(text);
            }
        }
    }

    /// Tells everything and refuses nothing.
    pub(super) fn warn(mut self) -> Self {
        self.warnings.append(&mut self.errors);
        self
    }

    pub(super) fn word(&self) -> &'static str {
        match (self.errors.is_empty(), self.warnings.is_empty()) {
            (false, _) => "refused",
            (true, false) => "warned",
            (true, true) => "allowed",
        }
    }

    pub(super) fn answer(self, mut response: AdmissionResponse) -> AdmissionResponse {
        let cut = |text: String| text.chars().take(MAX_WARNING_CHARS).collect::<String>();
        if !self.warnings.is_empty() {
            response.warnings = Some(self.warnings.into_iter().map(cut).collect());
        }
        if self.errors.is_empty() { response } else { response.deny(self.errors.join("; ")) }
    }
}
