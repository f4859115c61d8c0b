//! Whether a file is whole: what its structure, its packets and its decoder say.

use std::sync::Arc;

use ffmpeg_next::ffi;

use super::cut;
use super::decode::DecodeOptions;
use super::error::VideoError;
use super::index::{self, Index, IndexCache, Stamp};
use super::libav::{Decoder, Frame, Packet};
use super::media::Media;
use super::packets::Packets;

/// The index of an undamaged file, from the cache or from one pass over the file.
pub(crate) fn find_index(
    packets: &mut Packets,
    stamp: Stamp,
    options: &DecodeOptions,
    cache: &IndexCache,
) -> Result<Arc<Index>, VideoError> {
    if let Some(index) = cache.find(&packets.file, stamp) {
        return Ok(index);
    }
    let file = packets.file.clone();
    let keep = stamp.0 <= options.keep_bytes;
    let found = match index::scan(&mut packets.input, packets.stream, keep) {
        Ok(found) => found,
        Err(reason) => return Err(VideoError::Unreadable { file, reason }),
    };
    packets.kept = found.packets;
    packets.scanned();
    let cut = cut::is_cut(&packets.input.container(), &packets.media);
    let damage = found.index.damage.clone().or(cut.then(|| "the file ends early".to_owned()));
    if let Some(reason) = damage {
        let readable = found.index.entries.len() as u64;
        return Err(VideoError::Damaged { file, readable, reason });
    }
    Ok(Arc::new(found.index))
}

/// Size of the media and modification time of its file, which is a regular one with content.
pub(crate) fn stamp(media: &Media) -> Result<Stamp, VideoError> {
    let unreadable = |reason| VideoError::Unreadable { file: media.path(), reason };
    let meta = std::fs::metadata(&media.file).map_err(|error| unreadable(error.to_string()))?;
    if !meta.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    let length = media.part.as_ref().map_or(meta.len(), |part| part.end - part.start);
    if length == 0 {
        return Err(VideoError::Empty { file: media.path() });
    }
    Ok((length, meta.modified().ok()))
}

/// Counts the frames of a file whose packets do not tell them apart. All of it is decoded, so damage
/// anywhere is found.
pub(crate) fn count(
    index: &mut Index,
    packets: &mut Packets,
    decoder: &mut Decoder,
) -> Result<(), VideoError> {
    packets.jump(0, index)?;
    let base = unsafe { (*packets.stream()).time_base };
    index.count(decoder, base, |decoder| {
        let packet = packets.next();
        let code = decoder.send(packet);
        (packet.is_some(), code)
    });
    packets.scanned();
    match index.damage.clone().or(packets.failure()) {
        None => Ok(()),
        Some(reason) => {
            let (file, readable) = (packets.file.clone(), index.frames.saturating_sub(1));
            Err(VideoError::Damaged { file, readable, reason })
        }
    }
}

/// Whether files of this container say how long they are, so that a scan finds a missing end.
pub(crate) fn tells_its_end(container: &str) -> bool {
    matches!(container, "mov" | "matroska")
}

/// Whether the container marks a packet as incomplete.
pub(crate) fn is_corrupt(packet: &Packet) -> bool {
    packet.get().flags & ffi::AV_PKT_FLAG_CORRUPT != 0
}

/// Whether the decoder marks a frame as damaged.
pub(crate) fn is_broken(frame: &Frame) -> bool {
    let frame = frame.get();
    frame.flags & ffi::AV_FRAME_FLAG_CORRUPT != 0 || frame.decode_error_flags != 0
}
