//! One session with one peer: numbering what leaves, putting what comes back into its order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::assembly::{Assembly, broken};
use super::buffers::Buffers;
use super::out::{DIRECT, Out};
use super::place::Outgoing;
use super::shared::{Segment, View};
use super::side::{ANNOUNCEMENT, Received, Side};
use super::sockets::send_shared;
use super::wire::{CHUNK, Data, Hello, Kind, Prefix, Slot};
use super::{Cause, Limits, Message, PeerName};

/// Frames, and bytes of frames, that may wait for smaller numbers; a peer that keeps to its own bound stays far
/// below.
const AHEAD: (usize, usize) = (1 << 16, 256 << 20);

/// Over which socket a session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Via {
    /// The peer connected to this listening socket, which calls it so.
    Router { index: usize, identity: Vec<u8> },
    /// This side connected.
    Dialer,
}

/// What a session takes from its transport.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) limits: Limits,
    pub(crate) buffers: Arc<Buffers>,
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
    /// Numbers what leaves.
    pub(crate) out: Arc<Out>,
    /// Complete messages in their order, for the engine to report.
    pub(crate) ready: VecDeque<Message>,
    means: Means,
    views: Vec<Arc<View>>,
    received: u64,
    assembly: Option<Assembly>,
    /// Frames that came the short way before others with smaller numbers were complete.
    ahead: BTreeMap<u64, Vec<u8>>,
    ahead_bytes: usize,
    /// Room for a packet of the side socket.
    packet: Box<[u8]>,
}

impl Session {
    pub(crate) fn new(
        peer: PeerName,
        via: Via,
        nonce: [u8; 16],
        means: Means,
        heard: Instant,
    ) -> Self {
        Self {
            peer,
            via,
            heard,
            ending: None,
            nonce,
            shares: false,
            side: None,
            out: Arc::default(),
            ready: VecDeque::new(),
            means,
            views: Vec::new(),
            received: 0,
            assembly: None,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            packet: vec![0; DIRECT + 1].into(),
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
    pub(crate) fn send(
        &mut self,
        socket: &mut zmq::Socket,
        mut outgoing: Outgoing,
    ) -> zmq::Result<()> {
        let sequence = self.out.number(&mut outgoing);
        let Outgoing { frame, chunks, charge } = outgoing;
        self.address(socket)?;
        // The first chunk travels with the frame: one message, one waking of the other side.
        let more = if chunks.is_empty() { 0 } else { zmq::SNDMORE };
        send_shared(socket, frame.into(), Box::new(Arc::clone(&charge)), zmq::DONTWAIT | more)?;
        for (turn, (index, body)) in chunks.into_iter().enumerate() {
            for offset in (0..body.len()).step_by(CHUNK) {
                let piece = body.slice(offset..body.len().min(offset + CHUNK));
                if (turn, offset) != (0, 0) {
                    let (kind, size) = (Kind::Chunk, offset as u64);
                    let prefix = Prefix { kind, count: index, sequence, size };
                    self.address(socket)?;
                    socket.send(&prefix.bytes()[..], zmq::SNDMORE | zmq::DONTWAIT)?;
                }
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

    /// Takes the frames of one ZeroMQ message; true when the peer says goodbye.
    pub(crate) fn receive(&mut self, frame: &[u8], piece: Option<&[u8]>) -> Result<bool, Cause> {
        let (prefix, rest) = Prefix::decode(frame).map_err(broken)?;
        match (prefix.kind, piece) {
            (Kind::Data, piece) => {
                // Whatever took the short way with a smaller number is already there.
                self.read_side()?;
                self.begin(&prefix, rest)?;
                if let Some(piece) = piece {
                    let assembly = self.assembly.as_mut();
                    assembly.ok_or_else(|| broken("no body lacks bytes"))?.append(piece)?;
                    self.advance();
                }
                self.catch_up()?;
            }
            (Kind::Chunk, Some(piece)) if rest.is_empty() => {
                let assembly = self.assembly.as_mut();
                assembly
                    .ok_or_else(|| broken("a chunk belongs to no message"))?
                    .fill(&prefix, piece)?;
                self.advance();
                self.catch_up()?;
            }
            (Kind::Heartbeat, None) => {}
            (Kind::Bye, None) => {
                self.read_side()?;
                return Ok(true);
            }
            (Kind::Refuse, None) => {
                let reason = Hello::decode(&prefix, rest).map_err(broken)?.reason;
                return Err(Cause::Refused { reason: reason.chars().take(200).collect() });
            }
            (kind, _) => return Err(broken(format!("{kind:?} is out of place"))),
        }
        Ok(false)
    }

    /// Begins the next message.
    fn begin(&mut self, prefix: &Prefix, rest: &[u8]) -> Result<(), Cause> {
        if self.assembly.is_some() || prefix.sequence != self.received + 1 {
            return Err(broken(format!("message {} follows {}", prefix.sequence, self.received)));
        }
        self.received = prefix.sequence;
        let data = Data::decode(prefix, rest, &self.means.limits).map_err(broken)?;
        let shared = |slot, len| shared(&self.views, slot, len);
        self.assembly = Some(Assembly::begin(prefix.sequence, data, &self.means.buffers, shared)?);
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        if let Some(assembly) = self.assembly.take_if(Assembly::complete) {
            self.ready.push_back(assembly.finish());
        }
    }

    /// Takes the frames that have waited for their turn.
    fn catch_up(&mut self) -> Result<(), Cause> {
        while self.assembly.is_none()
            && let Some(frame) = self.ahead.remove(&(self.received + 1))
        {
            self.ahead_bytes -= frame.len();
            let (prefix, rest) = Prefix::decode(&frame).map_err(broken)?;
            self.begin(&prefix, rest)?;
        }
        Ok(())
    }

    /// Takes a frame that came the short way.
    fn direct(&mut self, frame: &[u8]) -> Result<(), Cause> {
        let (prefix, rest) = Prefix::decode(frame).map_err(broken)?;
        if prefix.kind != Kind::Data || prefix.sequence <= self.received {
            return Err(broken("a side packet is out of place"));
        }
        if self.assembly.is_none() && prefix.sequence == self.received + 1 {
            self.begin(&prefix, rest)?;
            return self.catch_up();
        }
        self.ahead_bytes += frame.len();
        if self.ahead.len() >= AHEAD.0 || self.ahead_bytes > AHEAD.1 {
            return Err(broken("too many frames overtake another"));
        }
        match self.ahead.insert(prefix.sequence, frame.to_vec()) {
            None => Ok(()),
            Some(_) => Err(broken("a number came twice")),
        }
    }

    /// Takes everything out of the side socket: frames and segments; true when it has ended.
    pub(crate) fn read_side(&mut self) -> Result<bool, Cause> {
        let mut packet = std::mem::take(&mut self.packet);
        let ended = self.read_packets(&mut packet);
        self.packet = packet;
        ended
    }

    fn read_packets(&mut self, packet: &mut [u8]) -> Result<bool, Cause> {
        loop {
            let Some(side) = &self.side else { return Ok(false) };
            match side.receive(packet) {
                Received::Packet(ANNOUNCEMENT, files) => {
                    self.map(&packet[..ANNOUNCEMENT], files)?
                }
                Received::Packet(len, _) if len <= DIRECT => self.direct(&packet[..len])?,
                Received::Packet(..) => return Err(broken("a side packet is too long")),
                Received::Nothing => return Ok(false),
                Received::Ended => {
                    self.side = None;
                    return Ok(true);
                }
            }
        }
    }

    fn map(&mut self, packet: &[u8], files: Vec<OwnedFd>) -> Result<(), Cause> {
        let (number, size) = announced(packet).ok_or_else(|| broken("a segment has no size"))?;
        let files = files.try_into().map_err(|_| broken("a segment needs two descriptors"))?;
        let total: usize = self.views.iter().map(|view| view.len()).sum();
        let fits = total.checked_add(size).is_some_and(|sum| sum <= self.means.limits.shared);
        if number as usize != self.views.len() || !fits {
            return Err(broken("a segment is out of order or too large"));
        }
        self.views.push(Arc::new(View::open(files, size).map_err(broken)?));
        Ok(())
    }
}

fn shared(views: &[Arc<View>], slot: Slot, len: usize) -> Result<Bytes, Cause> {
    let view = views.get(slot.segment as usize);
    let view = view.ok_or_else(|| broken("a segment was never announced"))?;
    let body = view.body(slot, len);
    Ok(Bytes::from_owner(body.ok_or_else(|| broken("a record points outside its segment"))?))
}

/// Announces a segment to the peer.
pub(crate) fn announce(side: &Side, number: u32, segment: &Segment) -> io::Result<()> {
    let mut packet = [0; ANNOUNCEMENT];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    packet[4..].copy_from_slice(&(segment.len() as u64).to_le_bytes());
    side.send(&packet, &segment.files)
}

fn announced(packet: &[u8]) -> Option<(u32, usize)> {
    let (number, size) = packet.split_at_checked(4)?;
    let size = u64::from_le_bytes(size.try_into().ok()?);
    Some((u32::from_le_bytes(number.try_into().ok()?), usize::try_from(size).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::clock::now;
    use super::super::wire::{self, Place, Record};
    use super::*;

    fn session(held: usize) -> Session {
        let means = Means { limits: Limits::default(), buffers: Buffers::new(held) };
        Session::new(PeerName::new("a").unwrap(), Via::Dialer, [0; 16], means, now())
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
        let mut session = session(1 << 30);
        let first = frame(1, &[(Place::Chunks, 5), (Place::Chunks, 0), (Place::Chunks, 2)]);
        assert_eq!(session.receive(&first, None), Ok(false));
        // It overtakes on the short way, and waits.
        session.direct(&frame(2, &[])).unwrap();
        for (prefix, piece) in
            [(chunk(0, 1, 0), &b"abc"[..]), (chunk(0, 1, 3), b"de"), (chunk(2, 1, 0), b"fg")]
        {
            assert!(session.ready.is_empty());
            assert_eq!(session.receive(&prefix, Some(piece)), Ok(false));
        }
        assert_eq!(session.ready.pop_front().unwrap().bodies, [&b"abcde"[..], b"", b"fg"]);
        assert!(session.ready.pop_front().unwrap().bodies.is_empty());
    }

    #[test]
    fn a_gap_an_overrun_and_a_stray_chunk_break_the_protocol() {
        type Case = (Vec<u8>, Option<([u8; wire::PREFIX], &'static [u8])>);
        let cases: [Case; 5] = [
            (frame(2, &[]), None),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(0, 1, 0), b"abcde"))),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(0, 1, 1), b"a"))),
            (frame(1, &[(Place::Chunks, 4)]), Some((chunk(9, 1, 0), b"a"))),
            (frame(1, &[(Place::Chunks, 1 << 30)]), None),
        ];
        for (first, second) in cases {
            let mut session = session(1 << 20);
            let mut outcome = session.receive(&first, None);
            if let (Ok(_), Some((prefix, piece))) = (&outcome, second) {
                outcome = session.receive(&prefix, Some(piece));
            }
            assert!(matches!(outcome, Err(Cause::Protocol { .. })));
        }
    }

    proptest! {
        #[test]
        fn any_frames_are_taken_or_break_the_protocol(
            frames in proptest::collection::vec(
                (1u8..8, any::<u16>(), 0u64..4, 0u64..200, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200)),
                0..8,
            ),
        ) {
            let mut session = session(1 << 24);
            for (kind, count, sequence, size, short, bytes) in frames {
                let mut frame = Prefix { kind: Kind::Data, count: count % 4, sequence, size }.bytes().to_vec();
                frame[4] = kind;
                let piece = (kind == 6).then_some(bytes.as_slice());
                if piece.is_none() {
                    frame.extend_from_slice(&bytes);
                }
                let _ = if short { session.direct(&frame).map(|()| false) } else { session.receive(&frame, piece) };
            }
        }
    }
}
