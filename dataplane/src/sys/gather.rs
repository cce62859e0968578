//! Reading a frame into a buffer, and writing one from wherever its pieces lie.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::copy::Seg;

/// Most pieces of a gathered write; the kernel takes 1024.
pub const GATHER_MAX: usize = 256;

/// Reads one frame. `Ok(0)` means that nothing is there.
#[inline]
pub fn read(fd: BorrowedFd<'_>, to: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `to` is writable for its length.
    let n = unsafe { libc::read(fd.as_raw_fd(), to.as_mut_ptr().cast(), to.len()) };
    if n >= 0 {
        return Ok(n as usize);
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

/// Writes one frame: `first`, then `second`, then the segments.
#[inline]
pub fn write(fd: BorrowedFd<'_>, first: &[u8], second: &[u8], rest: &[Seg]) -> io::Result<usize> {
    let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; GATHER_MAX];
    let slice = |bytes: &[u8]| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let count = rest.len() + 2;
    if count > GATHER_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    pieces[0] = slice(first);
    pieces[1] = slice(second);
    for (piece, seg) in pieces[2..].iter_mut().zip(rest) {
        *piece = libc::iovec { iov_base: seg.as_ptr().cast_mut().cast(), iov_len: seg.len() };
    }
    // SAFETY: the first `count` pieces are set. The slices are readable; a segment's memory stays
    // mapped while its claim is held, and a page that a peer punched out makes the kernel answer
    // EFAULT. The kernel only reads.
    let n = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count as i32) };
    if n >= 0 {
        return Ok(n as usize);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EFAULT) {
        rest.iter().for_each(Seg::touch);
    }
    Err(error)
}
