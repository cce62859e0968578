//! The data plane's API: protobuf messages, generated client and server.
//!
//! The contract is `proto/dataplane.proto`; read that file, not the generated code.
#![allow(missing_docs, reason = "generated from the commented proto file")]
#![allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    unreachable_pub,
    reason = "generated"
)]

tonic::include_proto!("bowline.dataplane.v1");
