//! Clips from video files: a folder, a CSV or a JSONL manifest.
//!
//! | port     | dims        | what                                                        |
//! |----------|-------------|-------------------------------------------------------------|
//! | `video`  | `B 3 T S S` | RGB, normalised                                             |
//! | `sparse` | `B 3 T/e S S` | with `every: e`: each e-th frame of `video`, from the first |
//! | a label  | `B`         | one port for each of `labels`: that column of the manifest  |
//! | `sample` | `B`         | place of the video in the manifest, from 0                  |
//!
//! Clips are a function of (seed, node, step, microbatch) and the files. A file that cannot be read
//! is named once and replaced by another one, drawn from the same numbers. The microbatches of a step
//! take their clips one after the other from the same epoch.

use std::collections::BTreeSet;
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
    Clip, ClipOptions, ClipReader, Crop, DecodeOptions, Filter, Manifest, Normalisation, Order,
    Sampler, Short, Transform, Views,
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
    /// Folder, `.csv` or `.jsonl`.
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
            decode: DecodeOptions::default(),
            workers: self.workers,
        }
    }

    fn problem(&self, reason: impl ToString) -> NodeError {
        NodeError::Data { what: named(&self.root), reason: reason.to_string() }
    }

    fn count_problems(&self) -> Vec<OptionProblem> {
        let bounds = [
            ("batch", self.batch, 1..=65_536),
            ("frames", self.frames, 1..=65_536),
            ("size", self.size, 1..=8192),
            // 0 takes as many as there are cores.
            ("workers", self.workers, 0..=1024),
        ];
        let outside = bounds.into_iter().filter(|(_, value, range)| !range.contains(value));
        let problem = |(option, value, range): (&str, usize, std::ops::RangeInclusive<usize>)| {
            let (low, high) = (range.start(), range.end());
            let message = format!("`{option}` is {value}, but must be from {low} to {high}");
            OptionProblem::new(option, message, format!("give a number from {low} to {high}"))
        };
        outside.map(problem).collect()
    }

    /// Labels become ports, and every port has one name of its own.
    fn label_problems(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for label in &self.labels {
            let name = one_line(label);
            let own = ["video", "sparse", "sample"].contains(&label.as_str());
            if own {
                let message = format!("a column named `{name}` cannot be a port of its own");
                problems.push(OptionProblem::new("labels", message, "rename the column"));
            } else if !seen.insert(label) {
                let message = format!("`labels` names `{name}` more than once");
                problems.push(OptionProblem::new("labels", message, "name each column once"));
            }
        }
        problems
    }
}

/// An open data set.
pub struct State {
    reader: ClipReader,
    key: Key,
    reported: BTreeSet<PathBuf>,
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
        self.labels.iter().fold(ports, |ports, column| {
            let about = format!("column `{column}` of the manifest");
            ports.plain(column, format!("{batch}")).int().about(&about)
        })
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.count_problems();
        problems.extend(self.label_problems());
        if let Some(every) = self.every
            && (every == 0 || !self.frames.is_multiple_of(every))
        {
            let message = format!("`every` is {every}; {} frames are not a multiple", self.frames);
            problems.push(OptionProblem::new("every", message, "give a divisor of `frames`"));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            let message = format!("`flip` is {}, not a probability from 0 to 1", self.flip);
            problems.push(OptionProblem::new("flip", message, "write 0 or 0.5"));
        }
        if let Some((message, hint)) = self.sampler().problem() {
            problems.push(OptionProblem::new("sampling", message, hint));
        }
        if let Some((message, hint)) = self.crop.problem(self.size) {
            problems.push(OptionProblem::new("crop", message, hint));
        }
        if let Some(message) = self.colours.problem() {
            let hint = "leave `colours` out or write `std: [0.229, 0.224, 0.225]`";
            problems.push(OptionProblem::new("colours", message, hint));
        }
        problems
    }

    fn open(&self, _: &Dims, key: &Key) -> Result<State, NodeError> {
        let manifest = Manifest::read(&self.root, self.split.as_deref())
            .map_err(|error| self.problem(error))?;
        for column in &self.labels {
            let without = |entry: &&crate::video::Entry| !entry.labels.contains_key(column);
            if let Some(entry) = manifest.entries.iter().find(without) {
                let known =
                    Vec::from_iter(entry.labels.keys().map(|name| format!("`{}`", one_line(name))));
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let reason = format!(
                    "`{}` has no integer column `{column}`; its integer columns are {known}",
                    one_line(&entry.id)
                );
                return Err(self.problem(reason));
            }
        }
        let reader =
            ClipReader::new(manifest, self.clip_options()).map_err(|error| self.problem(error))?;
        Ok(State { reader, key: key.clone(), reported: BTreeSet::new() })
    }

    fn forward(&self, state: &mut State, _: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let first = call.number() * self.batch as u64;
        let positions = first..first + self.batch as u64;
        let order = Order { shuffle: self.shuffle };
        let clips = state.reader.read_batch(&state.key, order, positions);
        let clips = clips.map_err(|error| self.problem(error))?;
        let mut forwarded = Forwarded::default();
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
            let labels = numbers(&|clip| clip.entry.labels[column]);
            forwarded.frames.insert(column.clone(), labels);
        }
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
    fn impossible_numbers_are_refused_and_name_their_option() {
        let named = |more: &str| {
            let base = r#"{"root": "r", "batch": 4, "frames": 4, "size": 32}"#;
            let mut value: serde_json::Value = serde_json::from_str(base).unwrap();
            let more: serde_json::Value = serde_json::from_str(more).unwrap();
            let more = more.as_object().unwrap().clone();
            value.as_object_mut().unwrap().extend(more);
            let config: Config = serde_json::from_value(value).unwrap();
            let problems = config.check(&Dims::new());
            assert!(problems.iter().all(|problem| !problem.hint.is_empty()));
            problems.into_iter().map(|problem| problem.option).collect::<Vec<_>>()
        };
        for (option, texts) in [
            ("sampling", vec![r#"{"rate": {"fps": 0}}"#, r#"{"rate": {"fps": -1.5}}"#]),
            ("sampling", vec![r#"{"dense": {"stride": 0}}"#, r#"{"dense": {"stride": 1000001}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0, 1], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.9, 0.5], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.5, 1.1], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.5, 1], "ratio": [2, 1]}}"#]),
            ("crop", vec![r#"{"multi_scale": {"scales": []}}"#, r#"{"centre": {"short": 99999}}"#]),
            (
                "crop",
                vec![
                    r#"{"multi_scale": {"scales": [1, 0]}}"#,
                    r#"{"multi_scale": {"scales": [1.5]}}"#,
                ],
            ),
            ("colours", vec![r#"{"mean": [0, 0, 0], "std": [1, 0, 1]}"#]),
            ("colours", vec![r#"{"mean": [0, 0, 0], "std": [1, 1e300, 1]}"#]),
            ("batch", vec!["0", "65537"]),
            ("size", vec!["0", "8193"]),
            ("frames", vec!["0", "65537"]),
            ("workers", vec!["1025"]),
            ("labels", vec![r#"["a", "a"]"#, r#"["video"]"#, r#"["sample"]"#]),
        ] {
            for text in texts {
                assert_eq!(named(&format!(r#"{{"{option}": {text}}}"#)), [option], "{text}");
            }
        }
        assert!(named(r#"{"sampling": {"rate": {"fps": 0.5}}, "workers": 0}"#).is_empty());
        let whole = r#"{"crop": {"random_resized": {"scale": [0.08, 1], "ratio": [0.75, 1.34]}}}"#;
        assert!(named(whole).is_empty());
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
