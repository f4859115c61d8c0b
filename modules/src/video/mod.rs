//! Videos from files: decoding, sampling, transforms, manifests, clips; their sound and their words.
//!
//! Everything works in plain host memory. Frames and sound are decoded by the system's FFmpeg in
//! process.

pub mod clips;
mod convert;
mod cut;
mod damage;
pub mod decode;
pub mod dialogues;
pub mod error;
mod index;
mod json_manifest;
pub(crate) mod libav;
mod lines;
mod log;
pub mod manifest;
pub mod media;
pub(crate) mod named;
mod packets;
pub mod record;
pub mod sample;
mod shards;
pub mod sound;
mod span;
mod talk;
mod tar;
pub mod texts;
pub mod transform;
pub mod words;

pub use clips::{Clip, ClipError, ClipOptions, ClipReader, Order, Quarantined, Views};
pub use decode::{DecodeOptions, Frames, Info, Video};
pub use dialogues::DialogueOptions;
pub use error::VideoError;
pub use index::IndexCache;
pub use manifest::{Entry, Manifest, ManifestError, Reading};
pub use media::{Media, Part};
pub use record::Record;
pub use sample::{Mode, Sampler, Short};
pub use sound::SoundOptions;
pub use texts::TextOptions;
pub use transform::{Crop, Filter, Normalisation, Rounding, Transform};
pub use words::Words;
