//! The packets of one video stream in file order, from memory or from the file.

use std::path::PathBuf;

use ffmpeg_next::ffi;

use super::error::VideoError;
use super::index::Index;
use super::libav::{Input, Packet};
use super::media::Media;

/// An open file, and where in it the next packet comes from.
pub(crate) struct Packets {
    pub(crate) media: Media,
    /// Its path, as messages show it.
    pub(crate) file: PathBuf,
    pub(crate) input: Input,
    pub(crate) stream: usize,
    /// All packets, when the file was small enough to keep them.
    pub(crate) kept: Vec<Packet>,
    /// The number of the packet that is handed out next.
    next: usize,
    /// The number of the packet that the file yields next, which may lie before `next`.
    read: usize,
    /// The packet read last from the file; handed out again when `unread`.
    last: Packet,
    unread: bool,
    /// Why reading stopped before the file's end.
    failure: Option<String>,
    max_pixels: u64,
}

impl Packets {
    /// Opens a file and finds its video stream.
    pub(crate) fn open(media: Media, max_pixels: u64) -> Result<Self, VideoError> {
        let (input, stream) = open_input(&media, max_pixels)?;
        let file = media.path();
        let (kept, last) = (Vec::new(), Packet::new());
        let (next, read, unread, failure) = (0, 0, false, None);
        Ok(Self { media, file, input, stream, kept, next, read, last, unread, failure, max_pixels })
    }

    /// The stream's description.
    pub(crate) fn stream(&self) -> *mut ffi::AVStream {
        self.input.streams()[self.stream]
    }

    /// The number of the next packet.
    pub(crate) fn position(&self) -> usize {
        self.next
    }

    /// Notes that a scan has read the file to its end.
    pub(crate) fn scanned(&mut self) {
        self.read = usize::MAX;
    }

    /// Makes `number` the next packet.
    pub(crate) fn jump(&mut self, number: usize, index: &Index) -> Result<(), VideoError> {
        (self.next, self.failure) = (number, None);
        if !self.kept.is_empty() || (self.read == number && !self.unread) {
            return Ok(());
        }
        if number > 0 && index.by_packet() && self.seek(number, index) {
            return Ok(());
        }
        // Seeking failed or landed too late: read from the start, which is always exact.
        let (input, stream) = open_input(&self.media, self.max_pixels)?;
        (self.input, self.stream) = (input, stream);
        (self.read, self.unread) = (0, false);
        Ok(())
    }

    /// Moves the file to `number` or a little before it, and finds out where it is by the
    /// timestamp of the first packet there.
    fn seek(&mut self, number: usize, index: &Index) -> bool {
        let entry = index.entries[number];
        let by_decoding_time = self.input.container() == "mov" && entry.dts != ffi::AV_NOPTS_VALUE;
        let time = if by_decoding_time { entry.dts } else { entry.pts };
        if !self.input.seek(self.stream, time) || !self.read_one() {
            return false;
        }
        let Some(frame) = index.frame_at(self.last.get().pts) else {
            return false;
        };
        self.read = index.packet(frame);
        self.unread = true;
        self.read <= number
    }

    /// Reads the stream's next packet into `last`.
    fn read_one(&mut self) -> bool {
        loop {
            match self.input.read(&mut self.last) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(reason) => {
                    self.failure = Some(reason);
                    return false;
                }
            }
            let packet = self.last.get();
            if packet.stream_index as usize == self.stream && packet.size > 0 {
                return true;
            }
        }
    }

    /// Takes the reason why the last packet was not the last one of an undamaged file.
    pub(crate) fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Hands out the next packet; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Option<&Packet> {
        let number = self.next;
        self.next += 1;
        if !self.kept.is_empty() {
            return self.kept.get(number);
        }
        loop {
            if !std::mem::take(&mut self.unread) && !self.read_one() {
                return None;
            }
            self.read += 1;
            if self.read > number {
                return Some(&self.last);
            }
        }
    }
}

/// Opens the container and picks the stream that FFmpeg holds for the main one.
fn open_input(media: &Media, max_pixels: u64) -> Result<(Input, usize), VideoError> {
    let unreadable = |reason| VideoError::Unreadable { file: media.path(), reason };
    let mut input = Input::open(media).map_err(unreadable)?;
    input.probe(max_pixels).map_err(unreadable)?;
    let kinds = input.streams().iter().map(|&stream| unsafe { (*(*stream).codecpar).codec_type });
    let kinds: Vec<ffi::AVMediaType> = kinds.collect();
    let video = ffi::AVMediaType::AVMEDIA_TYPE_VIDEO;
    let best =
        unsafe { ffi::av_find_best_stream(input.raw(), video, -1, -1, std::ptr::null_mut(), 0) };
    let picture = |stream: *mut ffi::AVStream| unsafe {
        (*stream).disposition & ffi::AV_DISPOSITION_ATTACHED_PIC != 0
    };
    if best < 0 || picture(input.streams()[best as usize]) {
        let found = if kinds.contains(&ffi::AVMediaType::AVMEDIA_TYPE_AUDIO) {
            "audio"
        } else if kinds.is_empty() {
            "an empty container"
        } else {
            "other streams"
        };
        return Err(VideoError::NoVideo { file: media.path(), found: found.to_owned() });
    }
    for (number, &stream) in input.streams().iter().enumerate() {
        if number != best as usize {
            unsafe { (*stream).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
    Ok((input, best as usize))
}

/// Whether any stream of an open file is audio.
pub(crate) fn has_audio(input: &Input) -> bool {
    let audio = ffi::AVMediaType::AVMEDIA_TYPE_AUDIO;
    input.streams().iter().any(|&stream| unsafe { (*(*stream).codecpar).codec_type == audio })
}
