//! Opens a video and decodes chosen frames of it, exactly.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::sync::Arc;

use ffmpeg_next::ffi;
use serde::{Deserialize, Serialize};

use super::convert::{Converter, Orientation};
use super::damage;
use super::error::VideoError;
use super::index::{Index, IndexCache, Stamp};
use super::libav::{self, Decoder, Frame, Received, Source};
use super::media::Media;
use super::packets::{self, Packets};

/// How files are decoded, and the bounds on what one file may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Decoder threads per file. One is best when several files are decoded at a time.
    pub threads: usize,
    /// Largest width or height in pixels.
    pub max_side: usize,
    /// Most RGB bytes one call may return.
    pub max_bytes: u64,
    /// Files up to this many bytes are read once, into memory.
    pub keep_bytes: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { threads: 1, max_side: 16_384, max_bytes: 4 << 30, keep_bytes: 32 << 20 }
    }
}

/// What a file says about its video stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Number of frames.
    pub frames: u64,
    /// From the first frame's start to the last one's end, in seconds.
    pub duration: f64,
    /// Mean frames per second; above 0.
    pub fps: f64,
    /// Displayed columns, after rotation.
    pub width: usize,
    /// Displayed rows, after rotation.
    pub height: usize,
    /// Whether the file holds sound.
    pub has_audio: bool,
    /// FFmpeg's name of the codec.
    pub codec: String,
    /// FFmpeg's first name of the container.
    pub container: String,
}

/// Decoded frames: RGB bytes `[T, H, W, 3]` in display orientation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// The bytes, row by row.
    pub data: Vec<u8>,
    /// Number of frames.
    pub count: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Frames {
    /// The bytes `[H, W, 3]` of one frame.
    pub fn frame(&self, number: usize) -> &[u8] {
        let size = self.height * self.width * 3;
        &self.data[number * size..(number + 1) * size]
    }
}

/// One open video.
pub struct Video {
    packets: Packets,
    index: Arc<Index>,
    decoder: Decoder,
    converter: Converter,
    frame: Frame,
    info: Info,
    options: DecodeOptions,
    /// The last frame that came out since the last jump.
    out: Option<u64>,
    /// Packet where decoding began; `None` before the first frame and after a drain.
    began: Option<usize>,
    /// The first thing that went wrong since the last jump.
    trouble: Option<String>,
    /// Whether the trouble is a line of the log only, which a jump to an open group causes as well.
    hearsay: bool,
}

impl Video {
    /// Opens a file, or a part of one, and indexes its frames. Blocks on the file system.
    pub fn open(media: impl Into<Media>, options: &DecodeOptions) -> Result<Self, VideoError> {
        Self::open_with(media, options, &IndexCache::default())
    }

    /// As [`Video::open`]; takes the index of a large file from a cache, or puts it there.
    pub fn open_with(
        media: impl Into<Media>,
        options: &DecodeOptions,
        cache: &IndexCache,
    ) -> Result<Self, VideoError> {
        let media = media.into();
        let stamp = damage::stamp(&media)?;
        let max_pixels = (options.max_side as u64).pow(2);
        let mut packets = Packets::open(media, max_pixels)?;
        let (height, width) = stored_size(&packets, options)?;
        let mut index = damage::find_index(&mut packets, stamp, options, cache)?;
        let mut decoder = open_decoder(&packets, options, max_pixels)?;
        if !index.by_packet() && index.frames == 0 {
            damage::count(Arc::make_mut(&mut index), &mut packets, &mut decoder)?;
        }
        if index.frames == 0 {
            return Err(VideoError::Empty { file: packets.file });
        }
        if packets.kept.is_empty() {
            cache.keep(&packets.file, stamp, &index);
        }
        let orientation = Orientation::of(packets.stream());
        let info = describe(&packets, &index, orientation.display(height, width));
        let converter = Converter::new(height, width, orientation);
        let frame = Frame::new();
        let (out, began, trouble, hearsay) = (None, None, None, false);
        let options = options.clone();
        let mut video = Self {
            packets,
            index,
            decoder,
            converter,
            frame,
            info,
            options,
            out,
            began,
            trouble,
            hearsay,
        };
        video.check_end(stamp, cache)?;
        Ok(video)
    }

    /// Decodes the last frame of a file whose container does not tell whether it is whole, once.
    fn check_end(&mut self, stamp: Stamp, cache: &IndexCache) -> Result<(), VideoError> {
        let told = damage::tells_its_end(&self.info.container) || !self.index.by_packet();
        if told || cache.is_whole(&self.packets.file, stamp) {
            return Ok(());
        }
        let last = self.info.frames - 1;
        self.decode_to(last, &Wanted::from([self.index.packet(last)]))?;
        cache.note_whole(&self.packets.file, stamp);
        Ok(())
    }

    /// What the file says about its video stream.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Decodes frames given by their numbers in presentation order, ascending; a number may be
    /// repeated. Seeks to the keyframe before a frame where that saves work.
    pub fn frames(&mut self, numbers: &[u64]) -> Result<Frames, VideoError> {
        self.check(numbers)?;
        let (height, width) = (self.info.height, self.info.width);
        let size = height * width * 3;
        let mut data = vec![0; numbers.len() * size];
        let wanted: Vec<usize> = if self.index.by_packet() {
            numbers.iter().map(|&number| self.index.packet(number)).collect()
        } else {
            Vec::new()
        };
        let wanted = BTreeSet::from_iter(wanted);
        for (at, &number) in numbers.iter().enumerate() {
            if at > 0 && numbers[at - 1] == number {
                data.copy_within((at - 1) * size..at * size, at * size);
                continue;
            }
            self.decode_to(number, &wanted)?;
            let to = &mut data[at * size..(at + 1) * size];
            let converted = self.converter.convert(&self.frame, to);
            converted.map_err(|reason| self.damaged(number, reason))?;
        }
        Ok(Frames { data, count: numbers.len(), height, width })
    }

    /// Refuses indices out of range or order, and too much memory.
    fn check(&self, numbers: &[u64]) -> Result<(), VideoError> {
        let file = || self.packets.file.clone();
        let frames = self.info.frames;
        for (at, &frame) in numbers.iter().enumerate() {
            if frame >= frames {
                return Err(VideoError::OutOfRange { file: file(), frame, frames });
            }
            if at > 0 && numbers[at - 1] > frame {
                return Err(VideoError::Unsorted { file: file(), frame, before: numbers[at - 1] });
            }
        }
        let value = (self.info.height * self.info.width * 3) as u64 * numbers.len() as u64;
        let limit = self.options.max_bytes;
        if value > limit {
            let what = "decoded size in bytes";
            return Err(VideoError::TooLarge { file: file(), what, value, limit });
        }
        Ok(())
    }

    /// Decodes until `self.frame` holds the frame of this number.
    fn decode_to(&mut self, number: u64, wanted: &Wanted) -> Result<(), VideoError> {
        let start = if self.index.by_packet() { self.index.start(number) } else { 0 };
        let running = self.began.is_some()
            && self.packets.position() > start
            && self.out.is_none_or(|out| out < number);
        if !running {
            self.jump(start)?;
        }
        if self.advance(number, wanted) {
            return Ok(());
        }
        // A keyframe that does not stand on its own (open groups, gradual refresh): start over.
        if (self.trouble.is_none() || self.hearsay) && self.began.is_some_and(|began| began > 0) {
            self.jump(0)?;
            if self.advance(number, wanted) {
                return Ok(());
            }
        }
        self.began = None;
        let reason = self.trouble.take();
        Err(self.damaged(number, reason.unwrap_or_else(|| "the decoder left it out".to_owned())))
    }

    fn damaged(&self, readable: u64, reason: String) -> VideoError {
        VideoError::Damaged { file: self.packets.file.clone(), readable, reason }
    }

    fn jump(&mut self, start: usize) -> Result<(), VideoError> {
        libav::quiet();
        self.decoder.flush();
        self.packets.jump(start, &self.index)?;
        (self.out, self.began, self.trouble, self.hearsay) = (None, Some(start), None, false);
        Ok(())
    }

    /// Feeds packets until the frame comes out whole.
    fn advance(&mut self, number: u64, wanted: &Wanted) -> bool {
        libav::quiet();
        loop {
            let received = self.decoder.receive(&mut self.frame);
            if received.is_ok() {
                self.listen();
            }
            match received {
                Ok(Received::Frame) => {
                    let Some(out) = self.number_of_frame() else { continue };
                    self.out = Some(out);
                    if out >= number {
                        return out == number && self.trouble.is_none();
                    }
                }
                Ok(Received::Hungry) => self.feed(wanted),
                Ok(Received::End) => return false,
                Err(reason) => {
                    self.note(reason);
                    return false;
                }
            }
        }
    }

    /// Notes trouble that FFmpeg reported with a code or a flag.
    fn note(&mut self, reason: String) {
        if self.trouble.is_none() || self.hearsay {
            (self.trouble, self.hearsay) = (Some(reason), false);
        }
    }

    /// Notes trouble that FFmpeg only logged: many decoders paint over what they cannot read.
    fn listen(&mut self) {
        if let Some(line) = libav::complaint(Source::Any)
            && self.trouble.is_none()
        {
            (self.trouble, self.hearsay) = (Some(line), true);
        }
    }

    /// Sends the next packet, or the end of the file.
    fn feed(&mut self, wanted: &Wanted) {
        let position = self.packets.position();
        let Some(packet) = self.packets.next() else {
            if let Some(reason) = self.packets.failure() {
                self.note(reason);
            }
            self.decoder.send(None);
            return;
        };
        let can_skip = self.options.threads <= 1 && self.index.by_packet() && {
            let codec = unsafe { (*self.decoder.raw()).codec_id };
            matches!(codec, ffi::AVCodecID::AV_CODEC_ID_H264 | ffi::AVCodecID::AV_CODEC_ID_HEVC)
        };
        self.decoder.skip_unneeded(can_skip && !wanted.contains(&position));
        let (pts, corrupt) = (packet.get().pts, damage::is_corrupt(packet));
        let code = self.decoder.send(Some(packet));
        if self.leads(pts) {
            libav::quiet();
        } else if corrupt || code < 0 && code != libav::again() {
            self.note(libav::message(if corrupt { ffi::AVERROR_INVALIDDATA } else { code }));
        } else {
            self.listen();
        }
    }

    /// The number of the frame just received; `None` for one before the keyframe that decoding
    /// began at, which may lack what it refers to.
    fn number_of_frame(&mut self) -> Option<u64> {
        let (frame, broken) = (self.frame.get(), damage::is_broken(&self.frame));
        let pts = if frame.pts == ffi::AV_NOPTS_VALUE { frame.pkt_dts } else { frame.pts };
        if self.leads(pts) {
            return None;
        }
        if broken {
            self.note(libav::message(ffi::AVERROR_INVALIDDATA));
        }
        if !self.index.by_packet() {
            return Some(self.out.map_or(0, |out| out + 1));
        }
        self.index.frame_at(pts)
    }

    /// Whether this time lies before that of the packet where decoding began.
    fn leads(&self, pts: i64) -> bool {
        self.index.by_packet()
            && self.began.is_some_and(|began| pts < self.index.entries[began].pts && began > 0)
    }
}

/// The packets of the frames that were asked for.
type Wanted = BTreeSet<usize>;

/// Stored (height, width) in pixels, within bounds.
fn stored_size(packets: &Packets, options: &DecodeOptions) -> Result<(usize, usize), VideoError> {
    let parameters = unsafe { &*(*packets.stream()).codecpar };
    let (height, width) = (parameters.height, parameters.width);
    let file = packets.file.clone();
    if height <= 0 || width <= 0 {
        let reason = "the video stream states no frame size".to_owned();
        return Err(VideoError::Unreadable { file, reason });
    }
    let (value, limit) = (height.max(width) as u64, options.max_side as u64);
    if value > limit {
        return Err(VideoError::TooLarge { file, what: "frame side in pixels", value, limit });
    }
    Ok((height as usize, width as usize))
}

fn open_decoder(
    packets: &Packets,
    options: &DecodeOptions,
    max_pixels: u64,
) -> Result<Decoder, VideoError> {
    let parameters = unsafe { (*packets.stream()).codecpar };
    Decoder::open(parameters, options.threads, max_pixels).map_err(|reason| {
        let file = packets.file.clone();
        match reason {
            Some(reason) => VideoError::Unreadable { file, reason },
            None => VideoError::NoDecoder { file, codec: codec_name(packets) },
        }
    })
}

fn codec_name(packets: &Packets) -> String {
    let name = unsafe { ffi::avcodec_get_name((*(*packets.stream()).codecpar).codec_id) };
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn describe(packets: &Packets, index: &Index, (height, width): (usize, usize)) -> Info {
    let rate = unsafe { (*packets.stream()).avg_frame_rate };
    let stated = f64::from(rate.num) / f64::from(rate.den);
    let stated = if stated.is_finite() && stated > 0.0 { stated } else { 1.0 };
    let fps = if index.duration > 0.0 { index.frames as f64 / index.duration } else { stated };
    Info {
        frames: index.frames,
        duration: if index.duration > 0.0 { index.duration } else { index.frames as f64 / stated },
        fps,
        width,
        height,
        has_audio: packets::has_audio(&packets.input),
        codec: codec_name(packets),
        container: packets.input.container(),
    }
}
