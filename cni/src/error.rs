//! CNI errors: an object with a code, on stdout, and exit status 1 (CNI specification 1.1, "Error").

use serde::{Deserialize, Serialize};

/// What went wrong, for the runtime (`code`) and for a person (`msg`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// One sentence: what, where, which value, what to do.
    pub msg: String,
    /// More, for instance every pool that was considered and why it was not used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Error codes: 1 to 99 are the specification's, from 100 on Bowline's own.
pub mod code {
    /// The runtime asked for a version that the plugin does not speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration has a field that cannot be honoured.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or invalid.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO_FAILURE: u32 = 5;
    /// stdin could not be decoded.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// A transient condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and existing containers may have limited connectivity.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// What the pod asks for can never be granted as it is written.
    pub const REFUSED: u32 = 100;
    /// No address could be had; `details` lists every pool and why not.
    pub const NO_ADDRESS: u32 = 101;
    /// CHECK: what is there differs from what was made.
    pub const CHECK_FAILED: u32 = 102;
    /// A defect or a failing part of Bowline.
    pub const INTERNAL: u32 = 110;
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        CniError { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}
