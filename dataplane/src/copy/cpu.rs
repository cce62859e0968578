//! Copies by the CPU.
//!
//! Short ones (heads, 64-byte frames) are a few vector loads and stores where they are needed: a call
//! of `memcpy` costs as much as the copy. Long ones run with the widest vectors that the machine
//! has, chosen once at start. Stores are temporal: the receiver reads the bytes next, and
//! `docs/performance.md` has the measurement.
//!
//! A peer may hand us one piece of memory under two mappings, so a source may overlap its
//! destination. That spoils this peer's payload and nothing else: every load and store below is
//! inside the two ranges whatever they hold, and no reference to them exists.

use memif::sigbus;

use super::Op;
use super::{prefetch_read, prefetch_write};

/// Copies at least this long are worth the wide loop.
const LONG_BYTES: usize = 256;
/// Ops ahead of which lines are fetched …
const AHEAD_OPS: usize = 2;
/// … and how much of each: its lines come from the sender's core, and go back from the receiver's.
const AHEAD_BYTES: usize = 1536;
const LINE_BYTES: usize = 64;

/// Copies on the CPU and their account.
#[derive(Debug)]
pub(super) struct Cpu {
    vectors: Vectors,
    pub(super) bytes: u64,
    pub(super) copies: u64,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { vectors: Vectors::widest(), bytes: 0, copies: 0 }
    }
}

/// What long copies run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Vectors {
    /// What the compiler's `memcpy` has.
    Plain,
    Avx2,
    Avx512,
}

impl Vectors {
    fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") {
            return Self::Avx512;
        } else if std::arch::is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Plain
    }
}

impl Cpu {
    /// Runs all.
    ///
    /// # Safety
    /// Every op's source is readable and its destination writable.
    #[inline]
    pub(super) unsafe fn run(&mut self, ops: &[Op]) {
        // SAFETY: by the caller.
        unsafe {
            let done = self.run_usual(ops);
            if done < ops.len() {
                self.run_carefully(&ops[done..]);
            }
        }
    }

    /// Runs those before a peer is caught, and returns how many these are: at least one.
    ///
    /// # Safety
    /// As for [`Cpu::run`].
    #[inline]
    unsafe fn run_usual(&mut self, ops: &[Op]) -> usize {
        // SAFETY: by the caller; `vectors` says what the CPU has; `copy` allows an overlap.
        let done = unsafe {
            match self.vectors {
                #[cfg(target_arch = "x86_64")]
                Vectors::Avx512 => run_avx512(ops),
                #[cfg(target_arch = "x86_64")]
                Vectors::Avx2 => run_avx2(ops),
                _ => run_with(ops, |from, to, len| std::ptr::copy(from, to, len)),
            }
        };
        self.copies += done as u64;
        self.bytes += ops[..done].iter().map(|op| u64::from(op.len)).sum::<u64>();
        done
    }

    /// Runs all but those from and to the memory of peers that were caught: its pages may be missing, and
    /// each would keep us waiting. What would have come from there is zeros.
    ///
    /// # Safety
    /// As for [`Cpu::run`].
    #[cold]
    unsafe fn run_carefully(&mut self, ops: &[Op]) {
        for op in ops.iter().filter(|op| !sigbus::is_spoilt(op.to)) {
            // SAFETY: by the caller.
            unsafe {
                match sigbus::is_spoilt(op.from) {
                    true => op.to.write_bytes(0, op.len as usize),
                    false => self.one(op),
                }
            }
        }
    }

    /// Runs one.
    ///
    /// # Safety
    /// As for [`Cpu::run`].
    #[inline]
    pub(super) unsafe fn one(&mut self, op: &Op) {
        // SAFETY: by the caller.
        unsafe { self.run_usual(std::slice::from_ref(op)) };
    }
}

/// Runs ops up to the one before which a peer was caught; returns how many. The loop is made anew for each
/// kind of vector, so that what it needs stays in registers from one op to the next.
///
/// # Safety
/// As for [`Cpu::run`]; `long` copies at least [`LONG_BYTES`].
#[inline(always)]
unsafe fn run_with(ops: &[Op], long: impl Fn(*const u8, *mut u8, usize)) -> usize {
    let contained = sigbus::contained();
    for (at, op) in ops.iter().enumerate() {
        if let Some(next) = ops.get(at + AHEAD_OPS) {
            fetch(next);
        }
        let len = op.len as usize;
        if len < LONG_BYTES {
            // SAFETY: by the caller.
            unsafe { short(op.from, op.to, len) };
        } else {
            long(op.from, op.to, len);
        }
        if sigbus::contained() != contained {
            return at + 1;
        }
    }
    ops.len()
}

/// Asks for the lines of a copy that runs soon.
#[inline]
fn fetch(op: &Op) {
    let (mut at, end) = (0, AHEAD_BYTES.min(op.len as usize));
    // Not `step_by`, which the compiler makes twice as many instructions of.
    while at < end {
        prefetch_read(op.from.wrapping_add(at));
        prefetch_write(op.to.wrapping_add(at));
        at += LINE_BYTES;
    }
}

/// Copies a few bytes without a call.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes.
#[inline(always)]
pub(super) unsafe fn short(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each arm stays inside `len` bytes: it copies blocks from the front, and the last
    // block so that it ends with the range.
    unsafe {
        if len > 128 {
            blocks(from, to, len);
        } else if len > 64 {
            block::<64>(from, to, 0);
            block::<64>(from, to, len - 64);
        } else if len > 32 {
            block::<32>(from, to, 0);
            block::<32>(from, to, len - 32);
        } else if len >= 16 {
            block::<16>(from, to, 0);
            block::<16>(from, to, len - 16);
        } else {
            few(from, to, len);
        }
    }
}

/// More than fits into the arms of [`short`], which its callers' loops hold: a function of its own.
///
/// # Safety
/// As for [`short`], with at least 64 bytes.
#[inline(never)]
unsafe fn blocks(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller; the last block ends with the range.
    unsafe {
        let mut at = 0;
        while at + 64 < len {
            block::<64>(from, to, at);
            at += 64;
        }
        block::<64>(from, to, len - 64);
    }
}

/// Less than that.
///
/// # Safety
/// As for [`short`], with at most 16 bytes.
#[inline(never)]
unsafe fn few(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller.
    unsafe {
        if len >= 8 {
            block::<8>(from, to, 0);
            block::<8>(from, to, len - 8);
        } else {
            for at in 0..len {
                block::<1>(from, to, at);
            }
        }
    }
}

/// Copies `N` bytes at the same place of both ranges: vector registers for the compiler.
///
/// # Safety
/// Both are valid for the `N` bytes from `at` on.
#[inline(always)]
unsafe fn block<const N: usize>(from: *const u8, to: *mut u8, at: usize) {
    // SAFETY: by the caller; an array of bytes has no alignment. All is read before anything is
    // written, so an overlap is harmless.
    unsafe {
        let bytes = from.add(at).cast::<[u8; N]>().read();
        to.add(at).cast::<[u8; N]>().write(bytes);
    }
}

/// # Safety
/// As for [`run_with`]; the CPU has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_avx512(ops: &[Op]) -> usize {
    // SAFETY: by the caller.
    unsafe { run_with(ops, |from, to, len| quads::<std::arch::x86_64::__m512i>(from, to, len)) }
}

/// # Safety
/// As for [`run_with`]; the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn run_avx2(ops: &[Op]) -> usize {
    // SAFETY: by the caller.
    unsafe { run_with(ops, |from, to, len| quads::<std::arch::x86_64::__m256i>(from, to, len)) }
}

/// Four registers at a time; the last four so that they end with the range.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes, at least four registers. `Register` is one that the caller
/// may use, and any bytes are a value of it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn quads<Register>(from: *const u8, to: *mut u8, len: usize) {
    let bytes = 4 * size_of::<Register>();
    let quad = |at: usize| {
        // SAFETY: called for `at + bytes ≤ len` only; nothing has to be aligned.
        unsafe {
            let (s, d) = (from.add(at).cast::<Register>(), to.add(at).cast::<Register>());
            let a = s.read_unaligned();
            let b = s.add(1).read_unaligned();
            let c = s.add(2).read_unaligned();
            let e = s.add(3).read_unaligned();
            d.write_unaligned(a);
            d.add(1).write_unaligned(b);
            d.add(2).write_unaligned(c);
            d.add(3).write_unaligned(e);
        }
    };
    let mut at = 0;
    while at + bytes < len {
        quad(at);
        at += bytes;
    }
    quad(len - bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length and misalignment gives what `memcpy` gives, and not a byte more.
    #[test]
    fn copies_exactly_what_it_is_told() {
        let from: Vec<u8> = (0..4096u32).map(|n| (n * 31 % 251) as u8).collect();
        let lengths = (0..600).chain([1024, 1371, 2048, 3999]);
        for (len, skew) in lengths.flat_map(|len| (0..3).map(move |skew| (len, skew))) {
            let all = [Vectors::Plain, Vectors::Avx2, Vectors::Avx512];
            for vectors in all.into_iter().filter(|vectors| *vectors <= Vectors::widest()) {
                let mut to = vec![0xee; len + 64];
                let mut cpu = Cpu { vectors, ..Cpu::default() };
                let op = Op {
                    from: from[skew..].as_ptr(),
                    to: to[skew..].as_mut_ptr(),
                    len: len as u32,
                };
                // SAFETY: `from` has 4096 bytes and `to` 64 more than are copied.
                unsafe { cpu.one(&op) };
                assert_eq!(to[skew..skew + len], from[skew..skew + len], "{len} bytes");
                assert!(to[..skew].iter().chain(&to[skew + len..]).all(|&b| b == 0xee));
            }
        }
    }
}
