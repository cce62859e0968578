//! The memory that a client brings: one sealed memfd with all rings, then all buffers.
//!
//! Everything about it is known here, so nothing that the server writes into it is believed except
//! its own indexes and the lengths of what it sent.

use super::ClientConfig;
use crate::error::{CloseReason, RegionError};
use crate::region::health::Health;
use crate::region::shared::Shared;
use crate::region::{Lent, Region, Regions, page_bytes, seal_against_holes};
use crate::ring::own::OwnBuffers;
use crate::ring::rx::RxQueue;
use crate::ring::tx::TxQueue;
use crate::ring::{Direction, Place, Ring, Role};
use crate::sys::given::Count;
use crate::wire::{AddRing, Message, RING_IS_S2M};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

const HUGE_PAGE_BYTES: u64 = 2 << 20;
const PAGE_BYTES: u64 = 4096;

/// How many rings of which size: what was configured, within what the server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub s2m_rings: u16,
    pub m2s_rings: u16,
    pub log2_ring_size: u8,
    /// Rounded up to whole cache lines.
    pub buffer_bytes: u32,
    pub huge_pages: bool,
}

impl Shape {
    fn rings(self) -> u64 {
        u64::from(self.s2m_rings) + u64::from(self.m2s_rings)
    }

    fn place(self, ring: u64) -> Place {
        let empty = Place { region: 0, offset: 0, log2_size: self.log2_ring_size };
        // At most 512 rings of half a megabyte: `bytes` below has checked that it fits.
        Place { offset: (ring * empty.bytes()) as u32, ..empty }
    }

    fn buffers_at(self) -> u64 {
        (self.rings() * self.place(0).bytes()).next_multiple_of(PAGE_BYTES)
    }

    fn ring_buffer_bytes(self) -> u64 {
        u64::from(self.buffer_bytes) << self.log2_ring_size
    }

    /// The whole file; descriptors reach 4 GiB.
    fn bytes(self) -> Result<u64, RegionError> {
        let page = if self.huge_pages { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let bytes = self.buffers_at() + self.rings() * self.ring_buffer_bytes();
        let max_bytes = 1 << 32;
        if bytes > max_bytes {
            return Err(RegionError::TooLarge { total_bytes: bytes, max_bytes });
        }
        Ok(bytes.next_multiple_of(page))
    }
}

/// Asks the application for that many bytes of memory, and its file to be announced. A connector may
/// move between threads, and this with it.
type AskForMemory = Box<dyn FnMut(u64) -> Option<(Lent, OwnedFd)> + Send>;

/// How a client of the C interface differs.
#[derive(Default)]
pub(crate) struct Hooks {
    /// As libmemif: the application posts the receive buffers itself, and may ask for the files of
    /// the regions.
    pub as_libmemif: bool,
    /// Where the buffers come from; else from the region of the rings.
    pub external: Option<AskForMemory>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Hooks {{ as_libmemif: {}, external: {} }}",
            self.as_libmemif,
            self.external.is_some()
        )
    }
}

/// The file, mapped, with all rings initialised, and the messages that announce it.
#[derive(Debug)]
pub(crate) struct Memory {
    /// One region for all, or one for the rings and one for the buffers, each with its file.
    shared: Shared,
    health: Arc<Health>,
    rings: Vec<Ring>,
    shape: Shape,
    /// Messages already sent.
    announced: usize,
}

impl Memory {
    /// `closing` counts what is being given up later.
    pub(crate) fn new(
        shape: Shape,
        hooks: &mut Hooks,
        closing: &Count,
    ) -> Result<Self, CloseReason> {
        let shared = Shared::new((!hooks.as_libmemif).then(|| Count::clone(closing)));
        Self::allocate(shape, hooks, shared)
            .map_err(|error| CloseReason::Region { index: 0, error })
    }

    fn allocate(shape: Shape, hooks: &mut Hooks, mut shared: Shared) -> Result<Self, RegionError> {
        let health = Arc::default();
        let external = match &mut hooks.external {
            None => None,
            Some(ask) => {
                let bytes = shape.rings() * shape.ring_buffer_bytes();
                let refused = RegionError::System { call: "external memory", errno: Errno::ENOMEM };
                Some((bytes, ask(bytes).ok_or(refused)?))
            }
        };
        let bytes = if external.is_some() { shape.buffers_at() } else { shape.bytes()? };
        let file = sealed_file(bytes, shape.huge_pages)?;
        let page = if shape.huge_pages { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let region = Region::map(&file, bytes, page, &health)?;
        let rings = Self::make_rings(shape, &region, &mut shared.eventfds)?;
        shared.files.push(file);
        shared.regions.push(region);
        if let Some((bytes, (lent, file))) = external {
            let page = page_bytes(&file)?;
            shared.files.push(file);
            shared.regions.push(Region::lent(lent, bytes, page, &health)?);
        }
        Ok(Self { shared, health, rings, shape, announced: 0 })
    }

    fn make_rings(
        shape: Shape,
        region: &Region,
        eventfds: &mut Vec<OwnedFd>,
    ) -> Result<Vec<Ring>, RegionError> {
        let mut rings = Vec::new();
        for ring in 0..shape.rings() {
            let direction =
                if ring < u64::from(shape.s2m_rings) { Direction::S2m } else { Direction::M2s };
            let eventfd =
                EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                    .map_err(|errno| RegionError::System { call: "eventfd", errno })?;
            let ring = Ring::new(shape.place(ring), region, direction, eventfd.as_fd())
                .map_err(|_| RegionError::System { call: "ring layout", errno: Errno::EINVAL })?;
            ring.initialise();
            rings.push(ring);
            eventfds.push(eventfd.into());
        }
        Ok(rings)
    }

    /// The next message of the handshake, in the order region, S2M rings, M2S rings; one per ACK.
    pub(crate) fn next_message(&mut self) -> Option<(Message, BorrowedFd<'_>)> {
        let step = self.announced;
        self.announced += 1;
        let Shared { regions, files, .. } = &self.shared;
        if let (Some(file), Some(region)) = (files.get(step), regions.get(step)) {
            let message = Message::AddRegion { index: step as u16, size: region.size() };
            return Some((message, file.as_fd()));
        }
        let number = step - regions.len();
        let ring = self.rings.get(number)?;
        let s2m = ring.direction == Direction::S2m;
        let index = if s2m { number } else { number - usize::from(self.shape.s2m_rings) };
        let place = self.shape.place(number as u64);
        let add = AddRing {
            flags: if s2m { RING_IS_S2M } else { 0 },
            index: index as u16,
            region: place.region,
            offset: place.offset,
            log2_ring_size: place.log2_size,
            private_hdr_size: 0,
        };
        Some((Message::AddRing(add), ring.eventfd()))
    }

    /// The server takes no pages out of it from now on: it has mapped everything.
    ///
    /// # Errors
    /// The server has forbidden further seals.
    pub(crate) fn seal(&self) -> Result<(), CloseReason> {
        for (index, file) in (0..).zip(&self.shared.files) {
            let sealed = seal_against_holes(file);
            sealed.map_err(|error| CloseReason::Region { index, error })?;
        }
        Ok(())
    }

    /// CONNECTED has come: the rings become queues, and the empty buffers go to the server.
    pub(crate) fn into_queues(
        mut self,
        max_frame_bytes: u32,
        as_libmemif: bool,
    ) -> (Arc<Regions>, Vec<RxQueue>, Vec<TxQueue>) {
        let shape = self.shape;
        // The last region holds the buffers: behind the rings, or by themselves.
        let region = self.shared.regions.len() - 1;
        let first = if region == 0 { shape.buffers_at() } else { 0 };
        let base = self.shared.regions[region].base();
        let own: Vec<OwnBuffers> = (0..shape.rings())
            .map(|ring| {
                let offset = (first + ring * shape.ring_buffer_bytes()) as u32;
                let slots = 1 << shape.log2_ring_size;
                OwnBuffers::new(base, region as u16, offset, shape.buffer_bytes, slots)
            })
            .collect();
        let files = std::mem::take(&mut self.shared.files);
        if as_libmemif {
            let regions = std::mem::take(&mut self.shared.regions).into_iter().zip(files);
            self.shared.regions = regions.map(|(region, file)| region.keep(file)).collect();
        }
        let regions = Regions::new(self.shared, self.health);
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        for (ring, own) in self.rings.into_iter().zip(own) {
            if ring.direction == Direction::S2m {
                tx.push(TxQueue::new(ring, Role::Client, own, &regions));
            } else {
                let mut queue = RxQueue::new(ring, Role::Client, own, &regions, max_frame_bytes);
                if !as_libmemif {
                    queue.post_all();
                }
                rx.push(queue);
            }
        }
        (regions, rx, tx)
    }
}

impl Shape {
    pub(crate) fn of(config: &ClientConfig) -> Self {
        Self {
            s2m_rings: config.s2m_rings,
            m2s_rings: config.m2s_rings,
            log2_ring_size: config.log2_ring_size,
            buffer_bytes: config.buffer_bytes.clamp(64, 1 << 20).next_multiple_of(64),
            huge_pages: config.huge_pages,
        }
    }
}

/// A memory file of a size that nobody can change any more. Further seals come when it is mapped.
fn sealed_file(bytes: u64, huge_pages: bool) -> Result<OwnedFd, RegionError> {
    let system = |call| move |errno| RegionError::System { call, errno };
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if huge_pages {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    let file = memfd_create(c"memif", flags).map_err(system("memfd_create"))?;
    let size = i64::try_from(bytes).unwrap_or(i64::MAX);
    nix::unistd::ftruncate(&file, size).map_err(system("ftruncate"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(system("F_ADD_SEALS"))?;
    Ok(file)
}
