//! The webhooks' certificate authority and serving certificate: made here, kept in a Secret that all
//! replicas share, replaced before their end, taken into use without a restart.
//!
//! | file | holds |
//! |---|---|
//! | `material` | what is in the Secret, and when it is to be replaced (pure) |
//! | `secret` | reading and writing the Secret, the authority in the webhook configurations |
//! | `listener` | TLS connections with the certificate in force |
//!
//! Order of a replacement: Secret, webhook configurations, own connections. What the API server trusts
//! always includes the authority before, so that replicas which still serve the old certificate
//! are believed.

mod listener;
mod material;
mod secret;

pub use listener::{Current, Listener};
pub use material::{Material, MaterialError, Validity};
pub use secret::Keeper;
