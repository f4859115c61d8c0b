//! Letters: what processes of a run write to each other.
//!
//! The header is MessagePack with named fields, so that an old reader survives new fields and a
//! Python program can read it. Tensor bytes are the bodies of the message, in the order of the
//! frames in the header, little-endian and contiguous. Nothing in a header is trusted: dtype,
//! shape and length of every frame must agree with its body.

use std::collections::BTreeMap;

use schemas::frame::{DType, Frame, FrameError};
use schemas::graph::End;
use schemas::node::At;
use serde::{Deserialize, Serialize};

use crate::message::{Command, Event, Generation, Load, Parcel, Pass};
use crate::transport::{Address, Message, PublicKey};

/// Version of the letters. An agent of another version is turned away.
pub const VERSION: u32 = 1;

/// Everything that one process tells another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Letter {
    /// Agent to supervisor: here I am, others reach me there.
    Join {
        /// Version of the letters.
        version: u32,
        /// Addresses that the agent listens at.
        addresses: Vec<Address>,
    },
    /// Supervisor to agent: where everyone is.
    Wire {
        /// Generation that begins.
        generation: Generation,
        /// Process of each node.
        places: BTreeMap<String, String>,
        /// Keys that are admitted, by process.
        allow: BTreeMap<String, PublicKey>,
    },
    /// Agent to supervisor: others may connect.
    Open {
        /// Generation.
        generation: Generation,
    },
    /// Supervisor to agent: everyone is open.
    Connect {
        /// Processes that the agent connects to, with address and key.
        to: BTreeMap<String, (Address, Option<PublicKey>)>,
    },
    /// Agent to supervisor: all other processes are reached.
    Wired {
        /// Generation.
        generation: Generation,
    },
    /// Agent to supervisor: another process cannot be reached any more.
    Cut {
        /// Generation that it worked in.
        generation: Generation,
        /// The other process.
        peer: String,
        /// Why.
        why: String,
    },
    /// Supervisor to agent: for one of its nodes.
    Command(Command),
    /// Agent to supervisor: from one of its nodes.
    Event(Event),
    /// Process to process: for one of its nodes.
    Parcel(ParcelHeader),
    /// Supervisor to agent: the run is over.
    Dismiss,
}

/// A parcel without its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ParcelHeader {
    /// Generation of the sender.
    pub generation: Generation,
    /// Where it goes.
    pub to: End,
    /// Where it comes from.
    pub from: End,
    /// Which work and which way; none for weights.
    pub work: Option<(At, Pass)>,
    /// Step that begins with these weights, or that these gradients belong to.
    pub step: u64,
    /// Whether the frames are gradients of parameters rather than weights.
    #[serde(default)]
    pub gradients: bool,
    /// Frames in the order of the bodies.
    pub frames: Vec<FrameHeader>,
}

/// A frame without its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameHeader {
    /// Name, for weights.
    #[serde(default)]
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
}

/// Why a message is not a letter.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The header cannot be read.
    #[error("the header is not a letter: {0}")]
    Header(#[from] rmp_serde::decode::Error),
    /// The header cannot be written.
    #[error("the letter cannot be written: {0}")]
    Write(#[from] rmp_serde::encode::Error),
    /// Header and bodies do not agree in number.
    #[error("the header names {expected} frames, the message has {found} bodies")]
    Count {
        /// Frames in the header.
        expected: usize,
        /// Bodies.
        found: usize,
    },
    /// A frame does not agree with its body.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Writes a letter without frames.
pub fn write(letter: &Letter) -> Result<Message, LetterError> {
    Ok(Message { header: rmp_serde::to_vec_named(letter)?, bodies: Vec::new() })
}

/// Writes a parcel; device tensors are copied to the host here.
pub fn write_parcel(parcel: Parcel) -> Result<Message, LetterError> {
    let header = |name: &str, frame: &Frame| FrameHeader {
        name: name.to_owned(),
        dtype: frame.dtype(),
        shape: frame.shape().to_vec(),
    };
    let gradients = matches!(parcel.load, Load::Gradients { .. });
    let (work, step, named): (_, _, Vec<(String, Frame)>) = match parcel.load {
        Load::Frame { at, pass, frame } => {
            (Some((at, pass)), at.step, vec![(String::new(), frame)])
        }
        Load::Weights { step, frames } | Load::Gradients { step, frames } => {
            (None, step, frames.into_iter().collect())
        }
    };
    let letter = Letter::Parcel(ParcelHeader {
        generation: parcel.generation,
        to: parcel.to,
        from: parcel.from,
        work,
        step,
        gradients,
        frames: named.iter().map(|(name, frame)| header(name, frame)).collect(),
    });
    let mut message = write(&letter)?;
    message.bodies = named.iter().map(|(_, frame)| frame.bytes()).collect();
    Ok(message)
}

/// Reads the header of a message.
pub fn read(message: &Message) -> Result<Letter, LetterError> {
    Ok(rmp_serde::from_slice(&message.header)?)
}

/// Joins a parcel's header with its bodies.
pub fn read_parcel(header: ParcelHeader, message: &Message) -> Result<Parcel, LetterError> {
    let (expected, found) = (header.frames.len(), message.bodies.len());
    if expected != found || (header.work.is_some() && expected != 1) {
        return Err(LetterError::Count { expected, found });
    }
    let mut frames = BTreeMap::new();
    for (frame, body) in header.frames.into_iter().zip(&message.bodies) {
        frames.insert(frame.name, Frame::host(frame.dtype, frame.shape, body.clone())?);
    }
    let load = match header.work {
        Some((at, pass)) => {
            let Some((_, frame)) = frames.pop_first() else {
                return Err(LetterError::Count { expected: 1, found: 0 });
            };
            Load::Frame { at, pass, frame }
        }
        None if header.gradients => Load::Gradients { step: header.step, frames },
        None => Load::Weights { step: header.step, frames },
    };
    Ok(Parcel { generation: header.generation, to: header.to, from: header.from, load })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn parcel() -> Parcel {
        Parcel {
            generation: 3,
            to: End::new("student", "video"),
            from: End::new("clips", "video"),
            load: Load::Frame {
                at: At { stage: 1, step: 9, microbatch: 2 },
                pass: Pass::Forward,
                frame: Frame::f32([2, 1], [1.0, -1.0]),
            },
        }
    }

    fn open(message: &Message) -> Result<Parcel, LetterError> {
        match read(message)? {
            Letter::Parcel(header) => read_parcel(header, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_parcel_comes_back() {
        let back = open(&write_parcel(parcel()).unwrap()).unwrap();
        let Load::Frame { at, pass, frame } = back.load else { panic!() };
        assert_eq!((at.step, pass, back.generation), (9, Pass::Forward, 3));
        assert_eq!(frame.to_f32(), [1.0, -1.0]);
        assert_eq!(back.to, End::new("student", "video"));
    }

    #[test]
    fn a_body_that_does_not_fill_its_frame_is_refused() {
        let mut message = write_parcel(parcel()).unwrap();
        message.bodies[0] = Bytes::from_static(&[0; 7]);
        assert!(open(&message).is_err());
        message.bodies.clear();
        assert!(open(&message).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_letter_or_an_error(header: Vec<u8>, bodies in prop::collection::vec(any::<Vec<u8>>(), 0..3)) {
            let bodies = bodies.into_iter().map(Bytes::from).collect();
            let message = Message { header, bodies };
            if let Ok(Letter::Parcel(header)) = read(&message) {
                let _ = read_parcel(header, &message);
            }
        }

        #[test]
        fn a_damaged_letter_is_a_letter_or_an_error(at in 0usize..200, byte: u8) {
            let mut message = write_parcel(parcel()).unwrap();
            let at = at % message.header.len();
            message.header[at] = byte;
            if let Ok(Letter::Parcel(header)) = read(&message) {
                let _ = read_parcel(header, &message);
            }
        }
    }
}
