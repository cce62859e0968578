//! Packet buffers.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

/// One packet: a buffer, or a chain of them, owned here until dropped or sent.
///
/// Nothing in this crate makes a second reference to a buffer, so its bytes are plain memory.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: the buffer is owned by this value alone, and any thread may give it back to its pool.
unsafe impl Send for Mbuf {}

/// What the receiver knows about one checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Nobody looked.
    Unknown,
    /// The device verified it.
    Good,
    /// The device found it wrong.
    Bad,
    /// Not filled in, but the data is known to be intact (virtual devices).
    Partial,
}

/// Checksums of a received packet, as far as the device checked them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxChecksum {
    /// The IPv4 header's.
    pub ip: Checksum,
    /// TCP's or UDP's.
    pub l4: Checksum,
}

/// Network protocol of a packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L3 {
    /// IPv4; the device may fill the header checksum.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Transport protocol whose checksum the device shall fill in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Work left to the device. The caller has put the pseudo header's sum into the checksum field.
#[derive(Debug, Clone, Copy)]
pub struct TxOffload {
    /// Bytes before the IP header.
    pub l2_bytes: u16,
    /// Bytes of the IP header.
    pub l3_bytes: u16,
    /// Bytes of the transport header; used with `tso_segment_bytes`.
    pub l4_bytes: u16,
    /// Network protocol.
    pub l3: L3,
    /// Fill the IPv4 header checksum.
    pub ip_checksum: bool,
    /// Fill this transport checksum.
    pub l4_checksum: Option<L4>,
    /// Cut into TCP segments with this much payload; 0 = leave whole.
    pub tso_segment_bytes: u16,
}

impl Mbuf {
    /// Gives packets back to their pools, those of one pool together.
    pub fn free_all<const N: usize>(packets: &mut ArrayVec<Self, N>) {
        let count = packets.len();
        // SAFETY: an Mbuf is a transparent non-null pointer that owns its chain. The list forgets
        // its elements first, so that nothing is freed twice; its memory stays until the call ends.
        unsafe {
            packets.set_len(0);
            sys::bl_mbuf_free_bulk(packets.as_mut_ptr().cast(), count as u32);
        }
    }

    fn field<T>(&self, offset: sys::bl_offset) -> *mut T {
        // SAFETY: the offsets are those of struct rte_mbuf in the headers this was built with, so
        // the result lies inside the buffer's header.
        unsafe { self.0.as_ptr().cast::<u8>().add(offset as usize).cast() }
    }

    fn get<T: Copy>(&self, offset: sys::bl_offset) -> T {
        // SAFETY: every caller names the field's C type; the field is aligned and initialised.
        unsafe { self.field::<T>(offset).read() }
    }

    fn set<T: Copy>(&mut self, offset: sys::bl_offset, value: T) {
        // SAFETY: as in `get`; &mut self excludes other readers.
        unsafe { self.field::<T>(offset).write(value) }
    }

    /// Bytes of the whole packet.
    pub fn len(&self) -> usize {
        self.get::<u32>(sys::BL_OFF_PKT_LEN) as usize
    }

    /// Whether the packet has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many buffers the packet lies in.
    pub fn segment_count(&self) -> usize {
        usize::from(self.get::<u16>(sys::BL_OFF_NB_SEGS))
    }

    fn data_len(&self) -> usize {
        usize::from(self.get::<u16>(sys::BL_OFF_DATA_LEN))
    }

    fn data_ptr(&self) -> *mut u8 {
        let base = self.get::<*mut u8>(sys::BL_OFF_BUF_ADDR);
        // SAFETY: data_off is within the buffer that buf_addr points to; both are kept so by DPDK
        // and by the checked methods below.
        unsafe { base.add(self.headroom()) }
    }

    /// Bytes free before the data of the first buffer.
    pub fn headroom(&self) -> usize {
        usize::from(self.get::<u16>(sys::BL_OFF_DATA_OFF))
    }

    /// Bytes free after the data of the first buffer.
    pub fn tailroom(&self) -> usize {
        usize::from(self.get::<u16>(sys::BL_OFF_BUF_LEN))
            .saturating_sub(self.headroom() + self.data_len())
    }

    /// The bytes in the first buffer.
    pub fn data(&self) -> &[u8] {
        // SAFETY: data_ptr..+data_len lies in the buffer, which is initialised memory (mapped
        // zeroed) and owned by self.
        unsafe { std::slice::from_raw_parts(self.data_ptr(), self.data_len()) }
    }

    /// The bytes in the first buffer, to change.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; &mut self makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.data_ptr(), self.data_len()) }
    }

    /// The bytes of each buffer of the packet, in order.
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: Some(self.0), packet: PhantomData }
    }

    /// Makes room for `count` bytes at the end and returns it; `None` when the first buffer is too
    /// small or the packet is a chain. The bytes are whatever was there.
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        if self.segment_count() != 1 || count > self.tailroom() {
            return None;
        }
        let old = self.data_len();
        self.set_single_len(old + count);
        Some(&mut self.data_mut()[old..])
    }

    /// Appends a copy of `bytes`; `false` (and no change) when they do not fit.
    #[must_use]
    pub fn append_bytes(&mut self, bytes: &[u8]) -> bool {
        self.append(bytes.len()).map(|room| room.copy_from_slice(bytes)).is_some()
    }

    /// Makes room for `count` bytes before the data and returns it; `None` without headroom.
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        let headroom = self.headroom().checked_sub(count)?;
        let (data_len, len) = (self.data_len() + count, self.len() + count);
        self.set(sys::BL_OFF_DATA_OFF, u16::try_from(headroom).ok()?);
        self.set(sys::BL_OFF_DATA_LEN, u16::try_from(data_len).ok()?);
        self.set(sys::BL_OFF_PKT_LEN, u32::try_from(len).ok()?);
        Some(&mut self.data_mut()[..count])
    }

    /// Drops `count` bytes from the front of the first buffer; `false` when it has fewer.
    #[must_use]
    pub fn trim_front(&mut self, count: usize) -> bool {
        let Some(data_len) = self.data_len().checked_sub(count) else { return false };
        let (headroom, len) = (self.headroom() + count, self.len() - count);
        self.set(sys::BL_OFF_DATA_OFF, headroom as u16);
        self.set(sys::BL_OFF_DATA_LEN, data_len as u16);
        self.set(sys::BL_OFF_PKT_LEN, len as u32);
        true
    }

    /// Cuts a packet of one buffer down to `len` bytes; `false` when it is a chain or shorter.
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        if self.segment_count() != 1 || len > self.data_len() {
            return false;
        }
        self.set_single_len(len);
        true
    }

    fn set_single_len(&mut self, len: usize) {
        // Cannot truncate: a buffer holds less than 64 KiB (its length field is a u16).
        self.set(sys::BL_OFF_DATA_LEN, len as u16);
        self.set(sys::BL_OFF_PKT_LEN, len as u32);
    }

    /// Hangs the buffers of `tail` behind this packet's.
    ///
    /// # Errors
    /// Gives `tail` back when the chain would have more than 255 buffers.
    pub fn chain(&mut self, tail: Self) -> Result<(), Self> {
        let segments = self.segment_count() + tail.segment_count();
        if segments > 255 {
            return Err(tail);
        }
        let len = self.len() + tail.len();
        let mut last = self.0;
        // SAFETY: `next` pointers lead through the chain that self owns and end with null; the
        // tail's ownership moves into the chain (into_raw), so nothing is freed twice.
        unsafe {
            while let Some(next) = next_of(last) {
                last = next;
            }
            let field = last.as_ptr().cast::<u8>().add(sys::BL_OFF_NEXT as usize);
            field.cast::<*mut sys::rte_mbuf>().write(tail.into_raw());
        }
        self.set(sys::BL_OFF_NB_SEGS, segments as u16);
        self.set(sys::BL_OFF_PKT_LEN, len as u32);
        Ok(())
    }

    fn flags(&self) -> u64 {
        self.get(sys::BL_OFF_OL_FLAGS)
    }

    /// What the device found out about the checksums of a received packet.
    pub fn rx_checksum(&self) -> RxChecksum {
        let flags = self.flags();
        let verdict = |mask: u64, good: u64, bad: u64| match flags & mask {
            value if value == good => Checksum::Good,
            value if value == bad => Checksum::Bad,
            0 => Checksum::Unknown,
            _ => Checksum::Partial,
        };
        RxChecksum {
            ip: verdict(
                sys::BL_RX_IP_CKSUM_MASK,
                sys::BL_RX_IP_CKSUM_GOOD,
                sys::BL_RX_IP_CKSUM_BAD,
            ),
            l4: verdict(
                sys::BL_RX_L4_CKSUM_MASK,
                sys::BL_RX_L4_CKSUM_GOOD,
                sys::BL_RX_L4_CKSUM_BAD,
            ),
        }
    }

    /// The VLAN tag (TCI) that the device took out of the frame.
    pub fn rx_vlan(&self) -> Option<u16> {
        (self.flags() & sys::BL_RX_VLAN_STRIPPED != 0).then(|| self.get(sys::BL_OFF_VLAN_TCI))
    }

    /// The flow hash that the device computed to pick the queue.
    pub fn rx_hash(&self) -> Option<u32> {
        (self.flags() & sys::BL_RX_RSS_HASH != 0).then(|| self.get(sys::BL_OFF_RSS))
    }

    /// Forgets what the receiver noted, so that the packet can be sent.
    pub fn clear_offloads(&mut self) {
        self.set(sys::BL_OFF_OL_FLAGS, 0_u64);
        self.set(sys::BL_OFF_TX_OFFLOAD, 0_u64);
    }

    /// Leaves checksums or segmentation to the device. Replaces earlier requests.
    pub fn set_tx_offload(&mut self, offload: &TxOffload) {
        let mut flags = match offload.l3 {
            L3::Ipv4 => sys::BL_TX_IPV4,
            L3::Ipv6 => sys::BL_TX_IPV6,
        };
        if offload.ip_checksum && offload.l3 == L3::Ipv4 {
            flags |= sys::BL_TX_IP_CKSUM;
        }
        flags |= match offload.l4_checksum {
            Some(L4::Tcp) => sys::BL_TX_TCP_CKSUM,
            Some(L4::Udp) => sys::BL_TX_UDP_CKSUM,
            None => 0,
        };
        if offload.tso_segment_bytes > 0 {
            flags |= sys::BL_TX_TCP_SEG;
        }
        let lengths = u64::from(offload.l2_bytes)
            | u64::from(offload.l3_bytes) << sys::BL_L2_LEN_BITS
            | u64::from(offload.l4_bytes) << (sys::BL_L2_LEN_BITS + sys::BL_L3_LEN_BITS)
            | u64::from(offload.tso_segment_bytes)
                << (sys::BL_L2_LEN_BITS + sys::BL_L3_LEN_BITS + sys::BL_L4_LEN_BITS);
        self.set(sys::BL_OFF_OL_FLAGS, flags);
        self.set(sys::BL_OFF_TX_OFFLOAD, lengths);
    }

    /// Lets the device insert this VLAN tag (TCI).
    pub fn set_tx_vlan(&mut self, tci: u16) {
        let flags = self.flags() | sys::BL_TX_VLAN;
        self.set(sys::BL_OFF_OL_FLAGS, flags);
        self.set(sys::BL_OFF_VLAN_TCI, tci);
    }

    fn into_raw(self) -> *mut sys::rte_mbuf {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }
}

/// # Safety
/// `segment` is a live buffer.
unsafe fn next_of(segment: NonNull<sys::rte_mbuf>) -> Option<NonNull<sys::rte_mbuf>> {
    // SAFETY: the caller's promise; the field holds null or the next buffer of the chain.
    unsafe {
        let field = segment.as_ptr().cast::<u8>().add(sys::BL_OFF_NEXT as usize);
        NonNull::new(field.cast::<*mut sys::rte_mbuf>().read())
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: self owns the chain; its pool outlives every buffer (see Mempool's Drop).
        unsafe { sys::bl_mbuf_free(self.0.as_ptr()) }
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len())
            .field("segments", &self.segment_count())
            .finish()
    }
}

/// Iterator over the pieces of a packet.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    next: Option<NonNull<sys::rte_mbuf>>,
    packet: PhantomData<&'a Mbuf>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let segment = self.next?;
        // SAFETY: `segment` is part of the chain that 'a borrows; ManuallyDrop keeps this view
        // from freeing it, and its bytes live as long as the packet.
        unsafe {
            self.next = next_of(segment);
            let view = std::mem::ManuallyDrop::new(Mbuf(segment));
            Some(std::slice::from_raw_parts(view.data_ptr(), view.data_len()))
        }
    }
}
