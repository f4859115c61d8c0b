//! The sender's shared memory towards one peer: segments, and slots in them that are used again and again.
//!
//! First fit from the lowest offset keeps the pages warm. A full pool gives nothing, and the body travels as
//! chunks: sending never waits for a receiver.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::copy::copy;
use super::shared::{SLOTS, Segment};
use super::wire::Slot;

/// Smallest segment, bytes; its pages take memory only when they are used.
const SEGMENT: usize = 64 << 20;
/// Slots begin on pages.
const ALIGN: usize = 4096;

/// Tells the peer about a new segment; fails when it cannot at once.
pub(crate) type Announce = Box<dyn Fn(u32, &Segment) -> io::Result<()> + Send + Sync>;

/// Shared memory towards one peer.
pub(crate) struct Pool {
    state: Mutex<State>,
    announce: Announce,
    limit: usize,
}

struct State {
    regions: Vec<Region>,
    /// Segments could not be made or announced: no more are tried.
    stuck: bool,
}

struct Region {
    segment: Arc<Segment>,
    /// Free ranges: offset to length, never adjacent.
    free: BTreeMap<usize, usize>,
    slots: Vec<Taken>,
    /// Slots that hold nothing.
    spare: Vec<u32>,
    /// Slots given out, oldest first.
    given: VecDeque<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The caller fills it, or holds it without having sent it.
    Local,
    /// Sent; the caller's own handle may be alive too.
    Sent { held: bool },
}

struct Taken {
    offset: usize,
    len: usize,
    generation: u32,
    phase: Phase,
}

impl Region {
    fn new(segment: Segment) -> Self {
        let free = BTreeMap::from([(0, segment.len())]);
        let spare = (0..SLOTS as u32).rev().collect();
        let slots = (0..SLOTS)
            .map(|_| Taken { offset: 0, len: 0, generation: 0, phase: Phase::Local })
            .collect();
        Self { segment: Arc::new(segment), free, slots, spare, given: VecDeque::new() }
    }

    fn reclaim(&mut self) {
        for _ in 0..self.given.len() {
            let Some(index) = self.given.pop_front() else { break };
            let taken = &self.slots[index as usize];
            let back = taken.phase == Phase::Sent { held: false }
                && self.segment.returned(index, taken.generation);
            if back { self.release(index) } else { self.given.push_back(index) }
        }
    }

    fn release(&mut self, index: u32) {
        let (mut offset, mut len) =
            (self.slots[index as usize].offset, self.slots[index as usize].len);
        self.spare.push(index);
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.free.remove(&before);
            (offset, len) = (before, size + len);
        }
        if let Some(size) = self.free.remove(&(offset + len)) {
            len += size;
        }
        self.free.insert(offset, len);
    }

    fn take(&mut self, len: usize) -> Option<u32> {
        let len = len.max(1).next_multiple_of(ALIGN);
        let (&offset, &size) = self.free.iter().find(|(_, size)| **size >= len)?;
        let index = self.spare.pop()?;
        self.free.remove(&offset);
        if size > len {
            self.free.insert(offset + len, size - len);
        }
        let taken = &mut self.slots[index as usize];
        // Generation 0 is what a new control word holds.
        let generation = taken.generation.checked_add(1).unwrap_or(1);
        *taken = Taken { offset, len, generation, phase: Phase::Local };
        self.given.push_back(index);
        Some(index)
    }
}

impl Pool {
    pub(crate) fn new(limit: usize, announce: Announce) -> Arc<Self> {
        let state = Mutex::new(State { regions: Vec::new(), stuck: false });
        Arc::new(Self { state, announce, limit })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot to fill, or nothing when the pool is full.
    pub(crate) fn reserve(self: &Arc<Self>, len: usize) -> Option<Filling> {
        let mut state = self.lock();
        let filling = |region: usize, index: u32, segment: &Arc<Segment>, taken: &Taken| Filling {
            pool: Arc::clone(self),
            segment: Arc::clone(segment),
            region,
            index,
            generation: taken.generation,
            offset: taken.offset,
            len,
        };
        for (number, region) in state.regions.iter_mut().enumerate() {
            region.reclaim();
            if let Some(index) = region.take(len) {
                return Some(filling(
                    number,
                    index,
                    &region.segment,
                    &region.slots[index as usize],
                ));
            }
        }
        let number = self.grow(&mut state, len)?;
        let region = &mut state.regions[number];
        let index = region.take(len)?;
        Some(filling(number, index, &region.segment, &region.slots[index as usize]))
    }

    fn grow(&self, state: &mut State, len: usize) -> Option<usize> {
        let total: usize = state.regions.iter().map(|region| region.segment.len()).sum();
        let room = self.limit.saturating_sub(total) / ALIGN * ALIGN;
        let needed = len.checked_next_multiple_of(ALIGN)?;
        // Doubling bounds the number of segments that the other side has to map.
        let size = needed.max(SEGMENT).max(total).min(room);
        if state.stuck || size < needed || size == 0 {
            return None;
        }
        let number = state.regions.len();
        let made = Segment::create(size).and_then(|segment| {
            (self.announce)(number as u32, &segment)?;
            Ok(segment)
        });
        match made {
            Ok(segment) => state.regions.push(Region::new(segment)),
            Err(error) => {
                tracing::warn!(%error, size, "no shared memory, bodies travel as chunks");
                state.stuck = true;
                return None;
            }
        }
        Some(number)
    }

    /// Copies a body into a slot, or finds the slot in which it already is.
    pub(crate) fn place(self: &Arc<Self>, body: &Bytes) -> Option<Slot> {
        if let Some(slot) = self.sent_in_place(body) {
            return Some(slot);
        }
        let mut filling = self.reserve(body.len())?;
        copy(filling.as_mut(), body);
        Some(filling.send())
    }

    fn sent_in_place(&self, body: &Bytes) -> Option<Slot> {
        let address = body.as_ptr() as usize;
        let mut state = self.lock();
        for (number, region) in state.regions.iter_mut().enumerate() {
            let Some(offset) = address.checked_sub(region.segment.address()) else { continue };
            if offset >= region.segment.len() {
                continue;
            }
            let slots = &mut region.slots;
            let index = *region
                .given
                .iter()
                .rev()
                .find(|index| slots[**index as usize].offset == offset)?;
            let taken = &mut slots[index as usize];
            // A second send of the same bytes is copied: a slot has one receiver.
            if taken.phase != Phase::Local || body.len() > taken.len {
                return None;
            }
            taken.phase = Phase::Sent { held: true };
            let (generation, offset) = (taken.generation, offset as u64);
            return Some(Slot { segment: number as u32, slot: index, generation, offset });
        }
        None
    }
}

/// A slot that its holder writes, or keeps readable as [`Bytes`].
pub(crate) struct Filling {
    pool: Arc<Pool>,
    segment: Arc<Segment>,
    region: usize,
    index: u32,
    generation: u32,
    offset: usize,
    len: usize,
}

impl Filling {
    fn send(self) -> Slot {
        let (segment, slot) = (self.region as u32, self.index);
        let (generation, offset) = (self.generation, self.offset as u64);
        self.pool.lock().regions[self.region].slots[self.index as usize].phase =
            Phase::Sent { held: true };
        Slot { segment, slot, generation, offset }
    }

    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(Frozen(self))
    }
}

impl AsRef<[u8]> for Filling {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: this handle holds the slot, and `&self` excludes `as_mut`.
        unsafe { self.segment.read(self.offset, self.len) }
    }
}

impl AsMut<[u8]> for Filling {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocator gave the slot to this handle alone; it can be sent only by consuming the handle.
        unsafe { self.segment.write(self.offset, self.len) }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let region = &mut state.regions[self.region];
        let taken = &mut region.slots[self.index as usize];
        if let Phase::Sent { .. } = taken.phase {
            taken.phase = Phase::Sent { held: false };
            return;
        }
        region.given.retain(|index| *index != self.index);
        region.release(self.index);
    }
}

struct Frozen(Filling);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use proptest::prelude::*;

    use super::super::shared::{Body, View};
    use super::*;

    type Views = Arc<Mutex<Vec<Arc<View>>>>;

    fn pool(limit: usize) -> (Arc<Pool>, Views) {
        let views = Views::default();
        let sink = Arc::clone(&views);
        let announce = move |number: u32, segment: &Segment| {
            let files: Vec<OwnedFd> =
                segment.files.iter().map(|file| file.try_clone().unwrap()).collect();
            assert_eq!(number as usize, sink.lock().unwrap().len());
            sink.lock()
                .unwrap()
                .push(Arc::new(View::open(files.try_into().unwrap(), segment.len())?));
            Ok(())
        };
        (Pool::new(limit, Box::new(announce)), views)
    }

    fn receive(views: &Views, slot: Slot, len: usize) -> Body {
        views.lock().unwrap()[slot.segment as usize].body(slot, len).unwrap()
    }

    #[test]
    fn a_returned_slot_is_used_again() {
        let (pool, views) = pool(64 << 20);
        let body = Bytes::from(vec![1; 1 << 20]);
        let mut offsets = Vec::new();
        for _ in 0..200 {
            let slot = pool.place(&body).expect("64 MiB hold one MiB at a time");
            offsets.push(slot.offset);
            drop(receive(&views, slot, body.len()));
        }
        assert!(offsets.iter().all(|offset| *offset == 0), "the warm slot first");
    }

    #[test]
    fn a_full_pool_gives_nothing_until_a_slot_returns() {
        let (pool, views) = pool(8 << 20);
        let body = Bytes::from(vec![1; 4 << 20]);
        let first = pool.place(&body).unwrap();
        let second = pool.place(&body).unwrap();
        assert!(pool.place(&body).is_none());
        drop(receive(&views, first, body.len()));
        assert_eq!(pool.place(&body).unwrap().offset, first.offset);
        assert_ne!(first.offset, second.offset);
    }

    #[test]
    fn bytes_written_in_place_are_sent_without_a_copy_and_kept_while_held() {
        let (pool, views) = pool(1 << 20);
        let mut filling = pool.reserve(1 << 20).unwrap();
        filling.as_mut().fill(7);
        let bytes = filling.freeze();
        let slot = pool.place(&bytes).expect("it is in the pool");
        assert!(pool.place(&bytes).is_none(), "a second send needs a second slot");
        drop(receive(&views, slot, bytes.len()));
        assert!(pool.reserve(1).is_none(), "the sender still holds the bytes");
        assert_eq!(bytes[99], 7);
        drop(bytes);
        assert!(pool.reserve(1 << 20).is_some());
    }

    proptest! {
        #[test]
        fn bodies_in_flight_never_overlap(sizes in proptest::collection::vec((1usize..3_000_000, 0usize..8), 1..60)) {
            let (pool, views) = pool(64 << 20);
            let mut flying: Vec<(Body, u8)> = Vec::new();
            for (turn, (len, keep)) in sizes.into_iter().enumerate() {
                let fill = turn as u8;
                if let Some(slot) = pool.place(&Bytes::from(vec![fill; len])) {
                    flying.push((receive(&views, slot, len), fill));
                }
                while flying.len() > keep {
                    let (body, fill) = flying.remove(turn % flying.len());
                    prop_assert!(body.as_ref().iter().all(|byte| *byte == fill));
                }
            }
        }
    }
}
