//! Receive buffers: page aligned, bounded, and used again so that their pages stay warm.
//!
//! Fresh memory costs more than the copy into it: 64 MB of 4 KiB page faults take 26 ms. Large buffers
//! ask for huge pages, and a dropped body gives its buffer back for the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

/// Unused memory kept for the next bodies, bytes.
const IDLE: usize = 512 << 20;
const HUGE: usize = 2 << 20;

/// The receive memory of a process.
pub(crate) struct Buffers {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes handed out.
    held: usize,
    idle: BTreeMap<usize, Vec<MmapMut>>,
    idle_bytes: usize,
}

/// A body that is being received.
pub(crate) struct Buffer {
    memory: Option<MmapMut>,
    len: usize,
    owner: Arc<Buffers>,
}

impl Buffers {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for a body of `len` bytes; nothing when that much would be held that the limit breaks.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        let class = class(len)?;
        let reused = {
            let mut state = self.lock();
            let held = state.held.checked_add(class).filter(|held| *held <= self.limit)?;
            state.held = held;
            let reused = state.idle.get_mut(&class).and_then(Vec::pop);
            if reused.is_some() {
                state.idle_bytes -= class;
            }
            reused
        };
        let memory = reused.or_else(|| fresh(class));
        if memory.is_none() {
            self.lock().held -= class;
            return None;
        }
        Some(Buffer { memory, len, owner: Arc::clone(self) })
    }
}

fn class(len: usize) -> Option<usize> {
    if len <= HUGE {
        Some(len.max(16 << 10).next_power_of_two())
    } else {
        len.checked_next_multiple_of(HUGE)
    }
}

fn fresh(class: usize) -> Option<MmapMut> {
    let memory = MmapMut::map_anon(class).ok()?;
    if class >= HUGE {
        // Without huge pages it only gets slower.
        let _ = memory.advise(Advice::HugePage);
    }
    Some(memory)
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory[..len])
    }

    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut state = self.owner.lock();
        state.held -= memory.len();
        if state.idle_bytes + memory.len() <= IDLE {
            state.idle_bytes += memory.len();
            state.idle.entry(memory.len()).or_default().push(memory);
        }
    }
}

/// Copies a small body to an address that is a multiple of 64.
pub(crate) fn aligned(body: &[u8]) -> Bytes {
    if body.is_empty() {
        return Bytes::new();
    }
    let mut memory = vec![0; body.len() + 63];
    let start = memory.as_ptr().align_offset(64).min(63);
    memory[start..start + body.len()].copy_from_slice(body);
    Bytes::from(memory).slice(start..start + body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_body_gives_its_memory_to_the_next() {
        let buffers = Buffers::new(8 << 20);
        let first = buffers.take(5_000_000).unwrap().freeze();
        let address = first.as_ptr();
        drop(first);
        let second = buffers.take(5_000_001).unwrap();
        assert_eq!((second.as_ref().as_ptr(), second.len()), (address, 5_000_001));
    }

    #[test]
    fn more_than_the_limit_is_refused_before_memory_is_taken() {
        let buffers = Buffers::new(8 << 20);
        let first = buffers.take(6 << 20).unwrap();
        assert!(buffers.take(4 << 20).is_none() && buffers.take(usize::MAX).is_none());
        drop(first);
        assert!(buffers.take(4 << 20).is_some());
    }

    #[test]
    fn small_bodies_are_aligned_too() {
        for len in [0, 1, 63, 64, 65, 5000] {
            let bytes = aligned(&vec![3; len]);
            assert_eq!(bytes, vec![3; len]);
            assert!(len == 0 || bytes.as_ptr().align_offset(64) == 0);
        }
    }
}
