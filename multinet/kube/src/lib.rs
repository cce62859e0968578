//! The Kubernetes API as a store of Bowline's objects. Agent and controller share it; the rules in
//! [`multinet`] do not know it.
#![forbid(unsafe_code)]
