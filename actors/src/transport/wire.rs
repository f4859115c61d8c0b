//! The bytes between two transports: what a program in another language has to write.
//!
//! Every ZeroMQ message begins with a frame of this layout (little-endian):
//!
//! | bytes | field | hello, welcome, refuse | heartbeat, bye | data | chunk |
//! |---|---|---|---|---|---|
//! | 0..4 | magic `PLAY` | | | | |
//! | 4 | kind | 1, 2, 3 | 4, 7 | 5 | 6 |
//! | 5 | major version | | | | |
//! | 6..8 | count | 0 | 0 | bodies | index of the body |
//! | 8..16 | sequence | 0 | counter | message, from 1 | message |
//! | 16..24 | size | msgpack bytes | 0 | header bytes | offset in the body |
//!
//! A hello carries a MessagePack map ([`Hello`]). Data carries `count` records of 40 bytes ([`Record`]), the
//! header, then the inline bodies one after the other. Chunked bodies follow in order, each chunk a message of
//! two frames: this one, and at most [`CHUNK`] bytes; the very first chunk may be the second frame of the data message.
//!
//! Who lists `shm` in the hello to an ipc address opens the side socket (`side.rs`). It carries segments, and data
//! frames of at most 32 KiB without chunks, in the same sequence as those that come by ZeroMQ: a reader takes
//! messages by number. Without `shm` everything comes by ZeroMQ.
//!
//! Decoding takes no memory before every length is checked.

use serde::{Deserialize, Serialize};

use super::Limits;

/// Version of the layout; another major is refused.
pub(crate) const MAJOR: u8 = 1;
/// Additions that an older reader may ignore.
pub(crate) const MINOR: u16 = 0;
/// Bytes of the first frame that all kinds share.
pub(crate) const PREFIX: usize = 24;
/// Largest piece of a chunked body.
pub(crate) const CHUNK: usize = 1 << 20;
/// Bodies below this travel inside the first frame.
pub(crate) const INLINE: usize = 16 << 10;
/// Largest hello.
const HELLO: usize = 4096;
const RECORD: usize = 40;
const MAGIC: &[u8; 4] = b"PLAY";

/// What a ZeroMQ message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Welcome = 2,
    Refuse = 3,
    Heartbeat = 4,
    Data = 5,
    Chunk = 6,
    Bye = 7,
}

/// The shared first bytes of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) kind: Kind,
    pub(crate) count: u16,
    pub(crate) sequence: u64,
    pub(crate) size: u64,
}

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{len} bytes are too few")]
    Short { len: usize },
    #[error("the magic is missing")]
    Magic,
    #[error("major version {major} is spoken there, {MAJOR} here")]
    Major { major: u8 },
    #[error("kind {kind} is unknown")]
    Kind { kind: u8 },
    #[error("{field} is {value}, above {limit}")]
    Above { field: &'static str, value: u64, limit: u64 },
    #[error("the frame has {len} bytes, its fields say {said}")]
    Length { len: usize, said: u64 },
    #[error("body {index} has place {place}")]
    Place { index: usize, place: u8 },
    #[error("the hello is not the expected MessagePack map")]
    Hello,
}

impl Prefix {
    pub(crate) fn bytes(self) -> [u8; PREFIX] {
        let mut bytes = [0; PREFIX];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = MAJOR;
        bytes[6..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else {
            return Err(Malformed::Short { len: bytes.len() });
        };
        if &prefix[..4] != MAGIC {
            return Err(Malformed::Magic);
        }
        if prefix[5] != MAJOR {
            return Err(Malformed::Major { major: prefix[5] });
        }
        let kind = match prefix[4] {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Refuse,
            4 => Kind::Heartbeat,
            5 => Kind::Data,
            6 => Kind::Chunk,
            7 => Kind::Bye,
            kind => return Err(Malformed::Kind { kind }),
        };
        let count = u16::from_le_bytes([prefix[6], prefix[7]]);
        let prefix = Self { kind, count, sequence: long(&prefix[8..]), size: long(&prefix[16..]) };
        Ok((prefix, rest))
    }
}

fn long(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |value, byte| (value << 8) | u32::from(*byte))
}

/// Where a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the same frame, behind the header.
    Inline,
    /// In the chunk messages that follow.
    Chunks,
    /// In shared memory of the sender.
    Shared(Slot),
}

/// A piece of a shared segment; it is free again once `generation` is stored in control word `slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) segment: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) offset: u64,
}

/// One body of a data message: `place` u8 (0 inline, 1 chunks, 2 shared), 7 zero bytes, `len` u64, then
/// `segment`, `slot`, `generation` u32, 4 zero bytes, `offset` u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) len: usize,
}

impl Record {
    fn bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[8..16].copy_from_slice(&(self.len as u64).to_le_bytes());
        match self.place {
            Place::Inline => {}
            Place::Chunks => bytes[0] = 1,
            Place::Shared(slot) => {
                bytes[0] = 2;
                bytes[16..20].copy_from_slice(&slot.segment.to_le_bytes());
                bytes[20..24].copy_from_slice(&slot.slot.to_le_bytes());
                bytes[24..28].copy_from_slice(&slot.generation.to_le_bytes());
                bytes[32..].copy_from_slice(&slot.offset.to_le_bytes());
            }
        }
        bytes
    }

    fn decode(index: usize, bytes: &[u8], limits: &Limits) -> Result<Self, Malformed> {
        let len = bounded("body", long(&bytes[8..]), limits.body)?;
        let place = match bytes[0] {
            0 => Place::Inline,
            1 => Place::Chunks,
            2 => Place::Shared(Slot {
                segment: word(&bytes[16..]),
                slot: word(&bytes[20..]),
                generation: word(&bytes[24..]),
                offset: long(&bytes[32..]),
            }),
            place => return Err(Malformed::Place { index, place }),
        };
        Ok(Self { place, len })
    }
}

fn bounded(field: &'static str, value: u64, limit: usize) -> Result<usize, Malformed> {
    match usize::try_from(value) {
        Ok(size) if size <= limit => Ok(size),
        _ => Err(Malformed::Above { field, value, limit: limit as u64 }),
    }
}

/// The first frame of a data message, borrowed from the bytes that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Data<'a> {
    pub(crate) records: Vec<Record>,
    pub(crate) header: &'a [u8],
    pub(crate) inline: &'a [u8],
}

impl<'a> Data<'a> {
    /// Decodes what follows the prefix.
    pub(crate) fn decode(
        prefix: &Prefix,
        rest: &'a [u8],
        limits: &Limits,
    ) -> Result<Self, Malformed> {
        let count = bounded("bodies", prefix.count.into(), limits.bodies)?;
        let header = bounded("header", prefix.size, limits.header)?;
        let Some((table, rest)) = rest.split_at_checked(count * RECORD) else {
            return Err(Malformed::Length { len: rest.len(), said: (count * RECORD) as u64 });
        };
        let mut records = Vec::with_capacity(count);
        let (mut total, mut inline) = (0u64, header as u64);
        for (index, bytes) in table.chunks_exact(RECORD).enumerate() {
            let record = Record::decode(index, bytes, limits)?;
            total += record.len as u64;
            if record.place == Place::Inline {
                inline += record.len as u64;
            }
            records.push(record);
        }
        bounded("message", total, limits.message)?;
        if inline != rest.len() as u64 {
            return Err(Malformed::Length { len: rest.len(), said: inline });
        }
        let (header, inline) = rest.split_at(header);
        Ok(Self { records, header, inline })
    }
}

/// Writes the first frame of a data message; its sequence is set by [`number`] when it leaves.
pub(crate) fn data(records: &[Record], header: &[u8], inline: &[&[u8]]) -> Vec<u8> {
    let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
    let size = header.len() + inline.iter().map(|body| body.len()).sum::<usize>();
    let mut frame = Vec::with_capacity(PREFIX + records.len() * RECORD + size);
    let prefix = Prefix { kind: Kind::Data, count, sequence: 0, size: header.len() as u64 };
    frame.extend_from_slice(&prefix.bytes());
    for record in records {
        frame.extend_from_slice(&record.bytes());
    }
    frame.extend_from_slice(header);
    for body in inline {
        frame.extend_from_slice(body);
    }
    frame
}

/// Sets the sequence of a frame made by [`data`].
pub(crate) fn number(frame: &mut [u8], sequence: u64) {
    frame[8..16].copy_from_slice(&sequence.to_le_bytes());
}

/// Who speaks: the MessagePack map of a hello, a welcome or a refusal. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Minor version of the sender.
    pub(crate) minor: u16,
    /// Its name.
    pub(crate) name: String,
    /// Whom it wants to reach.
    pub(crate) to: String,
    /// What it can do: `shm`.
    pub(crate) capabilities: Vec<String>,
    /// Grows with every session that the connecting side opens.
    pub(crate) generation: u64,
    /// The run token in hexadecimal; empty over tcp.
    pub(crate) token: String,
    /// Names this session at the side socket, in hexadecimal.
    pub(crate) nonce: String,
    /// Shared memory that it is willing to map, bytes.
    pub(crate) shared: u64,
    /// In a refusal, the reason.
    #[serde(default)]
    pub(crate) reason: String,
}

impl Hello {
    pub(crate) fn bytes(&self, kind: Kind) -> Vec<u8> {
        let body =
            rmp_serde::to_vec_named(self).expect("a map of texts and numbers always serialises");
        let mut frame =
            Prefix { kind, count: 0, sequence: 0, size: body.len() as u64 }.bytes().to_vec();
        frame.extend_from_slice(&body);
        frame
    }

    pub(crate) fn decode(prefix: &Prefix, rest: &[u8]) -> Result<Self, Malformed> {
        let size = bounded("hello", prefix.size, HELLO)?;
        if size != rest.len() {
            return Err(Malformed::Length { len: rest.len(), said: prefix.size });
        }
        rmp_serde::from_slice(rest).map_err(|_| Malformed::Hello)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        Hello {
            minor: MINOR,
            name: "a".into(),
            to: "b".into(),
            capabilities: vec!["shm".into()],
            generation: 3,
            token: "00".repeat(16),
            nonce: "ff".repeat(16),
            shared: 1 << 30,
            reason: String::new(),
        }
    }

    fn decode_all(bytes: &[u8]) {
        if let Ok((prefix, rest)) = Prefix::decode(bytes) {
            let _ = Hello::decode(&prefix, rest);
            let _ = Data::decode(&prefix, rest, &Limits::default());
        }
    }

    #[test]
    fn data_survives_its_bytes() {
        let slot = Slot { segment: 1, slot: 2, generation: 3, offset: 4096 };
        let records = [
            Record { place: Place::Inline, len: 3 },
            Record { place: Place::Chunks, len: 5 << 20 },
            Record { place: Place::Shared(slot), len: 1 << 20 },
        ];
        let mut frame = data(&records, b"head", &[b"abc"]);
        number(&mut frame, 9);
        let (prefix, rest) = Prefix::decode(&frame).unwrap();
        assert_eq!((prefix.kind, prefix.sequence), (Kind::Data, 9));
        let back = Data::decode(&prefix, rest, &Limits::default()).unwrap();
        assert_eq!(back, Data { records: records.to_vec(), header: b"head", inline: b"abc" });
    }

    #[test]
    fn an_unknown_key_of_a_newer_hello_is_ignored() {
        let mut map = serde_json::to_value(hello()).unwrap();
        map["added_later"] = 1.into();
        let body = rmp_serde::to_vec_named(&map).unwrap();
        let prefix = Prefix { kind: Kind::Hello, count: 0, sequence: 0, size: body.len() as u64 };
        assert_eq!(Hello::decode(&prefix, &body), Ok(hello()));
    }

    #[test]
    fn another_major_is_refused_with_both_versions() {
        let mut frame = hello().bytes(Kind::Hello);
        frame[5] = 9;
        assert_eq!(
            Prefix::decode(&frame).unwrap_err().to_string(),
            "major version 9 is spoken there, 1 here"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            decode_all(&bytes);
        }

        #[test]
        fn any_bytes_behind_a_valid_prefix_are_decoded_or_refused(
            kind in 1u8..8, count: u16, size: u64, bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut frame = Prefix { kind: Kind::Data, count, sequence: 0, size }.bytes().to_vec();
            frame[4] = kind;
            frame.extend_from_slice(&bytes);
            decode_all(&frame);
        }

        #[test]
        fn a_cut_or_altered_frame_is_decoded_or_refused(cut in 0usize..200, at in 0usize..200, to: u8) {
            for mut frame in [hello().bytes(Kind::Hello), data(&[Record { place: Place::Inline, len: 90 }], b"h", &[&[7; 90]])] {
                let at = at % frame.len();
                frame[at] = to;
                frame.truncate(frame.len() - cut % frame.len());
                decode_all(&frame);
            }
        }
    }
}
