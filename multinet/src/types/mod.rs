//! Resource types: the shape of the objects, nothing about what is right or wrong (see
//! [`crate::rules`]).

pub mod block;
pub mod coordinator;
pub mod core;
pub mod endpoint;
pub mod foreign;
pub mod mac;
pub mod meta;
pub mod multus;
pub mod network;
pub mod node;
pub mod pool;
pub mod subnet;
