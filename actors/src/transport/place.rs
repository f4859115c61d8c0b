//! From a message to frames: which body travels inline, in shared memory or as chunks.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::Message;
use super::buffers::Buffer;
use super::pool::{Filling, Pool};
use super::wire::{self, INLINE, Place, Record};

/// Bytes that wait for the wire; gives them back when the last frame is written.
pub(crate) struct Charge {
    queued: Arc<AtomicUsize>,
    len: usize,
}

impl Charge {
    /// Adds `len`, or says how much is queued when that would be above the limit.
    pub(crate) fn take(queued: &Arc<AtomicUsize>, len: usize, limit: usize) -> Result<Self, usize> {
        let within = |now: usize| now.checked_add(len).filter(|sum| *sum <= limit);
        queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, within)?;
        Ok(Self { queued: Arc::clone(queued), len })
    }

    /// Gives back what turned out not to wait.
    pub(crate) fn shrink(&mut self, len: usize) {
        if let Some(less) = self.len.checked_sub(len) {
            self.queued.fetch_sub(less, Ordering::AcqRel);
            self.len = len;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.len, Ordering::AcqRel);
    }
}

/// A message ready for the wire.
pub(crate) struct Outgoing {
    pub(crate) frame: Vec<u8>,
    /// Index and bytes of each chunked body.
    pub(crate) chunks: Vec<(u16, Bytes)>,
    pub(crate) charge: Arc<Charge>,
}

/// Places every body. Copies into shared memory, so it runs on the caller's thread.
pub(crate) fn place(message: &Message, pool: Option<&Arc<Pool>>, mut charge: Charge) -> Outgoing {
    let mut records = Vec::with_capacity(message.bodies.len());
    let (mut inline, mut chunks) = (Vec::new(), Vec::new());
    for (index, body) in message.bodies.iter().enumerate() {
        let len = body.len();
        let slot = || pool.and_then(|pool| pool.place(body)).map(Place::Shared);
        let place = if len < INLINE { Place::Inline } else { slot().unwrap_or(Place::Chunks) };
        match place {
            Place::Inline => inline.push(body.as_ref()),
            Place::Chunks => chunks.push((index as u16, body.clone())),
            Place::Shared(_) => {}
        }
        records.push(Record { place, len });
    }
    let frame = wire::data(&records, &message.header, &inline);
    charge.shrink(frame.len() + chunks.iter().map(|(_, body)| body.len()).sum::<usize>());
    Outgoing { frame, chunks, charge: Arc::new(charge) }
}

/// Memory for a body that is written where it will be sent from.
///
/// Towards an ipc peer it lies in shared memory, and sending the frozen bytes to that peer copies nothing.
pub struct Reserved(pub(crate) Memory);

pub(crate) enum Memory {
    Shared(Filling),
    Private(Buffer),
    Empty,
}

impl Reserved {
    /// Ends the writing: the bytes are a body for [`Message::bodies`].
    pub fn freeze(self) -> Bytes {
        match self.0 {
            Memory::Shared(filling) => filling.freeze(),
            Memory::Private(buffer) => buffer.freeze(),
            Memory::Empty => Bytes::new(),
        }
    }
}

impl Deref for Reserved {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Shared(filling) => filling.as_ref(),
            Memory::Private(buffer) => buffer.as_ref(),
            Memory::Empty => &[],
        }
    }
}

impl DerefMut for Reserved {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Shared(filling) => filling.as_mut(),
            Memory::Private(buffer) => buffer.as_mut(),
            Memory::Empty => &mut [],
        }
    }
}
