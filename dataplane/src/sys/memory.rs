//! Where memory comes from.

use std::io;

/// Memory of this process comes from the node of the core that touches it first, and the kernel does
/// not sample who touches what: its samples are page faults, which would make a busy worker wait.
///
/// # Errors
/// The kernel has no NUMA support: then it does not sample either.
pub fn stay_local() -> io::Result<()> {
    const MPOL_LOCAL: libc::c_long = 4;
    let none = std::ptr::null::<libc::c_ulong>();
    // SAFETY: MPOL_LOCAL takes no node mask.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_LOCAL, none, 0) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_policy_is_accepted() {
        let result = super::stay_local();
        let no_numa = result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS));
        assert!(result.is_ok() || no_numa, "{result:?}");
    }
}
