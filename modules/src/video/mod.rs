//! Videos from files: decoding, sampling, transforms, manifests, clips.
//!
//! Everything works in plain host memory. Frames are decoded by the system's FFmpeg in process.

pub mod clips;
mod convert;
mod cut;
mod damage;
pub mod decode;
pub mod error;
mod index;
pub(crate) mod libav;
mod log;
pub mod manifest;
pub(crate) mod named;
mod packets;
pub mod sample;
pub mod transform;

pub use clips::{Clip, ClipError, ClipOptions, ClipReader, Order, Quarantined, Views};
pub use decode::{DecodeOptions, Frames, Info, Video};
pub use error::VideoError;
pub use index::IndexCache;
pub use manifest::{Entry, Manifest, ManifestError};
pub use sample::{Mode, Sampler, Short};
pub use transform::{Crop, Filter, Normalisation, Rounding, Transform};
