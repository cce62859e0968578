//! DMA devices: copies done by hardware (Intel DSA, `idxd`) or by a thread (`dma_skeleton`).

use std::ffi::CString;

use dpdk_sys as sys;

use crate::eal::{Eal, devices_change};
use crate::error::{Error, reason};

/// One copy: `length_bytes` from `source` to `destination`.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct DmaCopy(sys::bl_dma_copy);

impl DmaCopy {
    /// Describes a copy; see [`DmaDev::enqueue`] for what must hold when it is used.
    pub fn new(source: *const u8, destination: *mut u8, length_bytes: u32) -> Self {
        Self(sys::bl_dma_copy {
            source: source as u64,
            destination: destination as u64,
            length_bytes,
        })
    }
}

/// Copies that a device has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// How many, in the order in which they were enqueued.
    pub count: u16,
    /// The one after these failed, and is off the ring too.
    pub failed: bool,
}

/// A started DMA device with one channel. One thread's at a time.
#[derive(Debug)]
pub struct DmaDev {
    id: i16,
    name: String,
    _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl DmaDev {
    /// Brings a device up (`dma_skeleton`, or a DSA work queue's name) with a ring for
    /// `descriptors` copies, adjusted to what it has.
    ///
    /// # Errors
    /// [`Error::Probe`] when it is not there; [`Error::Device`] when it cannot copy memory, or
    /// cannot take the process's own addresses (shared virtual memory).
    pub fn probe(_eal: Eal, arguments: &str, descriptors: u16) -> Result<Self, Error> {
        let name = arguments.split(',').next().unwrap_or_default().to_owned();
        let text = CString::new(arguments).map_err(|_| Error::Nul(arguments.to_owned()))?;
        let c_name = CString::new(name.as_str()).map_err(|_| Error::Nul(name.clone()))?;
        let refused = |operation, reason| Error::Device { device: name.clone(), operation, reason };
        let changing = devices_change();
        // SAFETY: the EAL is initialised; strings are NUL-terminated and only read.
        let (ret, id) = unsafe {
            let ret = sys::rte_dev_probe(text.as_ptr());
            (ret, sys::rte_dma_get_dev_id_by_name(c_name.as_ptr()))
        };
        drop(changing);
        let id = i16::try_from(id).unwrap_or(-1);
        if id < 0 {
            return Err(Error::Probe { device: arguments.to_owned(), reason: reason(ret) });
        }
        // SAFETY: the device exists.
        if unsafe { sys::bl_dma_shares_addresses(id) } == 0 {
            let reason = "it does not share this process's virtual addresses (no SVA), so every \
                          peer's memory would have to be pinned for it; use a DSA work queue of \
                          the kernel's idxd driver (type user, IOMMU with PASID), or the CPU";
            return Err(refused("using it for packets", reason.to_owned()));
        }
        // SAFETY: the device exists and is not started.
        let ret = unsafe { sys::bl_dma_setup(id, descriptors) };
        if ret < 0 {
            return Err(refused("setting it up", reason(ret)));
        }
        Ok(Self { id, name, _not_sync: std::marker::PhantomData })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many copies can be enqueued now.
    pub fn capacity(&self) -> usize {
        // SAFETY: the device is started.
        usize::from(unsafe { sys::bl_dma_capacity(self.id) })
    }

    /// Puts copies into the ring until it is full; returns how many went in. They begin at the
    /// latest with [`Self::submit`].
    ///
    /// # Safety
    /// Until [`Self::completed`] has reported a copy, its source stays readable and its destination
    /// writable, and nobody relies on the destination's bytes.
    pub unsafe fn enqueue(&mut self, copies: &[DmaCopy]) -> usize {
        let count = u16::try_from(copies.len()).unwrap_or(u16::MAX);
        // SAFETY: the device is started; DmaCopy is transparent over the C struct; the memory is
        // the caller's promise.
        usize::from(unsafe { sys::bl_dma_copy(self.id, copies.as_ptr().cast(), count) })
    }

    /// Tells the device to begin with everything enqueued.
    pub fn submit(&mut self) {
        // SAFETY: the device is started.
        unsafe { sys::bl_dma_submit(self.id) };
    }

    /// Up to `max` finished copies, never waiting. Stops behind a failed one.
    pub fn completed(&mut self, max: u16) -> Completed {
        let (mut last_index, mut failed) = (0_u16, 0_u8);
        // SAFETY: the device is started; both results are written.
        let count =
            unsafe { sys::bl_dma_completed(self.id, max, &raw mut last_index, &raw mut failed) };
        Completed { count, failed: failed != 0 }
    }

    /// Stops the device with whatever it has in flight. True when it certainly touches no memory any
    /// more: the software device's thread has ended. DSA drivers of DPDK 22.11 have no such call.
    pub fn stop(&mut self) -> bool {
        // SAFETY: the device exists.
        let ret = unsafe { sys::rte_dma_stop(self.id) };
        ret == 0 && self.name.starts_with("dma_skeleton")
    }
}

impl Drop for DmaDev {
    fn drop(&mut self) {
        let _changing = devices_change();
        // SAFETY: the device exists; nothing uses it after this.
        unsafe {
            sys::rte_dma_stop(self.id);
            sys::rte_dma_close(self.id);
        }
    }
}
