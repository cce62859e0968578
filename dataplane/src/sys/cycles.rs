//! The CPU's own clock: a read costs some twenty cycles.

/// Cycles of the time stamp counter; 0 on machines that are not known to have one.
#[inline]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every 64-bit x86 CPU has the instruction, and Linux lets programs use it.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    0
}
