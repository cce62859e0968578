//! System calls that the crates at hand do not offer safely. One file per purpose.
#![allow(unsafe_code, reason = "this room holds the system calls that need pointers")]

pub mod cycles;
pub mod descriptor;
pub mod ethtool;
pub mod gather;
pub mod memory;
pub mod netns;
pub mod packet;
pub mod priority;
pub mod tun;
