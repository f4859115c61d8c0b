//! A message whose bodies are still coming.

use std::sync::Arc;

use bytes::Bytes;

use super::buffers::{Buffer, Buffers, aligned};
use super::wire::{CHUNK, Data, Place, Prefix, Slot};
use super::{Cause, Message};

pub(crate) struct Assembly {
    sequence: u64,
    header: Vec<u8>,
    bodies: Vec<Part>,
    /// Index of the body that is being filled.
    at: usize,
    filled: usize,
}

enum Part {
    Ready(Bytes),
    Filling(Buffer),
}

/// The cause to cut a session for.
pub(crate) fn broken(reason: impl ToString) -> Cause {
    Cause::Protocol { reason: reason.to_string() }
}

impl Assembly {
    /// Begins with the first frame; `shared` finds a body in shared memory.
    pub(crate) fn begin(
        sequence: u64,
        data: Data<'_>,
        buffers: &Arc<Buffers>,
        shared: impl Fn(Slot, usize) -> Result<Bytes, Cause>,
    ) -> Result<Self, Cause> {
        let Data { records, header, mut inline } = data;
        let mut bodies = Vec::with_capacity(records.len());
        for record in records {
            let len = record.len;
            bodies.push(match record.place {
                Place::Inline => {
                    let parts = inline.split_at_checked(len);
                    let (body, rest) = parts.ok_or_else(|| broken("inline bytes lack"))?;
                    inline = rest;
                    Part::Ready(aligned(body))
                }
                Place::Chunks if len == 0 => Part::Ready(Bytes::new()),
                Place::Chunks => {
                    let buffer = buffers.take(len);
                    Part::Filling(buffer.ok_or_else(|| broken("too many bodies are held here"))?)
                }
                Place::Shared(slot) => Part::Ready(shared(slot, len)?),
            });
        }
        Ok(Self { sequence, header: header.to_vec(), bodies, at: 0, filled: 0 })
    }

    /// Steps over complete bodies; true when none is left.
    pub(crate) fn complete(&mut self) -> bool {
        while let Some(part) = self.bodies.get(self.at) {
            match part {
                Part::Filling(buffer) if self.filled < buffer.len() => return false,
                _ => (self.at, self.filled) = (self.at + 1, 0),
            }
        }
        true
    }

    /// Takes the next chunk, which must be exactly that.
    pub(crate) fn fill(&mut self, prefix: &Prefix, piece: &[u8]) -> Result<(), Cause> {
        let expected = (self.sequence, self.at as u64, self.filled as u64);
        if expected != (prefix.sequence, prefix.count.into(), prefix.size) {
            return Err(broken("a chunk is out of order"));
        }
        self.append(piece)
    }

    /// Takes the next bytes of the body that is being filled.
    pub(crate) fn append(&mut self, piece: &[u8]) -> Result<(), Cause> {
        let end = self.filled + piece.len();
        let room = match self.bodies.get_mut(self.at) {
            Some(Part::Filling(buffer)) => buffer.as_mut().get_mut(self.filled..end),
            _ => None,
        };
        match room {
            Some(room) if !piece.is_empty() && piece.len() <= CHUNK => room.copy_from_slice(piece),
            _ => return Err(broken("a chunk has a wrong length")),
        }
        self.filled = end;
        Ok(())
    }

    pub(crate) fn finish(self) -> Message {
        let body = |part| match part {
            Part::Ready(bytes) => bytes,
            Part::Filling(buffer) => buffer.freeze(),
        };
        Message { header: self.header, bodies: self.bodies.into_iter().map(body).collect() }
    }
}
