//! Resource types: the shape of the objects, nothing about what is right or wrong (see
//! [`crate::rules`]).

pub mod block;
pub mod core;
pub mod mac;
pub mod meta;
pub mod network;
pub mod node;
pub mod pool;
