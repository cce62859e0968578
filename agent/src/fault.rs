//! Death at a chosen step, for the tests that prove that nothing leaks.
//!
//! `--fault-step NAME` ends the process, as SIGKILL would, when it reaches the step of that name.

use std::sync::OnceLock;

static STEP: OnceLock<String> = OnceLock::new();

/// The steps of an ADD, in order, at whose end the process can be made to die.
pub const ADD_STEPS: [&str; 7] =
    ["claimed", "journaled", "made", "held", "offered", "applied", "confirmed"];

/// Chooses the step. Only the first call counts.
pub fn die_at(step: &str) {
    // A second choice would make a test mean something else than it says.
    let _ = STEP.set(step.to_owned());
}

/// Dies if this is the step.
pub(crate) fn reached(step: &str) {
    if STEP.get().is_some_and(|chosen| chosen == step) {
        tracing::error!("dying at step {step}, as --fault-step asks");
        // SIGKILL to oneself: no destructor runs and no buffer is flushed.
        let me = nix::unistd::Pid::this();
        let _ = nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL);
    }
}
