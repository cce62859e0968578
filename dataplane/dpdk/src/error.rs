//! What can go wrong, with what to do about it.

use std::ffi::CStr;

/// Errors of this crate. DPDK reports most failures as a negative `errno`; `reason` spells it out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `rte_eal_init` works once per process.
    #[error("DPDK is already initialised in this process; use Eal::get()")]
    AlreadyInitialised,
    /// The environment did not come up.
    #[error(
        "DPDK does not start with {arguments}: {reason}; run as root, and check free memory and \
         hugepages (`grep Huge /proc/meminfo`)"
    )]
    Eal {
        /// The command line that was given to DPDK.
        arguments: String,
        /// What DPDK answered.
        reason: String,
    },
    /// No memory for a pool.
    #[error(
        "no memory for a pool of {mbufs} buffers of {data_room_bytes} bytes: {reason}; give the EAL \
         more memory or ask for fewer buffers"
    )]
    Mempool {
        /// Buffers asked for.
        mbufs: u32,
        /// Bytes of data per buffer.
        data_room_bytes: u16,
        /// What DPDK answered.
        reason: String,
    },
    /// A device or driver that is not there.
    #[error("device `{device}` does not come up: {reason}; check the driver's name and arguments")]
    Probe {
        /// The arguments of the device.
        device: String,
        /// What DPDK answered.
        reason: String,
    },
    /// A device refused an operation.
    #[error("device `{device}`: {operation} failed: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What DPDK answered.
        reason: String,
    },
    /// A setting is outside of what the device can do.
    #[error("device `{device}`: {field} = {value} is not possible; allowed: {allowed}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// Which setting.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// What is possible.
        allowed: String,
    },
    /// Stopping a device while its queues are still with somebody.
    #[error("device `{device}` has {queues} queues in use; drop them before stopping it")]
    QueuesInUse {
        /// The device's name.
        device: String,
        /// How many queues are out.
        queues: usize,
    },
    /// A string with a NUL byte.
    #[error("`{0}` contains a NUL byte")]
    Nul(String),
}

/// The text of a DPDK return value: a negative errno, or -1 with the detail in `rte_errno`.
pub(crate) fn reason(ret: i32) -> String {
    let code = if ret == -1 || ret == 0 { last_errno() } else { -ret };
    // SAFETY: rte_strerror returns a pointer to a static or thread-local string, never null.
    let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(code)) };
    format!("{} (error {code})", text.to_string_lossy())
}

fn last_errno() -> i32 {
    // SAFETY: reads a thread-local integer.
    unsafe { dpdk_sys::bl_errno() }
}
