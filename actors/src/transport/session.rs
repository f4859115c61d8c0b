//! One session with one peer: numbering what leaves, putting together what comes.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::buffers::{Buffer, Buffers, aligned};
use super::place::Outgoing;
use super::shared::View;
use super::side::{ANNOUNCEMENT, Received, Side};
use super::sockets::send_shared;
use super::wire::{self, CHUNK, Data, Kind, Place, Prefix, Slot};
use super::{Cause, Limits, Message, PeerName};

/// Over which socket a session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Via {
    /// The peer connected to this listening socket, which calls it so.
    Router { index: usize, identity: Vec<u8> },
    /// This side connected.
    Dialer,
}

/// A session that is open.
pub(crate) struct Session {
    pub(crate) peer: PeerName,
    pub(crate) via: Via,
    /// The last sign of life.
    pub(crate) heard: Instant,
    /// Why and since when it is about to end; what was sent before still arrives.
    pub(crate) ending: Option<(Instant, Cause)>,
    pub(crate) nonce: [u8; 16],
    /// The peer will open, or has opened, a side socket.
    pub(crate) shares: bool,
    pub(crate) side: Option<Side>,
    views: Vec<Arc<View>>,
    sent: u64,
    received: u64,
    assembly: Option<Assembly>,
}

/// What a frame led to.
pub(crate) enum Step {
    Nothing,
    Message(Message),
    Bye,
}

/// A message whose chunks are still coming.
struct Assembly {
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

impl Assembly {
    /// Steps over complete bodies; true when none is left.
    fn complete(&mut self) -> bool {
        while let Some(part) = self.bodies.get(self.at) {
            match part {
                Part::Filling(buffer) if self.filled < buffer.len() => return false,
                _ => (self.at, self.filled) = (self.at + 1, 0),
            }
        }
        true
    }

    fn finish(self) -> Message {
        let body = |part| match part {
            Part::Ready(bytes) => bytes,
            Part::Filling(buffer) => buffer.freeze(),
        };
        Message { header: self.header, bodies: self.bodies.into_iter().map(body).collect() }
    }
}

fn broken(reason: impl ToString) -> Cause {
    Cause::Protocol { reason: reason.to_string() }
}

impl Session {
    pub(crate) fn new(peer: PeerName, via: Via, nonce: [u8; 16], heard: Instant) -> Self {
        Self {
            peer,
            via,
            heard,
            ending: None,
            nonce,
            shares: false,
            side: None,
            views: Vec::new(),
            sent: 0,
            received: 0,
            assembly: None,
        }
    }

    fn address(&self, socket: &zmq::Socket) -> zmq::Result<()> {
        match &self.via {
            Via::Router { identity, .. } => {
                socket.send(identity.as_slice(), zmq::SNDMORE | zmq::DONTWAIT)
            }
            Via::Dialer => Ok(()),
        }
    }

    /// Sends a message: its first frame, then every chunk.
    pub(crate) fn send(&mut self, socket: &mut zmq::Socket, outgoing: Outgoing) -> zmq::Result<()> {
        let Outgoing { mut frame, chunks, charge } = outgoing;
        self.sent += 1;
        wire::number(&mut frame, self.sent);
        self.address(socket)?;
        send_shared(socket, frame.into(), Box::new(Arc::clone(&charge)), zmq::DONTWAIT)?;
        for (index, body) in chunks {
            for offset in (0..body.len()).step_by(CHUNK) {
                let piece = body.slice(offset..body.len().min(offset + CHUNK));
                let prefix = Prefix {
                    kind: Kind::Chunk,
                    count: index,
                    sequence: self.sent,
                    size: offset as u64,
                };
                self.address(socket)?;
                socket.send(&prefix.bytes()[..], zmq::SNDMORE | zmq::DONTWAIT)?;
                send_shared(socket, piece, Box::new(Arc::clone(&charge)), zmq::DONTWAIT)?;
            }
        }
        Ok(())
    }

    /// Sends a frame without content.
    pub(crate) fn signal(&self, socket: &zmq::Socket, kind: Kind, counter: u64) -> zmq::Result<()> {
        self.address(socket)?;
        let prefix = Prefix { kind, count: 0, sequence: counter, size: 0 };
        socket.send(&prefix.bytes()[..], zmq::DONTWAIT)
    }

    /// Takes the frames of one ZeroMQ message.
    pub(crate) fn receive(
        &mut self,
        frame: &[u8],
        piece: Option<&[u8]>,
        limits: &Limits,
        buffers: &Arc<Buffers>,
    ) -> Result<Step, Cause> {
        let (prefix, rest) = Prefix::decode(frame).map_err(broken)?;
        match (prefix.kind, piece) {
            (Kind::Data, None) => self.data(&prefix, rest, limits, buffers),
            (Kind::Chunk, Some(piece)) if rest.is_empty() => self.chunk(&prefix, piece),
            (Kind::Heartbeat, None) => Ok(Step::Nothing),
            (Kind::Bye, None) => Ok(Step::Bye),
            (kind, _) => Err(broken(format!("{kind:?} is out of place"))),
        }
    }

    fn data(
        &mut self,
        prefix: &Prefix,
        rest: &[u8],
        limits: &Limits,
        buffers: &Arc<Buffers>,
    ) -> Result<Step, Cause> {
        if self.assembly.is_some() || prefix.sequence != self.received + 1 {
            return Err(broken(format!("message {} follows {}", prefix.sequence, self.received)));
        }
        self.received = prefix.sequence;
        let Data { records, header, mut inline } =
            Data::decode(prefix, rest, limits).map_err(broken)?;
        let mut bodies = Vec::with_capacity(records.len());
        for record in records {
            bodies.push(match record.place {
                Place::Inline => {
                    let (body, rest) = inline
                        .split_at_checked(record.len)
                        .ok_or_else(|| broken("inline bytes lack"))?;
                    inline = rest;
                    Part::Ready(aligned(body))
                }
                Place::Chunks if record.len == 0 => Part::Ready(Bytes::new()),
                Place::Chunks => {
                    let buffer = buffers.take(record.len);
                    Part::Filling(
                        buffer.ok_or_else(|| broken("more bodies are held here than allowed"))?,
                    )
                }
                Place::Shared(slot) => Part::Ready(self.shared(slot, record.len, limits)?),
            });
        }
        self.advance(Assembly { header: header.to_vec(), bodies, at: 0, filled: 0 })
    }

    fn advance(&mut self, mut assembly: Assembly) -> Result<Step, Cause> {
        if assembly.complete() {
            return Ok(Step::Message(assembly.finish()));
        }
        self.assembly = Some(assembly);
        Ok(Step::Nothing)
    }

    fn chunk(&mut self, prefix: &Prefix, piece: &[u8]) -> Result<Step, Cause> {
        let Some(mut assembly) = self.assembly.take() else {
            return Err(broken("a chunk belongs to no message"));
        };
        let (at, filled) = (assembly.at, assembly.filled);
        let expected = (self.received, at as u64, filled as u64);
        if expected != (prefix.sequence, prefix.count.into(), prefix.size) {
            return Err(broken("a chunk is out of order"));
        }
        let room = match &mut assembly.bodies[at] {
            Part::Filling(buffer) => buffer.as_mut().get_mut(filled..filled + piece.len()),
            Part::Ready(_) => None,
        };
        match room {
            Some(room) if !piece.is_empty() && piece.len() <= CHUNK => room.copy_from_slice(piece),
            _ => return Err(broken("a chunk has a wrong length")),
        }
        assembly.filled += piece.len();
        self.advance(assembly)
    }

    fn shared(&mut self, slot: Slot, len: usize, limits: &Limits) -> Result<Bytes, Cause> {
        let index = slot.segment as usize;
        if index >= self.views.len() {
            self.read_side(limits)?;
        }
        let view = self.views.get(index).ok_or_else(|| broken("a segment was never announced"))?;
        let body =
            view.body(slot, len).ok_or_else(|| broken("a record points outside its segment"))?;
        Ok(Bytes::from_owner(body))
    }

    /// Maps every announced segment; true when the side socket has ended.
    pub(crate) fn read_side(&mut self, limits: &Limits) -> Result<bool, Cause> {
        let mut packet = [0; ANNOUNCEMENT + 1];
        loop {
            let Some(side) = &self.side else { return Ok(false) };
            let (len, files) = match side.receive(&mut packet) {
                Received::Packet(len, files) => (len, files),
                Received::Nothing => return Ok(false),
                Received::Ended => {
                    self.side = None;
                    return Ok(true);
                }
            };
            let (number, size) = announced(&packet[..len])
                .ok_or_else(|| broken("a side packet has a wrong length"))?;
            let files = files.try_into().map_err(|_| broken("a segment needs two descriptors"))?;
            let total: usize = self.views.iter().map(|view| view.len()).sum();
            if number as usize != self.views.len()
                || total.checked_add(size).is_none_or(|sum| sum > limits.shared)
            {
                return Err(broken("a segment is out of order or too large"));
            }
            self.views.push(Arc::new(View::open(files, size).map_err(broken)?));
        }
    }
}

/// The packet that announces a segment.
pub(crate) fn announce(
    side: &Side,
    number: u32,
    segment: &super::shared::Segment,
) -> io::Result<()> {
    let mut packet = [0; ANNOUNCEMENT];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    packet[4..].copy_from_slice(&(segment.len() as u64).to_le_bytes());
    side.send(&packet, &segment.files)
}

fn announced(packet: &[u8]) -> Option<(u32, usize)> {
    let packet: &[u8; ANNOUNCEMENT] = packet.try_into().ok()?;
    let (number, size) = packet.split_at(4);
    let size = u64::from_le_bytes(size.try_into().ok()?);
    Some((u32::from_le_bytes(number.try_into().ok()?), usize::try_from(size).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::clock::now;
    use super::super::wire::Record;
    use super::*;

    fn session() -> Session {
        Session::new(PeerName::new("a").unwrap(), Via::Dialer, [0; 16], now())
    }

    fn frame(sequence: u64, places: &[(Place, usize)]) -> Vec<u8> {
        let records: Vec<Record> =
            places.iter().map(|&(place, len)| Record { place, len }).collect();
        let mut frame = wire::data(&records, b"h", &[]);
        wire::number(&mut frame, sequence);
        frame
    }

    fn chunk(index: u16, sequence: u64, offset: u64) -> [u8; wire::PREFIX] {
        Prefix { kind: Kind::Chunk, count: index, sequence, size: offset }.bytes()
    }

    #[test]
    fn chunks_fill_their_bodies_in_order() {
        let (mut session, limits, buffers) = (session(), Limits::default(), Buffers::new(1 << 30));
        let first = frame(1, &[(Place::Chunks, 5), (Place::Chunks, 0), (Place::Chunks, 2)]);
        let steps =
            [(chunk(0, 1, 0), &b"abc"[..]), (chunk(0, 1, 3), b"de"), (chunk(2, 1, 0), b"fg")];
        assert!(matches!(session.receive(&first, None, &limits, &buffers), Ok(Step::Nothing)));
        for (prefix, piece) in &steps[..2] {
            assert!(matches!(
                session.receive(prefix, Some(piece), &limits, &buffers),
                Ok(Step::Nothing)
            ));
        }
        let last = session.receive(&steps[2].0, Some(steps[2].1), &limits, &buffers);
        let Ok(Step::Message(message)) = last else { panic!("not complete") };
        assert_eq!(message.bodies, [&b"abcde"[..], b"", b"fg"]);
    }

    #[test]
    fn a_gap_an_overrun_and_a_stray_chunk_break_the_protocol() {
        let (limits, buffers) = (Limits::default(), Buffers::new(1 << 20));
        let cases: [(Vec<u8>, Option<([u8; 24], &[u8])>); 5] = [
            (frame(2, &[]), None),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(0, 1, 0), b"abcde"))),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(0, 1, 1), b"a"))),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(9, 1, 0), b"a"))),
            (frame(1, &[(Place::Chunks, 1 << 30)]), None),
        ];
        for (first, second) in cases {
            let mut session = session();
            let mut outcome = session.receive(&first, None, &limits, &buffers);
            if let (Ok(_), Some((prefix, piece))) = (&outcome, second) {
                outcome = session.receive(&prefix, Some(piece), &limits, &buffers);
            }
            assert!(matches!(outcome, Err(Cause::Protocol { .. })));
        }
    }

    proptest! {
        #[test]
        fn any_frames_are_taken_or_break_the_protocol(
            frames in proptest::collection::vec((1u8..8, any::<u16>(), 0u64..3, 0u64..200, proptest::collection::vec(any::<u8>(), 0..200)), 0..8),
        ) {
            let (mut session, limits, buffers) = (session(), Limits::default(), Buffers::new(1 << 24));
            for (kind, count, sequence, size, bytes) in frames {
                let mut frame = Prefix { kind: Kind::Data, count: count % 4, sequence, size }.bytes().to_vec();
                frame[4] = kind;
                let piece = (kind == 6).then_some(bytes.as_slice());
                if piece.is_none() {
                    frame.extend_from_slice(&bytes);
                }
                let _ = session.receive(&frame, piece, &limits, &buffers);
            }
        }
    }
}
