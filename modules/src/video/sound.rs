//! The sound of a clip: mono, 16 kHz, of the seconds that its frames come from.
//!
//! Channels are averaged. Samples are placed by the times of the file, so that sound and frames of one
//! second belong together, also where the track begins late or has gaps.

use std::ops::Range;
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi;
use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

use super::damage;
use super::error::VideoError;
use super::libav::{self, Decoder, Frame, Input, Packet, Received};
use super::media::Media;
use super::packets;
use crate::rng::Rng;

/// Samples per second.
pub const RATE: usize = 16_000;

/// Sound is decoded from this long before the first sample that is wanted: a decoder needs what came
/// before.
const LEAD: f64 = 0.5;

/// Samples that a file's times may be off before a gap is left.
const LOOSE: i64 = RATE as i64 / 20;

/// The sound beside a clip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoundOptions {
    /// Seconds of sound per clip; longer sound is cut, shorter sound ends in zeros.
    pub seconds: f64,
}

impl SoundOptions {
    /// Samples per clip.
    pub fn samples(&self) -> usize {
        (self.seconds * RATE as f64).round() as usize
    }

    /// What is wrong with the numbers.
    pub fn check(&self) -> Option<OptionProblem> {
        let message = format!("`seconds` is {}, but must be from 0.025 to 3600", self.seconds);
        let hint = "InternVideo2 hears 10 seconds: `sound: { seconds: 10 }`";
        let fits = (0.025..=3600.0).contains(&self.seconds);
        (!fits).then(|| OptionProblem::new("sound.seconds", message, hint))
    }
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heard {
    /// -1..1; zeros where there is no sound.
    pub samples: Vec<f32>,
    /// Whether the file has a sound track.
    pub track: bool,
}

/// The sound of a file from its first frame on, in these seconds, or in a part of them that is drawn
/// where `rng` is given. Blocks.
pub fn listen(
    media: &Media,
    span: Range<f64>,
    options: &SoundOptions,
    rng: Option<&mut Rng>,
) -> Result<Heard, VideoError> {
    let unreadable = |reason| VideoError::Unreadable { file: media.path(), reason };
    let count = options.samples();
    let slack = (span.end - span.start - options.seconds).max(0.0);
    let start = span.start + rng.map_or(0.0, |rng| rng.between(0.0, slack));
    let wanted = ((span.end - start).max(0.0) * RATE as f64).round() as usize;
    let mut input = Input::open(media).map_err(unreadable)?;
    let mut heard = Heard { samples: vec![0.0; count], track: false };
    if !packets::has_audio(&input) {
        return Ok(heard);
    }
    heard.track = true;
    let about = |reason: String| unreadable(format!("its sound: {reason}"));
    let mut track = Track::open(&mut input).map_err(about)?;
    let until = wanted.min(count);
    track.read(&mut input, start, &mut heard.samples[..until]).map_err(about)?;
    Ok(heard)
}

/// The sound track of an open file.
struct Track {
    stream: usize,
    base: f64,
    /// Time of the first frame, or of the first sample in files without video.
    origin: f64,
    decoder: Decoder,
}

impl Track {
    fn open(input: &mut Input) -> Result<Self, String> {
        // Pictures are looked at by the reader of frames, with its bounds.
        input.probe(1 << 28)?;
        let best = |kind| unsafe {
            ffi::av_find_best_stream(input.raw(), kind, -1, -1, ptr::null_mut(), 0)
        };
        let stream = usize::try_from(best(ffi::AVMediaType::AVMEDIA_TYPE_AUDIO))
            .map_err(|_| "no track can be decoded".to_owned())?;
        let seen = usize::try_from(best(ffi::AVMediaType::AVMEDIA_TYPE_VIDEO)).unwrap_or(stream);
        let raw = input.streams()[stream];
        let parameters = unsafe { (*raw).codecpar };
        let decoder = Decoder::open(parameters, 1, 1 << 28)
            .map_err(|reason| reason.unwrap_or_else(|| "no decoder for its codec".to_owned()))?;
        let base = seconds(unsafe { (*raw).time_base });
        let first = input.streams()[seen];
        let (begin, unit) = unsafe { ((*first).start_time, (*first).time_base) };
        let begin = if begin == ffi::AV_NOPTS_VALUE { 0 } else { begin };
        let origin = begin as f64 * seconds(unit);
        for (number, &other) in input.streams().iter().enumerate() {
            if number != stream {
                unsafe { (*other).discard = ffi::AVDiscard::AVDISCARD_ALL };
            }
        }
        Ok(Self { stream, base, origin, decoder })
    }

    /// Fills `samples` with the sound from `start` on.
    fn read(&mut self, input: &mut Input, start: f64, samples: &mut [f32]) -> Result<(), String> {
        let begin = start + self.origin;
        // Elsewhere a jump lands at a guessed time.
        let exact = matches!(input.container().as_str(), "mov" | "matroska" | "wav" | "flac");
        if exact && start > 2.0 * LEAD {
            let time = ((begin - LEAD) / self.base) as i64;
            // From where it stands, the beginning, the same samples are found later.
            input.seek(self.stream, time);
        }
        let mut placed = Placed { samples, start: begin, next: None };
        let (mut packet, mut frame, mut mixer) = (Packet::new(), Frame::new(), None);
        let mut more = true;
        while more && !placed.full() {
            more = input.read(&mut packet)?;
            if more && packet.get().stream_index as usize != self.stream {
                continue;
            }
            if more && damage::is_corrupt(&packet) || !more && input.io_failed() {
                return Err("the file ends early".to_owned());
            }
            let code = self.decoder.send(more.then_some(&packet));
            if code < 0 && code != libav::again() {
                return Err(libav::message(code));
            }
            while let Received::Frame = self.decoder.receive(&mut frame)? {
                self.hear(&frame, &mut mixer, &mut placed)?;
            }
        }
        if let Some(mixer) = &mut mixer {
            placed.put(mixer.finish()?);
        }
        Ok(())
    }

    fn hear(
        &self,
        frame: &Frame,
        mixer: &mut Option<Mixer>,
        placed: &mut Placed<'_>,
    ) -> Result<(), String> {
        let form = Form::of(frame)?;
        if mixer.as_ref().is_some_and(|mixer| mixer.form != form)
            && let Some(mut old) = mixer.take()
        {
            placed.put(old.finish()?);
        }
        let made = match mixer.take() {
            Some(known) => known,
            None => Mixer::new(form)?,
        };
        let mixer = mixer.insert(made);
        let time = frame.get().best_effort_timestamp;
        let held = mixer.held();
        if time != ffi::AV_NOPTS_VALUE && !placed.is_near(time as f64 * self.base, held) {
            placed.put(mixer.finish()?);
            *mixer = Mixer::new(form)?;
            placed.jump(time as f64 * self.base);
        }
        placed.put(mixer.mix(Some(frame))?);
        Ok(())
    }
}

fn seconds(base: ffi::AVRational) -> f64 {
    f64::from(base.num) / f64::from(base.den.max(1))
}

/// Samples and where the next ones go.
struct Placed<'a> {
    samples: &'a mut [f32],
    /// Time of the first sample.
    start: f64,
    next: Option<i64>,
}

impl Placed<'_> {
    fn full(&self) -> bool {
        self.next.is_some_and(|next| next >= self.samples.len() as i64)
    }

    fn place(&self, time: f64) -> i64 {
        ((time - self.start) * RATE as f64).round() as i64
    }

    /// Whether samples of this time follow those before, of which `held` are still to come.
    fn is_near(&self, time: f64, held: i64) -> bool {
        self.next.is_some_and(|next| (self.place(time) - next - held).abs() <= LOOSE)
    }

    fn jump(&mut self, time: f64) {
        self.next = Some(self.place(time));
    }

    fn put(&mut self, sound: Vec<f32>) {
        let mut at = self.next.unwrap_or(0);
        for value in sound {
            if let Some(sample) = usize::try_from(at).ok().and_then(|at| self.samples.get_mut(at)) {
                *sample = if value.is_finite() { value.clamp(-1.0, 1.0) } else { 0.0 };
            }
            at += 1;
        }
        self.next = Some(at);
    }
}

/// How the samples of a frame are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    rate: i32,
    channels: i32,
    format: i32,
}

impl Form {
    fn of(frame: &Frame) -> Result<Self, String> {
        let raw = frame.get();
        let (rate, channels) = (raw.sample_rate, raw.ch_layout.nb_channels);
        if !(1..=1_000_000).contains(&rate) || !(1..=64).contains(&channels) {
            return Err(format!("{channels} channels at {rate} samples per second"));
        }
        Ok(Self { rate, channels, format: raw.format })
    }
}

/// Turns frames into one channel at [`RATE`].
struct Mixer {
    form: Form,
    raw: NonNull<ffi::SwrContext>,
}

impl Mixer {
    fn new(form: Form) -> Result<Self, String> {
        let mut raw = ptr::null_mut();
        let to = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP;
        let code = unsafe {
            // The layout does not matter, since channels are averaged here.
            let mut layout: ffi::AVChannelLayout = std::mem::zeroed();
            ffi::av_channel_layout_default(&mut layout, form.channels);
            let from: ffi::AVSampleFormat = std::mem::transmute(form.format);
            let rate = RATE as i32;
            ffi::swr_alloc_set_opts2(
                &mut raw,
                &mut layout,
                to,
                rate,
                &mut layout,
                from,
                form.rate,
                0,
                ptr::null_mut(),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| libav::message(code))?;
        let mixer = Self { form, raw };
        let code = unsafe { ffi::swr_init(raw.as_ptr()) };
        if code < 0 { Err(libav::message(code)) } else { Ok(mixer) }
    }

    /// Samples that were taken in and not yet given out.
    fn held(&self) -> i64 {
        unsafe { ffi::swr_get_delay(self.raw.as_ptr(), RATE as i64) }
    }

    /// Samples of a frame, or with `None` those that are held.
    fn mix(&mut self, frame: Option<&Frame>) -> Result<Vec<f32>, String> {
        let (data, count) = match frame {
            Some(frame) => (frame.get().extended_data.cast(), frame.get().nb_samples),
            None => (ptr::null_mut(), 0),
        };
        let most = unsafe { ffi::swr_get_out_samples(self.raw.as_ptr(), count) };
        if most < 0 {
            return Err(libav::message(most));
        }
        let (channels, room) = (self.form.channels as usize, most.max(1) as usize + 32);
        let mut planes = vec![0.0f32; channels * room];
        let mut pointers: Vec<*mut u8> =
            planes.chunks_mut(room).map(|plane| plane.as_mut_ptr().cast()).collect();
        let made = unsafe {
            let to = pointers.as_mut_ptr();
            ffi::swr_convert(self.raw.as_ptr(), to.cast(), room as i32, data, count)
        };
        let made = usize::try_from(made).map_err(|_| libav::message(made))?;
        let mean =
            |at: usize| planes.chunks(room).map(|plane| plane[at]).sum::<f32>() / channels as f32;
        Ok((0..made).map(mean).collect())
    }

    fn finish(&mut self) -> Result<Vec<f32>, String> {
        self.mix(None)
    }
}

impl Drop for Mixer {
    fn drop(&mut self) {
        let mut raw = self.raw.as_ptr();
        unsafe { ffi::swr_free(&mut raw) };
    }
}
