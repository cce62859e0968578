//! Pools of packet buffers.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;

use crate::eal::Eal;
use crate::error::{Error, reason};
use crate::mbuf::Mbuf;

/// A pool of equally large packet buffers. Any thread may take from it and give back to it.
#[derive(Debug)]
pub struct Mempool {
    raw: NonNull<dpdk_sys::rte_mempool>,
    mbufs: u32,
    data_room_bytes: u16,
}

// SAFETY: DPDK's default pool is a multi-producer, multi-consumer ring; per-thread caches are used
// only by threads registered with DPDK, each its own.
unsafe impl Send for Mempool {}
// SAFETY: as above; no method needs exclusive access.
unsafe impl Sync for Mempool {}

/// How large a pool is.
#[derive(Debug, Clone, Copy)]
pub struct MempoolConfig {
    /// How many buffers: descriptors of all queues, plus bursts and copies under way. An af_xdp
    /// queue takes 2048 for its fill ring alone, and refuses a pool that has fewer.
    pub mbufs: u32,
    /// Bytes of packet data in one buffer, without the 128 bytes of headroom before them.
    pub data_bytes: u16,
    /// Buffers kept per registered thread.
    pub cache: u32,
}

impl Default for MempoolConfig {
    fn default() -> Self {
        Self { mbufs: 8191, data_bytes: 2048, cache: 256 }
    }
}

impl Mempool {
    /// Makes a pool.
    ///
    /// # Errors
    /// [`Error::Mempool`] without memory for it.
    pub fn new(_eal: Eal, config: &MempoolConfig) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bowline{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).expect("no NUL in letters and digits");
        // DPDK wants the cache within its limit and below two thirds of the pool.
        let cache = config.cache.min(dpdk_sys::BL_MEMPOOL_CACHE_MAX).min(config.mbufs / 2);
        let headroom = u16::try_from(dpdk_sys::BL_HEADROOM_BYTES).unwrap_or(u16::MAX);
        let data_room_bytes = config.data_bytes.saturating_add(headroom);
        // SAFETY: the EAL is initialised; the name is NUL-terminated and copied.
        let raw = unsafe {
            dpdk_sys::bl_mempool_create(name.as_ptr(), config.mbufs, cache, data_room_bytes)
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::Mempool {
            mbufs: config.mbufs,
            data_room_bytes,
            reason: reason(0),
        })?;
        Ok(Self { raw, mbufs: config.mbufs, data_room_bytes: config.data_bytes })
    }

    /// How many buffers the pool was made with.
    pub fn size(&self) -> u32 {
        self.mbufs
    }

    /// Bytes of packet data in one buffer.
    pub fn data_bytes(&self) -> u16 {
        self.data_room_bytes
    }

    /// How many buffers are in the pool now (all, when nothing is leaked and no device is open).
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as self.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// One empty buffer.
    pub fn alloc(&self) -> Option<Mbuf> {
        let mut one = ArrayVec::<Mbuf, 1>::new();
        self.alloc_bulk(&mut one, 1).then(|| one.pop())?
    }

    /// Appends `count` empty buffers to `into`, or none: `false` when the pool has fewer or `into`
    /// has no room for them.
    pub fn alloc_bulk<const N: usize>(&self, into: &mut ArrayVec<Mbuf, N>, count: usize) -> bool {
        if count > into.remaining_capacity() {
            return false;
        }
        let Ok(wanted) = u32::try_from(count) else { return false };
        let len = into.len();
        // SAFETY: `into` has room for `count` more pointers (checked above), and Mbuf is a
        // transparent non-null pointer, which alloc_bulk writes for all of them or for none.
        unsafe {
            let end = into.as_mut_ptr().add(len).cast::<*mut dpdk_sys::rte_mbuf>();
            if dpdk_sys::bl_mbuf_alloc_bulk(self.raw.as_ptr(), end, wanted) != 0 {
                return false;
            }
            into.set_len(len + count);
        }
        true
    }

    pub(crate) fn as_ptr(&self) -> *mut dpdk_sys::rte_mempool {
        self.raw.as_ptr()
    }
}

impl Drop for Mempool {
    fn drop(&mut self) {
        // A buffer that is still outside points into this memory: then the pool stays for ever.
        if self.available() == self.mbufs {
            // SAFETY: every buffer is back, so nothing refers to the pool; self is the last owner.
            unsafe { dpdk_sys::rte_mempool_free(self.raw.as_ptr()) }
        }
    }
}
