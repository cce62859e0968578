//! A node's share of the realm: from the catalog to the data plane's desired state, as pure code.

pub mod state;
