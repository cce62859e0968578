//! Who gets which address: pure decisions on AddressBlocks, and a driver that writes them through a
//! [`crate::store::Store`].
//!
//! | file | holds |
//! |---|---|
//! | `view` | the blocks of one domain, and what has been changed in them |
//! | `claim` | which address a request gets |
//! | `release` | confirm, release, quarantine, reclaim |
//! | `reclaim` | which records nobody needs any more |
//! | `import` | what a running Spiderpool has given, as claims |
//! | `driver` | read, decide, compare-and-swap, again |
//!
//! Invariants:
//! - An address has one holder: an entry is created or taken over only by compare-and-swap on the
//!   block that the decision was made on.
//! - A claim's key is (owner, interface, family). The same key gets the same address again.
//! - A claim belongs to a sandbox; who asks for another sandbox's release changes nothing.
//! - What an entry says after any prefix of a plan's writes is true: a crash between two writes
//!   leaves claims that the next ADD finds, or the DEL (or reclaim) of their sandbox frees.

mod claim;
mod driver;
mod import;
mod reclaim;
mod release;
mod view;

pub use claim::{Candidate, Claim, Rejection, Rejections, Request, plan_claim};
pub use driver::{ClaimError, MAX_ATTEMPTS, claim, claim_groups, load, modify};
pub use import::{Import, Living, Pods, Taken, is_imported, plan_import, plan_take};
pub use reclaim::{
    Key, MachineFact, StatefulSetFact, Switches, Verdict, World, judge, may_have_moved,
    outlives_pod,
};
pub use release::{
    Holder, plan_confirm, plan_detach_record, plan_free_record, plan_keep, plan_node_gone,
    plan_quarantine, plan_release, plan_return_idle,
};
pub use view::View;
