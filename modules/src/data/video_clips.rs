//! Clips from videos and pictures with their sound and words: a folder, a manifest or shards.
//!
//! | port              | dims        | what                                                        |
//! |-------------------|-------------|-------------------------------------------------------------|
//! | `video`           | `B 3 T S S` | RGB, normalised                                             |
//! | `sparse`          | `B 3 T/e S S` | with `every: e`: each e-th frame of `video`, from the first |
//! | a label           | `B`         | one port for each of `labels`: that column of the manifest  |
//! | `sample`          | `B`         | place of the video in the manifest, from 0                  |
//! | a text            | `B L`       | for each of `texts`: ids of one of its paraphrases          |
//! | a text and `_mask` | `B L`      | for each of `texts`: 1 = token, 0 = padding                 |
//! | `waveform`        | `B S`       | with `sound`: mono, 16 kHz, -1..1                           |
//! | `heard`           | `B`         | with `sound`: 1 where the file has a sound track            |
//! | `dialogue`        | `B L`       | with `dialogue`: ids, with placeholders for the video       |
//! | `dialogue_mask`   | `B L`       | 1 = token, 0 = padding                                      |
//! | `dialogue_labels` | `B L`       | ids of the answers, else -100                               |
//! | `question`        | `B L`       | ids of the question alone                                   |
//! | `question_mask`   | `B L`       | 1 = token, 0 = padding                                      |
//!
//! Clips are a function of (seed, node, step, microbatch) and the files. A file that cannot be read
//! is named once and replaced by another one, drawn from the same numbers. The microbatches of a step
//! take their clips one after the other from the same epoch.
//!
//! A picture (jpg, png, webp) is a clip of one frame. What the forms of a manifest are, says the page on
//! data.
//!
//! Sound is that of the seconds that frames are chosen from: a part of them that is drawn, or the
//! first. A text that is missing is an error when the node opens.

#[path = "video_clips/beside.rs"]
mod beside;
#[path = "video_clips/checks.rs"]
mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError, Notice};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;
use crate::video::named::{named, one_line};
use crate::video::{
    Clip, ClipOptions, ClipReader, Crop, DecodeOptions, DialogueOptions, Filter, Manifest,
    Normalisation, Order, Reading, Sampler, Short, SoundOptions, TextOptions, Transform, Views,
    Words,
};

/// How frames are chosen; see `video/sample.rs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampling {
    /// One frame per equal segment: InternVideo2 stage 1.
    #[default]
    Segments,
    /// One frame per segment, ends included: InternVideo2 fine-tuning.
    Sparse,
    /// One frame per interval: InternVideo2 stage 2.
    Intervals,
    /// A constant rate from a random place.
    Rate {
        /// Frames per second.
        fps: f64,
    },
    /// A constant stride from a random place.
    Dense {
        /// Frames from one to the next.
        stride: usize,
    },
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder, manifest (`.csv`, `.jsonl`, or the `.json` of LLaVA, VideoChat2 or MSR-VTT), or WebDataset
    /// shards (`.tar`, or a pattern such as `shards-{000..009}.tar`).
    pub root: PathBuf,
    /// Only entries of this split.
    #[serde(default)]
    pub split: Option<String>,
    /// Integer columns that become ports of the same name.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Clips per microbatch.
    pub batch: usize,
    /// Frames per clip.
    pub frames: usize,
    /// Rows and columns in pixels.
    pub size: usize,
    /// Gives each n-th frame once more as the port `sparse`; InternVideo2's stage 1 takes 2.
    #[serde(default)]
    pub every: Option<usize>,
    /// How frames are chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Which part of a frame is kept; the centre when absent.
    #[serde(default = "centre")]
    pub crop: Crop,
    /// Probability of exchanging left and right; 0 where direction is the label.
    #[serde(default)]
    pub flip: f64,
    /// Names that are used here, and the manifest's columns for them, such as `caption: name`; columns
    /// in braces make a text, such as `path: "{page_dir}/{videoid}.mp4"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Stands before every path of a manifest, such as `videos/`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Stands after every path of a manifest, such as `.mp4`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suffix: String,
    /// Texts of the manifest that become ports of these names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, TextOptions>,
    /// Sound of the clips.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sound: Option<SoundOptions>,
    /// Questions and answers about the clips.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialogue: Option<DialogueOptions>,
    /// Colour statistics; ImageNet's when absent.
    #[serde(default = "imagenet")]
    pub colours: Normalisation,
    /// A permutation per epoch and drawn frames; else the manifest's order and fixed frames.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Threads that read clips; 0 takes as many as there are cores.
    #[serde(default)]
    pub workers: usize,
}

fn centre() -> Crop {
    Crop::Centre { short: None }
}

fn imagenet() -> Normalisation {
    Normalisation::IMAGENET
}

fn yes() -> bool {
    true
}

impl Config {
    fn sampler(&self) -> Sampler {
        let (frames, short) = (self.frames, Short::RepeatLast);
        match self.sampling {
            Sampling::Segments => Sampler::Segments { frames, one_based: true },
            Sampling::Sparse => Sampler::Sparse { frames },
            Sampling::Intervals => Sampler::Intervals { frames },
            Sampling::Rate { fps } => Sampler::Rate { frames, fps, short },
            Sampling::Dense { stride } => Sampler::Dense { frames, stride, short },
        }
    }

    fn clip_options(&self) -> ClipOptions {
        let views = Views::Test { temporal: 1, spatial: 1 };
        ClipOptions {
            sampler: self.sampler(),
            transform: Transform {
                size: self.size,
                crop: self.crop.clone(),
                filter: Filter::Bilinear,
                flip: self.flip,
                normalisation: self.colours,
                ..Transform::default()
            },
            views: if self.shuffle { Views::Train } else { views },
            sound: self.sound,
            decode: DecodeOptions::default(),
            workers: self.workers,
        }
    }

    fn reading(&self) -> Reading {
        Reading {
            split: self.split.clone(),
            columns: self.columns.clone(),
            prefix: self.prefix.clone(),
            suffix: self.suffix.clone(),
            nested: self.dialogue.is_some()
                || self.texts.values().any(|text| text.from.contains('.')),
        }
    }

    fn problem(&self, reason: impl ToString) -> NodeError {
        NodeError::Data { what: named(&self.root), reason: reason.to_string() }
    }
}

/// An open data set.
pub struct State {
    reader: ClipReader,
    key: Key,
    reported: BTreeSet<PathBuf>,
    /// Entries without a video that are still to be reported.
    unseen: usize,
}

impl Host for Config {
    type State = State;

    fn ports(&self, _: &[String]) -> Ports {
        let Self { batch, frames, size, .. } = self;
        let known = |ports: Ports| match self.colours.name() {
            Some(name) => ports.tag("pixels", name),
            None => ports,
        };
        let video = format!("{batch} 3 {frames} {size} {size}");
        let ports = known(Ports::default().plain("video", video))
            .about("RGB, normalised")
            .plain("sample", format!("{batch}"))
            .int()
            .about("place of the video in the manifest, from 0");
        let ports = match self.every {
            Some(every) => {
                let video = format!("{batch} 3 {frames}/{every} {size} {size}");
                known(ports.plain("sparse", video)).about("each n-th frame of `video`")
            }
            None => ports,
        };
        let ports = self.beside(ports);
        self.labels.iter().fold(ports, |ports, column| {
            let about = format!("column `{column}` of the manifest");
            ports.plain(column, format!("{batch}")).int().about(&about)
        })
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        self.problems()
    }

    fn open(&self, _: &Dims, key: &Key) -> Result<State, NodeError> {
        let manifest =
            Manifest::read(&self.root, &self.reading()).map_err(|error| self.problem(error))?;
        for column in &self.labels {
            let without = |entry: &&crate::video::Entry| entry.record.integer(column).is_none();
            if let Some(entry) = manifest.entries.iter().find(without) {
                let known = Vec::from_iter(
                    entry.record.integers().map(|name| format!("`{}`", one_line(name))),
                );
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let reason = format!(
                    "`{}` has no integer column `{column}`; its integer columns are {known}",
                    one_line(&entry.id)
                );
                return Err(self.problem(reason));
            }
        }
        let unseen = manifest.unseen;
        let words = Words::open(&self.texts, self.dialogue.as_ref())
            .and_then(|words| words.check(&manifest).map(|()| words))
            .map_err(|error| self.problem(error))?;
        let reader =
            ClipReader::new(manifest, self.clip_options()).map_err(|error| self.problem(error))?;
        let reader = reader.with_words(words);
        Ok(State { reader, key: key.clone(), reported: BTreeSet::new(), unseen })
    }

    fn forward(&self, state: &mut State, _: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let first = call.number() * self.batch as u64;
        let positions = first..first + self.batch as u64;
        let order = Order { shuffle: self.shuffle };
        let clips = state.reader.read_batch(&state.key, order, positions);
        let clips = clips.map_err(|error| self.problem(error))?;
        let mut forwarded = Forwarded::default();
        let unseen = std::mem::take(&mut state.unseen);
        if unseen > 0 {
            let reason =
                format!("{unseen} entries have no video and no picture; they are left out");
            forwarded.notices.push(Notice::Quarantined { file: named(&self.root), reason });
        }
        for bad in state.reader.quarantined() {
            if state.reported.insert(bad.file.clone()) {
                let file = named(&bad.file);
                forwarded.notices.push(Notice::Quarantined { file, reason: bad.reason });
            }
        }
        let shape = vec![self.batch, 3, self.frames, self.size, self.size];
        let values = clips.iter().flat_map(|clip| clip.video.iter().copied());
        forwarded.frames.insert("video".to_owned(), Frame::f32(shape, values));
        let numbers = |of: &dyn Fn(&Clip) -> i64| Frame::i64([self.batch], clips.iter().map(of));
        let samples = numbers(&|clip| clip.number as i64);
        forwarded.frames.insert("sample".to_owned(), samples);
        if let Some(every) = self.every {
            let pixels = self.size * self.size;
            let thin = |clip: &Clip| -> Vec<f32> {
                let frames = clip.video.chunks(pixels).enumerate();
                let kept = frames.filter(|(i, _)| (i % self.frames).is_multiple_of(every));
                kept.flat_map(|(_, frame)| frame.iter().copied()).collect()
            };
            let shape = vec![self.batch, 3, self.frames / every, self.size, self.size];
            let sparse = Frame::f32(shape, clips.iter().flat_map(thin));
            forwarded.frames.insert("sparse".to_owned(), sparse);
        }
        for column in &self.labels {
            let labels = numbers(&|clip| clip.entry.record.integer(column).unwrap_or_default());
            forwarded.frames.insert(column.clone(), labels);
        }
        self.give_beside(&clips, &mut forwarded.frames);
        Ok(forwarded)
    }
}

/// Kind `data/video_clips`.
pub const ENTRY: Entry = kind::source::<Config>(include_str!("video_clips.rs"));

#[cfg(test)]
mod tests {
    use schemas::node::At;

    use super::*;
    use crate::shapes;

    fn call(step: u64) -> Call {
        let at = At { stage: 0, step, microbatch: 0 };
        Call::new(Key::new(0, "unused"), at)
    }

    #[test]
    fn a_folder_of_shapes_gives_the_same_frames_again_and_names_a_bad_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("shapes");
        let few = shapes::Options { train: 4, test: 0, untrimmed: 0, ..Default::default() };
        shapes::generate(&root, &few, &|_, _| {}).unwrap();
        std::fs::write(root.join("train/00001.mp4"), "not a video").unwrap();
        let text = format!(
            r#"{{"root": {:?}, "labels": ["motion"], "batch": 4, "frames": 4, "size": 32,
                "sampling": {{"dense": {{"stride": 2}}}}, "crop": {{"multi_scale": {{}}}}}}"#,
            root.join("train")
        );
        let config: Config = serde_json::from_str(&text).unwrap();
        assert_eq!(config.check(&Dims::new()), []);
        let key = Key::new(1, "clips");
        let mut state = config.open(&Dims::new(), &key).unwrap();
        let first = config.forward(&mut state, Frames::new(), &call(0)).unwrap();
        let second = config.forward(&mut state, Frames::new(), &call(1)).unwrap();
        assert_eq!(first.frames["video"].shape(), [4, 3, 4, 32, 32]);
        assert_eq!(first.frames["motion"].shape(), [4]);
        assert_eq!((first.notices.len(), second.notices.len()), (1, 0));
        let mut resumed = config.open(&Dims::new(), &key).unwrap();
        let again = config.forward(&mut resumed, Frames::new(), &call(1)).unwrap();
        assert_eq!(again.frames["video"].bytes(), second.frames["video"].bytes());
        let wrong = Config { labels: vec!["speed".to_owned()], ..config };
        let error = wrong.open(&Dims::new(), &key).err().unwrap().to_string();
        assert!(error.contains("`speed`") && error.contains("`motion`"), "{error}");
    }

    #[test]
    fn a_name_with_a_line_break_stays_on_its_line() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a\nwarning: b.mp4"), "not a video").unwrap();
        let text = r#"{"root": "r", "batch": 1, "frames": 1, "size": 8}"#;
        let plain: Config = serde_json::from_str(text).unwrap();
        let config = Config { root: dir.path().to_owned(), ..plain };
        let mut state = config.open(&Dims::new(), &Key::new(1, "clips")).unwrap();
        let error = config.forward(&mut state, Frames::new(), &call(0)).unwrap_err().to_string();
        assert!(error.contains("a\\nwarning: b.mp4") && !error.contains('\n'), "{error}");
    }
}
