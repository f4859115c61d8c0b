//! Owners of FFmpeg objects: each frees its object once, and turns a code into a message.
//!
//! The safe wrapper lacks packet retention, discard flags, colour details and dictionaries per
//! open, so the calls go to the C functions. Only files of this folder and `shapes/encode.rs` have
//! `unsafe` for it.

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi;

use super::media::Media;

pub(crate) use super::log::{Source, complaint, message, quiet};

/// The FFmpeg code of a call that has to be tried again.
pub(crate) fn again() -> i32 {
    ffi::AVERROR(ffi::EAGAIN)
}

/// Options of an FFmpeg object, freed on drop.
pub(crate) struct Dictionary(pub(crate) *mut ffi::AVDictionary);

impl Dictionary {
    /// A dictionary of the given pairs.
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Self {
        let mut raw = ptr::null_mut();
        for (name, value) in pairs {
            let (Ok(name), Ok(value)) = (CString::new(*name), CString::new(*value)) else {
                continue;
            };
            unsafe { ffi::av_dict_set(&mut raw, name.as_ptr(), value.as_ptr(), 0) };
        }
        Self(raw)
    }
}

impl Drop for Dictionary {
    fn drop(&mut self) {
        unsafe { ffi::av_dict_free(&mut self.0) };
    }
}

/// One compressed packet.
pub(crate) struct Packet(NonNull<ffi::AVPacket>);

// An AVPacket is reference-counted memory without thread affinity.
unsafe impl Send for Packet {}

impl Packet {
    pub(crate) fn new() -> Self {
        let raw = unsafe { ffi::av_packet_alloc() };
        Self(NonNull::new(raw).expect("FFmpeg allocates 100 bytes or the process is out of memory"))
    }

    pub(crate) fn raw(&self) -> *mut ffi::AVPacket {
        self.0.as_ptr()
    }

    pub(crate) fn get(&self) -> &ffi::AVPacket {
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        let mut raw = self.raw();
        unsafe { ffi::av_packet_free(&mut raw) };
    }
}

/// One decoded picture or run of audio samples.
pub(crate) struct Frame(NonNull<ffi::AVFrame>);

unsafe impl Send for Frame {}

impl Frame {
    pub(crate) fn new() -> Self {
        let raw = unsafe { ffi::av_frame_alloc() };
        Self(NonNull::new(raw).expect("FFmpeg allocates 500 bytes or the process is out of memory"))
    }

    pub(crate) fn raw(&self) -> *mut ffi::AVFrame {
        self.0.as_ptr()
    }

    pub(crate) fn get(&self) -> &ffi::AVFrame {
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut raw = self.raw();
        unsafe { ffi::av_frame_free(&mut raw) };
    }
}

/// Containers that hold one video in one file. Play-lists, network and text formats stay out: a
/// data set must not make the reader open something else.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg,\
ivf,h264,hevc,m4v,mpegvideo,obu,apng,nut,mxf,yuv4mpegpipe,dv,rm,swf,wav,mp3,aac,flac,\
webp_pipe,png_pipe,jpeg_pipe,mjpeg";

/// An open container.
pub(crate) struct Input(NonNull<ffi::AVFormatContext>);

unsafe impl Send for Input {}

impl Input {
    /// Opens a file or a part of one and reads its header.
    pub(crate) fn open(media: &Media) -> Result<Self, String> {
        quiet();
        let url = media.url()?;
        let mut options = Dictionary::new(&[
            ("protocol_whitelist", "file,subfile"),
            ("format_whitelist", CONTAINERS),
            ("max_streams", "64"),
        ]);
        let mut raw = ptr::null_mut();
        let code = unsafe {
            ffi::avformat_open_input(&mut raw, url.as_ptr(), ptr::null_mut(), &mut options.0)
        };
        if code < 0 {
            return Err(message(code));
        }
        // Headers of sound files give rise to complaints, for instance about absent chapters.
        quiet();
        Ok(Self(NonNull::new(raw).expect("a successful open returns a context")))
    }

    pub(crate) fn raw(&self) -> *mut ffi::AVFormatContext {
        self.0.as_ptr()
    }

    /// Reads a little of every stream to fill in what the header leaves out.
    pub(crate) fn probe(&mut self, max_pixels: u64) -> Result<(), String> {
        let limit = max_pixels.to_string();
        let count = self.streams().len();
        let mut each: Vec<Dictionary> = (0..count)
            .map(|_| Dictionary::new(&[("max_pixels", &limit), ("threads", "1")]))
            .collect();
        let mut raw: Vec<*mut ffi::AVDictionary> = each.iter().map(|entry| entry.0).collect();
        let code = unsafe { ffi::avformat_find_stream_info(self.raw(), raw.as_mut_ptr()) };
        for (entry, left) in each.iter_mut().zip(raw) {
            entry.0 = left;
        }
        if code < 0 { Err(message(code)) } else { Ok(()) }
    }

    /// The streams in file order.
    pub(crate) fn streams(&self) -> &[*mut ffi::AVStream] {
        let context = unsafe { self.0.as_ref() };
        if context.streams.is_null() {
            return &[];
        }
        unsafe { std::slice::from_raw_parts(context.streams, context.nb_streams as usize) }
    }

    /// The first short name of the container, such as `mov`.
    pub(crate) fn container(&self) -> String {
        let name = unsafe { (*self.0.as_ref().iformat).name };
        let names = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        names.split(',').next().unwrap_or_default().to_owned()
    }

    /// Reads the next packet of any stream. `Ok(false)` is the end of the file.
    pub(crate) fn read(&mut self, packet: &mut Packet) -> Result<bool, String> {
        let code = unsafe {
            ffi::av_packet_unref(packet.raw());
            ffi::av_read_frame(self.raw(), packet.raw())
        };
        match code {
            ffi::AVERROR_EOF => Ok(false),
            code if code < 0 => Err(message(code)),
            _ => Ok(true),
        }
    }

    /// Whether the underlying file ended with an error rather than at its end.
    pub(crate) fn io_failed(&self) -> bool {
        let stream = unsafe { self.0.as_ref().pb };
        !stream.is_null() && unsafe { (*stream).error } < 0
    }

    /// Seeks to the last keyframe at or before `timestamp` of one stream.
    pub(crate) fn seek(&mut self, stream: usize, timestamp: i64) -> bool {
        let flags = ffi::AVSEEK_FLAG_BACKWARD;
        unsafe { ffi::av_seek_frame(self.raw(), stream as i32, timestamp, flags) >= 0 }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut raw = self.raw();
        unsafe { ffi::avformat_close_input(&mut raw) };
    }
}

/// What a decoder has after a call to [`Decoder::receive`].
pub(crate) enum Received {
    /// A frame was written.
    Frame,
    /// It wants another packet first.
    Hungry,
    /// It was drained.
    End,
}

/// An open decoder of one stream.
pub(crate) struct Decoder(NonNull<ffi::AVCodecContext>);

unsafe impl Send for Decoder {}

impl Decoder {
    /// Opens a decoder. `None` in the error stands for a codec this FFmpeg cannot decode.
    pub(crate) fn open(
        parameters: *const ffi::AVCodecParameters,
        threads: usize,
        max_pixels: u64,
    ) -> Result<Self, Option<String>> {
        unsafe {
            let codec = ffi::avcodec_find_decoder((*parameters).codec_id);
            if codec.is_null() {
                return Err(None);
            }
            let raw = ffi::avcodec_alloc_context3(codec);
            let decoder = Self(NonNull::new(raw).ok_or(Some("out of memory".to_owned()))?);
            let code = ffi::avcodec_parameters_to_context(raw, parameters);
            if code < 0 {
                return Err(Some(message(code)));
            }
            (*raw).thread_count = threads.clamp(1, 64) as i32;
            (*raw).max_pixels = max_pixels as i64;
            // A wrong checksum is certain damage; the stricter checks refuse files that play.
            (*raw).err_recognition |= ffi::AV_EF_CRCCHECK;
            let code = ffi::avcodec_open2(raw, codec, ptr::null_mut());
            if code < 0 { Err(Some(message(code))) } else { Ok(decoder) }
        }
    }

    pub(crate) fn raw(&self) -> *mut ffi::AVCodecContext {
        self.0.as_ptr()
    }

    /// Sends one packet, or with `None` asks for everything still held back.
    pub(crate) fn send(&mut self, packet: Option<&Packet>) -> i32 {
        let raw = packet.map_or(ptr::null_mut(), Packet::raw);
        unsafe { ffi::avcodec_send_packet(self.raw(), raw) }
    }

    /// Takes the next frame in presentation order.
    pub(crate) fn receive(&mut self, frame: &mut Frame) -> Result<Received, String> {
        match unsafe { ffi::avcodec_receive_frame(self.raw(), frame.raw()) } {
            ffi::AVERROR_EOF => Ok(Received::End),
            code if code == again() => Ok(Received::Hungry),
            code if code < 0 => Err(message(code)),
            _ => Ok(Received::Frame),
        }
    }

    /// Forgets every packet and frame, as before a jump.
    pub(crate) fn flush(&mut self) {
        unsafe { ffi::avcodec_flush_buffers(self.raw()) };
    }

    /// Lets the decoder leave out frames that no other frame needs.
    pub(crate) fn skip_unneeded(&mut self, skip: bool) {
        let level =
            if skip { ffi::AVDiscard::AVDISCARD_NONREF } else { ffi::AVDiscard::AVDISCARD_DEFAULT };
        unsafe { (*self.raw()).skip_frame = level };
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let mut raw = self.raw();
        unsafe { ffi::avcodec_free_context(&mut raw) };
    }
}
