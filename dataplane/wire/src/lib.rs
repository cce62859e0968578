//! Packet headers viewed in place, checksums and the newtypes of the field.
#![forbid(unsafe_code)]
