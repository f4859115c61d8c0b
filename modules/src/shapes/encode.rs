//! Writes RGB frames and a mono sound track to an MP4 file: H.264 and AAC.

use std::ffi::CString;
use std::path::Path;
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi;

use crate::video::libav::{self, Dictionary, Frame, Packet};

/// Samples per second of the sound track.
pub const SAMPLE_RATE: usize = 16_000;

/// H.264 encoders that need no special hardware, best first; then what every FFmpeg has.
const ENCODERS: [&str; 3] = ["libx264", "libopenh264", "mpeg4"];

/// One film in memory.
#[derive(Debug, Clone, Default)]
pub struct Film {
    /// RGB bytes `[T, H, W, 3]`.
    pub rgb: Vec<u8>,
    /// Rows; even.
    pub height: usize,
    /// Columns; even.
    pub width: usize,
    /// Frames per second.
    pub fps: usize,
    /// Sound, mono, -1..1, [`SAMPLE_RATE`] per second; empty for a silent file.
    pub sound: Vec<f32>,
}

/// The video encoder that this FFmpeg offers, and a notice when it is not an H.264 one.
pub fn encoder() -> Option<(&'static str, Option<String>)> {
    let known = |name: &&&str| {
        CString::new(**name).is_ok_and(|name| {
            !unsafe { ffi::avcodec_find_encoder_by_name(name.as_ptr()) }.is_null()
        })
    };
    let name = ENCODERS.iter().find(known)?;
    let notice = (*name == "mpeg4").then(|| {
        "this FFmpeg has no H.264 encoder (libx264, libopenh264); files hold MPEG-4 part 2"
            .to_owned()
    });
    Some((name, notice))
}

/// Writes a film to a new file. The bytes depend only on the film and the FFmpeg version.
pub fn write(film: &Film, encoder: &str, path: &Path) -> Result<(), String> {
    libav::quiet();
    let mut file = Output::create(path)?;
    let global_header = true;
    let mut video = Encoder::video(film, encoder, global_header)?;
    let video_stream = file.add(&video)?;
    let mut audio = None;
    if !film.sound.is_empty() {
        let encoder = Encoder::audio(global_header)?;
        let stream = file.add(&encoder)?;
        audio = Some((encoder, stream));
    }
    file.begin()?;
    let frame = picture_frame(film)?;
    let size = film.height * film.width * 3;
    for (number, rgb) in film.rgb.chunks_exact(size).enumerate() {
        check(unsafe { ffi::av_frame_make_writable(frame.raw()) })?;
        fill_picture(&frame, rgb, (film.height, film.width));
        unsafe { (*frame.raw()).pts = number as i64 };
        video.encode(Some(&frame), &mut file, video_stream)?;
    }
    video.encode(None, &mut file, video_stream)?;
    if let Some((mut encoder, stream)) = audio {
        let block = unsafe { (*encoder.0.as_ptr()).frame_size }.max(1) as usize;
        for (number, samples) in film.sound.chunks(block).enumerate() {
            let frame = sound_frame(samples, number * block)?;
            encoder.encode(Some(&frame), &mut file, stream)?;
        }
        encoder.encode(None, &mut file, stream)?;
    }
    file.finish()
}

fn check(code: i32) -> Result<i32, String> {
    if code < 0 { Err(libav::message(code)) } else { Ok(code) }
}

/// A file being written.
struct Output {
    raw: NonNull<ffi::AVFormatContext>,
    bases: Vec<ffi::AVRational>,
}

impl Output {
    fn create(path: &Path) -> Result<Self, String> {
        let mut url = b"file:".to_vec();
        url.extend_from_slice(path.as_os_str().as_encoded_bytes());
        let url = CString::new(url).map_err(|_| "the path holds a zero byte".to_owned())?;
        let mut raw = ptr::null_mut();
        unsafe {
            check(ffi::avformat_alloc_output_context2(
                &mut raw,
                ptr::null_mut(),
                c"mp4".as_ptr(),
                url.as_ptr(),
            ))?;
            let raw = NonNull::new(raw).ok_or("out of memory")?;
            let made = Self { raw, bases: Vec::new() };
            // Versions and times stay out, so that equal films give equal files.
            (*raw.as_ptr()).flags |= ffi::AVFMT_FLAG_BITEXACT;
            let io = &mut (*raw.as_ptr()).pb;
            check(ffi::avio_open(io, url.as_ptr(), ffi::AVIO_FLAG_WRITE))?;
            Ok(made)
        }
    }

    /// Adds a stream; returns its number.
    fn add(&mut self, encoder: &Encoder) -> Result<usize, String> {
        unsafe {
            let stream = ffi::avformat_new_stream(self.raw.as_ptr(), ptr::null());
            if stream.is_null() {
                return Err("out of memory".to_owned());
            }
            let context = encoder.0.as_ptr();
            check(ffi::avcodec_parameters_from_context((*stream).codecpar, context))?;
            (*stream).time_base = (*context).time_base;
            (*stream).avg_frame_rate = (*context).framerate;
            self.bases.push((*context).time_base);
        }
        Ok(self.bases.len() - 1)
    }

    fn begin(&mut self) -> Result<(), String> {
        let mut options = Dictionary::new(&[("movflags", "+faststart")]);
        check(unsafe { ffi::avformat_write_header(self.raw.as_ptr(), &mut options.0) }).map(drop)
    }

    fn write(&mut self, packet: &mut Packet, stream: usize) -> Result<(), String> {
        unsafe {
            let target = *(*self.raw.as_ptr()).streams.add(stream);
            ffi::av_packet_rescale_ts(packet.raw(), self.bases[stream], (*target).time_base);
            (*packet.raw()).stream_index = stream as i32;
            check(ffi::av_interleaved_write_frame(self.raw.as_ptr(), packet.raw())).map(drop)
        }
    }

    fn finish(self) -> Result<(), String> {
        check(unsafe { ffi::av_write_trailer(self.raw.as_ptr()) })?;
        check(unsafe { ffi::avio_closep(&mut (*self.raw.as_ptr()).pb) }).map(drop)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        unsafe {
            ffi::avio_closep(&mut (*self.raw.as_ptr()).pb);
            ffi::avformat_free_context(self.raw.as_ptr());
        }
    }
}

/// An open encoder.
struct Encoder(NonNull<ffi::AVCodecContext>);

impl Encoder {
    fn new(name: &str) -> Result<(Self, *const ffi::AVCodec), String> {
        let text = CString::new(name).map_err(|error| error.to_string())?;
        let codec = unsafe { ffi::avcodec_find_encoder_by_name(text.as_ptr()) };
        if codec.is_null() {
            return Err(format!("this FFmpeg has no encoder `{name}`"));
        }
        let raw = unsafe { ffi::avcodec_alloc_context3(codec) };
        Ok((Self(NonNull::new(raw).ok_or("out of memory")?), codec))
    }

    fn video(film: &Film, name: &str, global_header: bool) -> Result<Self, String> {
        let (encoder, codec) = Self::new(name)?;
        let mut options = Dictionary::new(match name {
            // On pictures this small its macroblock tree reads memory that nothing wrote.
            "libx264" => &[("preset", "veryfast"), ("crf", "18"), ("mbtree", "0")],
            _ => &[],
        });
        unsafe {
            let raw = &mut *encoder.0.as_ptr();
            (raw.width, raw.height) = (film.width as i32, film.height as i32);
            raw.pix_fmt = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P;
            raw.time_base = ffi::AVRational { num: 1, den: film.fps as i32 };
            raw.framerate = ffi::AVRational { num: film.fps as i32, den: 1 };
            raw.gop_size = 12;
            raw.max_b_frames = if name == "libopenh264" { 0 } else { 2 };
            raw.thread_count = 1;
            raw.colorspace = ffi::AVColorSpace::AVCOL_SPC_SMPTE170M;
            raw.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
            if name == "mpeg4" {
                raw.flags |= ffi::AV_CODEC_FLAG_QSCALE as i32;
                raw.global_quality = 3 * ffi::FF_QP2LAMBDA;
            }
            encoder.flags(global_header);
            check(ffi::avcodec_open2(encoder.0.as_ptr(), codec, &mut options.0))?;
        }
        Ok(encoder)
    }

    fn audio(global_header: bool) -> Result<Self, String> {
        let (encoder, codec) = Self::new("aac")?;
        let mut options = Dictionary::new(&[("aac_coder", "fast")]);
        unsafe {
            let raw = &mut *encoder.0.as_ptr();
            raw.sample_rate = SAMPLE_RATE as i32;
            raw.sample_fmt = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP;
            raw.bit_rate = 32_000;
            raw.time_base = ffi::AVRational { num: 1, den: SAMPLE_RATE as i32 };
            ffi::av_channel_layout_default(&mut raw.ch_layout, 1);
            encoder.flags(global_header);
            check(ffi::avcodec_open2(encoder.0.as_ptr(), codec, &mut options.0))?;
        }
        Ok(encoder)
    }

    fn flags(&self, global_header: bool) {
        let flags = unsafe { &mut (*self.0.as_ptr()).flags };
        *flags |= ffi::AV_CODEC_FLAG_BITEXACT as i32;
        if global_header {
            *flags |= ffi::AV_CODEC_FLAG_GLOBAL_HEADER as i32;
        }
    }

    /// Encodes one frame, or with `None` the rest, into the file.
    fn encode(
        &mut self,
        frame: Option<&Frame>,
        file: &mut Output,
        stream: usize,
    ) -> Result<(), String> {
        let raw = frame.map_or(ptr::null_mut(), Frame::raw);
        check(unsafe { ffi::avcodec_send_frame(self.0.as_ptr(), raw) })?;
        let mut packet = Packet::new();
        loop {
            let code = unsafe { ffi::avcodec_receive_packet(self.0.as_ptr(), packet.raw()) };
            if code == libav::again() || code == ffi::AVERROR_EOF {
                return Ok(());
            }
            check(code)?;
            let length = unsafe { (*packet.raw()).duration };
            if length == 0 && stream == 0 {
                unsafe { (*packet.raw()).duration = 1 };
            }
            file.write(&mut packet, stream)?;
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        let mut raw = self.0.as_ptr();
        unsafe { ffi::avcodec_free_context(&mut raw) };
    }
}

fn picture_frame(film: &Film) -> Result<Frame, String> {
    let frame = Frame::new();
    unsafe {
        let raw = &mut *frame.raw();
        raw.format = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as i32;
        (raw.width, raw.height) = (film.width as i32, film.height as i32);
        check(ffi::av_frame_get_buffer(frame.raw(), 0))?;
    }
    Ok(frame)
}

/// BT.601, limited range; the chroma of four pixels is that of their mean.
fn fill_picture(frame: &Frame, rgb: &[u8], (height, width): (usize, usize)) {
    let planes = frame.get();
    let plane = |number: usize, rows: usize| unsafe {
        let stride = planes.linesize[number] as usize;
        (std::slice::from_raw_parts_mut(planes.data[number], stride * rows), stride)
    };
    let (luma, stride) = plane(0, height);
    for (row, line) in rgb.chunks_exact(width * 3).enumerate() {
        for (to, pixel) in luma[row * stride..].iter_mut().zip(line.chunks_exact(3)) {
            let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(i32::from);
            *to = (((66 * r + 129 * g + 25 * b + 128) >> 8) + 16) as u8;
        }
    }
    let (blue, stride) = plane(1, height / 2);
    let (red, _) = plane(2, height / 2);
    for row in 0..height / 2 {
        for column in 0..width / 2 {
            let at = (row * 2 * width + column * 2) * 3;
            let sum = |channel: usize| {
                let four = [at, at + 3, at + width * 3, at + width * 3 + 3];
                four.iter().map(|&place| i32::from(rgb[place + channel])).sum::<i32>()
            };
            let (r, g, b) = (sum(0), sum(1), sum(2));
            blue[row * stride + column] = (((-38 * r - 74 * g + 112 * b + 512) >> 10) + 128) as u8;
            red[row * stride + column] = (((112 * r - 94 * g - 18 * b + 512) >> 10) + 128) as u8;
        }
    }
}

fn sound_frame(samples: &[f32], at: usize) -> Result<Frame, String> {
    let frame = Frame::new();
    unsafe {
        let raw = &mut *frame.raw();
        raw.format = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP as i32;
        raw.nb_samples = samples.len() as i32;
        raw.sample_rate = SAMPLE_RATE as i32;
        raw.pts = at as i64;
        ffi::av_channel_layout_default(&mut raw.ch_layout, 1);
        check(ffi::av_frame_get_buffer(frame.raw(), 0))?;
        ptr::copy_nonoverlapping(samples.as_ptr(), raw.data[0].cast(), samples.len());
    }
    Ok(frame)
}
