//! Why a video file, a manifest or a clip could not be read.

use std::path::PathBuf;

use super::named::named;

/// Why a video could not be read. Every variant names the file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VideoError {
    /// The file is missing, not a regular file, or FFmpeg does not understand its container.
    #[error("cannot read video: {reason}; file `{}`", named(file))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system or FFmpeg said.
        reason: String,
    },
    /// The file has no bytes, or a video stream without a single frame.
    #[error("the video has no frames; file `{}`", named(file))]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The file holds no video stream, for instance audio only.
    #[error("no video stream, only {found}; file `{}`", named(file))]
    NoVideo {
        /// The file.
        file: PathBuf,
        /// The streams that it does hold.
        found: String,
    },
    /// FFmpeg was built without a decoder for the stream.
    #[error("no decoder for codec `{codec}` in this FFmpeg; file `{}`", named(file))]
    NoDecoder {
        /// The file.
        file: PathBuf,
        /// FFmpeg's name of the codec.
        codec: String,
    },
    /// Frames are missing or cannot be decoded.
    #[error("the video is damaged at frame {readable}: {reason}; file `{}`", named(file))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The first frame that is known to be missing; those before it may be read.
        readable: u64,
        /// What FFmpeg said.
        reason: String,
    },
    /// A frame was asked for that the file does not have.
    #[error("frame {frame} is outside 0..{frames}; file `{}`", named(file))]
    OutOfRange {
        /// The file.
        file: PathBuf,
        /// The frame asked for.
        frame: u64,
        /// How many frames there are.
        frames: u64,
    },
    /// Indices were not in ascending order.
    #[error(
        "frame {frame} is asked for after frame {before}; sort the indices; file `{}`",
        named(file)
    )]
    Unsorted {
        /// The file.
        file: PathBuf,
        /// The frame asked for too late.
        frame: u64,
        /// The larger index before it.
        before: u64,
    },
    /// Reading the file would exceed a bound of [`DecodeOptions`](super::DecodeOptions).
    #[error("{what} is {value}, above the limit of {limit}; file `{}`", named(file))]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The bounded quantity, with its unit.
        what: &'static str,
        /// Its value in this file.
        value: u64,
        /// The bound.
        limit: u64,
    },
    /// A decoded frame cannot be cut or scaled as asked.
    #[error("cannot cut {height}x{width} out of a frame of {from_height}x{from_width}")]
    Uncuttable {
        /// Rows asked for.
        height: usize,
        /// Columns asked for.
        width: usize,
        /// Rows there are.
        from_height: usize,
        /// Columns there are.
        from_width: usize,
    },
}
