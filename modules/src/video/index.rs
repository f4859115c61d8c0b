//! Which packet holds which frame: the one pass over a file that makes decoding frame exact.
//!
//! Frame `i` is the `i`-th in presentation order. Two rules, decided per file:
//!
//! - *By packet*, when every packet has its own timestamp: frames are the packets that an edit list
//!   does not hide, sorted by timestamp. Decoding may begin at any keyframe.
//! - *By decoding*, when timestamps are missing or repeated (raw streams, some AVI), or when
//!   packets may hold no picture (VP8): the file is decoded once to count, and read from its start.

use ffi::AVCodecID as Codec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ffmpeg_next::ffi;

use super::damage;
use super::libav::{self, Decoder, Frame, Input, Packet, Received, Source};

/// A file with more packets than this is refused: it bounds the time of a scan.
pub(crate) const MAX_PACKETS: usize = 8_000_000;

/// One packet of the video stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Presentation time in units of the stream's time base.
    pub(crate) pts: i64,
    /// Decoding time; `AV_NOPTS_VALUE` where the container has none.
    pub(crate) dts: i64,
    /// Decoding may begin here.
    pub(crate) key: bool,
    /// False for a packet that is decoded but not shown (edit lists).
    pub(crate) shown: bool,
}

/// Every frame of one file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Index {
    /// The packets in file order.
    pub(crate) entries: Vec<Entry>,
    /// Frame number to packet number; empty when frames are counted by decoding.
    order: Vec<u32>,
    /// How many frames there are.
    pub(crate) frames: u64,
    /// From the first frame's start to the last one's end, in seconds.
    pub(crate) duration: f64,
    /// What is wrong with the file, if anything.
    pub(crate) damage: Option<String>,
}

/// The index of a file and, when it was asked for, its packets.
pub(crate) struct Scan {
    pub(crate) index: Index,
    pub(crate) packets: Vec<Packet>,
}

impl Index {
    /// Whether frames are found by their packet's timestamp.
    pub(crate) fn by_packet(&self) -> bool {
        !self.order.is_empty()
    }

    /// The packet of a frame.
    pub(crate) fn packet(&self, frame: u64) -> usize {
        self.order[frame as usize] as usize
    }

    /// The frame with this timestamp.
    pub(crate) fn frame_at(&self, pts: i64) -> Option<u64> {
        let at = self.order.binary_search_by_key(&pts, |&packet| self.entries[packet as usize].pts);
        at.ok().map(|frame| frame as u64)
    }

    /// The packet from which decoding reaches a frame: the last keyframe that is not shown later.
    pub(crate) fn start(&self, frame: u64) -> usize {
        let packet = self.packet(frame);
        let pts = self.entries[packet].pts;
        let head = &self.entries[..=packet];
        head.iter().rposition(|entry| entry.key && entry.pts <= pts).unwrap_or(0)
    }
}

/// Reads every packet of a stream once.
pub(crate) fn scan(input: &mut Input, stream: usize, keep: bool) -> Result<Scan, String> {
    let raw = input.streams()[stream];
    let codec = unsafe { (*(*raw).codecpar).codec_id };
    let base = unsafe { (*raw).time_base };
    let mut found = Scan { index: Index::empty(), packets: Vec::new() };
    let mut ends = Vec::new();
    let mut packet = Packet::new();
    loop {
        match input.read(&mut packet) {
            Ok(true) => {}
            Ok(false) => break,
            Err(reason) => {
                found.index.damage = Some(reason);
                break;
            }
        }
        let data = packet.get();
        if data.stream_index as usize != stream || data.size == 0 {
            continue;
        }
        if found.index.entries.len() == MAX_PACKETS {
            return Err(format!("it has more than {MAX_PACKETS} packets"));
        }
        if data.flags & ffi::AV_PKT_FLAG_CORRUPT != 0 {
            found.index.damage = Some("a packet is cut short".to_owned());
            break;
        }
        let first = found.index.entries.is_empty();
        found.index.entries.push(entry(data, codec, first));
        ends.push(data.duration);
        if keep {
            found.packets.push(std::mem::replace(&mut packet, Packet::new()));
        }
    }
    let expected = unsafe { ffi::avformat_index_get_entries_count(raw) }.max(0) as usize;
    let read = found.index.entries.len();
    if found.index.damage.is_none() && input.container() == "mov" && read < expected {
        found.index.damage = Some(format!("only {read} of {expected} packets are in the file"));
    }
    // Lines since the file was opened: probing has read its first packets already.
    if let Some(line) = libav::complaint(Source::Container) {
        found.index.damage.get_or_insert(line);
    }
    libav::quiet();
    if found.index.damage.is_none() && input.io_failed() {
        found.index.damage = Some("the file ends early".to_owned());
    }
    let order = found.index.presentation_order(codec);
    found.index.order = order;
    found.index.frames = found.index.order.len() as u64;
    found.index.measure(&ends, base);
    Ok(found)
}

/// The index entry of a packet.
fn entry(packet: &ffi::AVPacket, codec: Codec, first: bool) -> Entry {
    let pts = if packet.pts == ffi::AV_NOPTS_VALUE && intra_only(codec) {
        packet.dts
    } else {
        packet.pts
    };
    let flagged = packet.flags & ffi::AV_PKT_FLAG_KEY != 0;
    Entry {
        pts,
        dts: packet.dts,
        key: first || (flagged && keys_are_trusted(codec)),
        shown: packet.flags & ffi::AV_PKT_FLAG_DISCARD == 0,
    }
}

/// Whether a packet flagged as key can be decoded without those before it. A GIF frame cannot: it
/// is drawn over the last one.
fn keys_are_trusted(codec: Codec) -> bool {
    matches!(
        codec,
        Codec::AV_CODEC_ID_H264
            | Codec::AV_CODEC_ID_HEVC
            | Codec::AV_CODEC_ID_AV1
            | Codec::AV_CODEC_ID_VP9
            | Codec::AV_CODEC_ID_MPEG4
            | Codec::AV_CODEC_ID_MPEG2VIDEO
            | Codec::AV_CODEC_ID_MPEG1VIDEO
    ) || intra_only(codec)
}

fn intra_only(codec: Codec) -> bool {
    let properties = unsafe { ffi::avcodec_descriptor_get(codec) };
    let drawn_over = matches!(codec, Codec::AV_CODEC_ID_GIF | Codec::AV_CODEC_ID_APNG);
    !drawn_over
        && !properties.is_null()
        && unsafe { (*properties).props } & ffi::AV_CODEC_PROP_INTRA_ONLY != 0
}

impl Index {
    fn empty() -> Self {
        Self { entries: Vec::new(), order: Vec::new(), frames: 0, duration: 0.0, damage: None }
    }

    /// The shown packets by timestamp, or nothing when timestamps do not tell frames apart.
    fn presentation_order(&self, codec: Codec) -> Vec<u32> {
        let missing = self.entries.iter().any(|entry| entry.pts == ffi::AV_NOPTS_VALUE);
        if missing || codec == Codec::AV_CODEC_ID_VP8 {
            return Vec::new();
        }
        let mut order: Vec<u32> = (0..self.entries.len() as u32).collect();
        order.sort_by_key(|&packet| self.entries[packet as usize].pts);
        let pts = |at: u32| self.entries[at as usize].pts;
        if order.windows(2).any(|pair| pts(pair[0]) == pts(pair[1])) {
            return Vec::new();
        }
        order.retain(|&packet| self.entries[packet as usize].shown);
        order
    }

    /// Sets the duration from the first and the last frame's times.
    fn measure(&mut self, lengths: &[i64], base: ffi::AVRational) {
        let (Some(&first), Some(&last)) = (self.order.first(), self.order.last()) else {
            return;
        };
        let span = self.entries[last as usize].pts.saturating_sub(self.entries[first as usize].pts);
        let length = match lengths[last as usize] {
            length if length > 0 => length,
            _ => span / (self.order.len() as i64 - 1).max(1),
        };
        self.duration = seconds(span.saturating_add(length), base);
    }

    /// Counts frames by decoding all packets, which `next` hands out in file order.
    pub(crate) fn count(
        &mut self,
        decoder: &mut Decoder,
        base: ffi::AVRational,
        mut next: impl FnMut(&mut Decoder) -> (bool, i32),
    ) {
        libav::quiet();
        let mut frame = Frame::new();
        let (mut first, mut last, mut length) = (None, 0, 0);
        let mut more = true;
        while more && self.frames <= MAX_PACKETS as u64 {
            let code;
            (more, code) = next(decoder);
            self.note(code < 0, code);
            while self.received(decoder, &mut frame) {
                let data = frame.get();
                self.frames += 1;
                if data.best_effort_timestamp != ffi::AV_NOPTS_VALUE {
                    last = data.best_effort_timestamp;
                    first.get_or_insert(last);
                    length = data.pkt_duration;
                }
            }
        }
        let span = last.saturating_sub(first.unwrap_or(last));
        self.duration = seconds(span.saturating_add(length.max(0)), base).max(0.0);
        decoder.flush();
    }
}

impl Index {
    /// Takes the next frame from the decoder, and notes what is wrong with it.
    fn received(&mut self, decoder: &mut Decoder, frame: &mut Frame) -> bool {
        match decoder.receive(frame) {
            Ok(Received::Frame) => {
                self.note(damage::is_broken(frame), ffi::AVERROR_INVALIDDATA);
                true
            }
            Ok(_) => {
                self.note(false, 0);
                false
            }
            Err(reason) => {
                self.damage.get_or_insert(reason);
                false
            }
        }
    }

    /// Notes damage that a code tells, or that FFmpeg only logged.
    fn note(&mut self, wrong: bool, code: i32) {
        let reason = if wrong { Some(libav::message(code)) } else { libav::complaint(Source::Any) };
        self.damage = self.damage.take().or(reason);
    }
}

/// Indices of large files, so that opening one again needs no pass over it.
#[derive(Debug, Default)]
pub struct IndexCache {
    known: Mutex<BTreeMap<PathBuf, (Stamp, Arc<Index>)>>,
    /// Files whose last frame was decoded.
    whole: Mutex<BTreeMap<PathBuf, Stamp>>,
}

/// Tells one content of a path from another.
pub(crate) type Stamp = (u64, Option<SystemTime>);

impl IndexCache {
    pub(crate) fn find(&self, file: &Path, stamp: Stamp) -> Option<Arc<Index>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(file).filter(|(known, _)| *known == stamp).map(|(_, index)| index.clone())
    }

    pub(crate) fn keep(&self, file: &Path, stamp: Stamp, index: &Arc<Index>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(file.to_owned(), (stamp, index.clone()));
    }

    pub(crate) fn is_whole(&self, file: &Path, stamp: Stamp) -> bool {
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.get(file) == Some(&stamp)
    }

    pub(crate) fn note_whole(&self, file: &Path, stamp: Stamp) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.insert(file.to_owned(), stamp);
    }
}

fn seconds(time: i64, base: ffi::AVRational) -> f64 {
    time as f64 * f64::from(base.num) / f64::from(base.den.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(list: &[(i64, bool, bool)]) -> Index {
        let entry = |&(pts, key, shown)| Entry { pts, dts: 0, key, shown };
        let mut index = Index { entries: list.iter().map(entry).collect(), ..Index::empty() };
        index.order = index.presentation_order(Codec::AV_CODEC_ID_H264);
        index.frames = index.order.len() as u64;
        index
    }

    #[test]
    fn frames_follow_presentation_time_and_begin_at_a_keyframe_not_shown_later() {
        // Two groups of pictures; packet 4 is shown before the keyframe 3 that it depends on.
        let index = packets(&[
            (0, true, true),
            (20, false, true),
            (10, false, true),
            (40, true, true),
            (30, false, true),
        ]);
        assert_eq!(index.order, [0, 2, 1, 4, 3]);
        assert_eq!(index.start(4), 3);
        assert_eq!(index.start(3), 0);
        assert_eq!(index.frame_at(20), Some(2));
        assert_eq!(index.frame_at(21), None);
    }

    #[test]
    fn hidden_packets_are_no_frames_and_repeated_times_are_not_trusted() {
        assert_eq!(packets(&[(-10, true, false), (0, false, true)]).order, [1]);
        assert!(!packets(&[(0, true, true), (0, false, true)]).by_packet());
    }
}
