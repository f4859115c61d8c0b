//! Videos from files: decoding, sampling, transforms, manifests, clips.
//!
//! Everything works in plain host memory. Frames are decoded by the system's FFmpeg in process.

mod convert;
pub mod decode;
pub mod error;
mod index;
pub(crate) mod libav;
mod packets;
pub mod transform;

pub use decode::{DecodeOptions, Frames, IndexCache, Info, Video};
pub use error::VideoError;
pub use transform::{Crop, Filter, Normalisation, Rounding, Transform};
