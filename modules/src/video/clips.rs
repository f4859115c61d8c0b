//! Clips for training and evaluation: a manifest, a sampler and a transform behind one draw.
//!
//! Clip `position` of a run is a function of the key, the position and the files, and of nothing
//! else: epoch = position / items, and each epoch has its own permutation. A file that cannot be
//! read is listed once and replaced; the replacement is drawn from the same key and position, never
//! from what was read before. So a resumed reader goes on with the clips it would have given.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decode::{DecodeOptions, Video};
use super::error::VideoError;
use super::index::IndexCache;
use super::manifest::{Entry, Manifest};
use super::sample::{Mode, Sampler};
use super::sound::{self, Heard, SoundOptions};
use super::span::{self, Span};
use super::transform::Transform;
use super::words::{Rows, Words};
use crate::rng::Key;

/// Whether clips are drawn or enumerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Views {
    /// One drawn clip per video and epoch.
    Train,
    /// Every video `temporal` x `spatial` times per epoch, spatial views fastest.
    Test {
        /// Clips along time.
        temporal: usize,
        /// Crops per clip.
        spatial: usize,
    },
}

/// How a reader makes clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipOptions {
    /// Which frames.
    pub sampler: Sampler,
    /// What happens to them.
    #[serde(default)]
    pub transform: Transform,
    /// Drawn or enumerated.
    pub views: Views,
    /// The sound of the clip's seconds; none when absent.
    #[serde(default)]
    pub sound: Option<SoundOptions>,
    /// Decoder settings.
    #[serde(default)]
    pub decode: DecodeOptions,
    /// Threads that read clips of a batch; 0 takes as many as there are cores.
    #[serde(default)]
    pub workers: usize,
}

/// The order of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// A permutation drawn per epoch, or the manifest's order.
    pub shuffle: bool,
}

/// One clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Normalised values `[C, T, H, W]`.
    pub video: Vec<f32>,
    /// C, T, H, W.
    pub dims: [usize; 4],
    /// Place of its video in the manifest.
    pub number: usize,
    /// The video it comes from: id, file, record.
    pub entry: Entry,
    /// What is heard; nothing unless it is asked for.
    pub sound: Heard,
    /// Texts and a dialogue as ids, by port.
    pub words: Rows,
    /// Frame numbers in the file.
    pub frames: Vec<u64>,
    /// Which view of the video, in `0..temporal * spatial`; 0 in training.
    pub view: usize,
    /// The id of the unreadable video that this clip stands in for. Leave such clips out of scores.
    pub replaces: Option<String>,
}

/// A file that could not be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Quarantined {
    /// The file.
    pub file: PathBuf,
    /// Why.
    pub reason: String,
}

/// Why there is no clip.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// No file of the data set can be read.
    #[error("none of {count} videos can be read; the first: {first}")]
    AllBad {
        /// How many there are.
        count: usize,
        /// Why the first one cannot.
        first: String,
    },
    /// The manifest is empty.
    #[error("there are no videos to read; check the data set's path and split")]
    NoVideos,
    /// The worker threads could not be started.
    #[error("cannot start {workers} worker threads: {reason}")]
    Workers {
        /// How many were asked for.
        workers: usize,
        /// What the system said.
        reason: String,
    },
}

/// Reads clips of one data set.
pub struct ClipReader {
    manifest: Manifest,
    options: ClipOptions,
    words: Words,
    pool: rayon::ThreadPool,
    indices: IndexCache,
    bad: Mutex<BTreeMap<PathBuf, String>>,
    /// The permutations used last, by fingerprint of their key.
    orders: Mutex<Vec<(u64, Arc<Vec<usize>>)>>,
}

impl ClipReader {
    /// A reader of these videos.
    pub fn new(manifest: Manifest, options: ClipOptions) -> Result<Self, ClipError> {
        if manifest.entries.is_empty() {
            return Err(ClipError::NoVideos);
        }
        let workers = options.workers;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|number| format!("clips-{number}"))
            .build()
            .map_err(|error| ClipError::Workers { workers, reason: error.to_string() })?;
        let (words, indices, bad, orders) = Default::default();
        Ok(Self { manifest, options, words, pool, indices, bad, orders })
    }

    /// Reads these words beside the clips.
    pub fn with_words(self, words: Words) -> Self {
        Self { words, ..self }
    }

    /// The videos.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Clips per epoch.
    pub fn items(&self) -> u64 {
        (self.manifest.entries.len() * self.views()) as u64
    }

    /// The files that could not be read so far, each once, sorted.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        let bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |(file, reason): (&PathBuf, &String)| Quarantined {
            file: file.clone(),
            reason: reason.clone(),
        };
        bad.iter().map(name).collect()
    }

    /// The clips of a range of positions, in order, read by the worker threads. Blocks.
    pub fn read_batch(
        &self,
        key: &Key,
        order: Order,
        positions: Range<u64>,
    ) -> Result<Vec<Clip>, ClipError> {
        let read = |position| self.read(key, order, position);
        self.pool.install(|| positions.into_par_iter().map(read).collect())
    }

    /// The clip at a position of the run, counted over all epochs. Blocks.
    pub fn read(&self, key: &Key, order: Order, position: u64) -> Result<Clip, ClipError> {
        let (epoch, rank) = (position / self.items(), (position % self.items()) as usize);
        let item = if order.shuffle { self.order(key, epoch)[rank] } else { rank };
        let (number, view) = (item / self.views(), item % self.views());
        let draw = key.with("clip").with_number(position);
        let wanted = &self.manifest.entries[number];
        let first = match self.clip(number, view, &draw) {
            Ok(clip) => return Ok(clip),
            Err(reason) => reason,
        };
        self.list(wanted, &first);
        for other in self.stand_ins(&draw, order, number) {
            let entry = &self.manifest.entries[other];
            match self.clip(other, view, &draw) {
                Ok(clip) => return Ok(Clip { replaces: Some(wanted.id.clone()), ..clip }),
                Err(reason) => self.list(entry, &reason),
            }
        }
        Err(ClipError::AllBad { count: self.manifest.entries.len(), first })
    }

    /// Views per video.
    fn views(&self) -> usize {
        match self.options.views {
            Views::Train => 1,
            Views::Test { temporal, spatial } => (temporal * spatial).max(1),
        }
    }

    /// The order of an epoch's items.
    fn order(&self, key: &Key, epoch: u64) -> Arc<Vec<usize>> {
        let key = key.with("order").with_number(epoch);
        let print = key.rng().bits();
        let mut known = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = known.iter().find(|(other, _)| *other == print) {
            return order.clone();
        }
        let order = Arc::new(key.rng().permutation(self.items() as usize));
        if known.len() >= 2 {
            known.remove(0);
        }
        known.push((print, order.clone()));
        order
    }

    /// All other videos in the order in which they stand in for one.
    fn stand_ins(&self, draw: &Key, order: Order, number: usize) -> Vec<usize> {
        let count = self.manifest.entries.len();
        if order.shuffle {
            let mut others = draw.with("stand-in").rng().permutation(count);
            others.retain(|&other| other != number);
            others
        } else {
            (1..count).map(|step| (number + step) % count).collect()
        }
    }

    fn list(&self, entry: &Entry, reason: &str) {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        bad.entry(entry.media.path()).or_insert_with(|| reason.to_owned());
    }

    /// One view of one video, or why not.
    fn clip(&self, number: usize, view: usize, draw: &Key) -> Result<Clip, String> {
        let entry = &self.manifest.entries[number];
        let ClipOptions { sampler, transform, decode, views, sound, .. } = &self.options;
        let text = |error: VideoError| error.to_string();
        let words = self.words.read(entry, draw)?;
        let mut rng = draw.rng();
        let mut video = Video::open_with(&entry.media, decode, &self.indices).map_err(text)?;
        let (frames, fps) = (video.info().frames, video.info().fps);
        let span = Span::of(entry, frames, fps)?;
        let (mode, crop) = match *views {
            Views::Train => (Mode::Train, 0),
            Views::Test { temporal, spatial } => {
                let spatial = spatial.max(1);
                (Mode::Test { view: view / spatial, views: temporal }, view % spatial)
            }
        };
        let mut numbers = sampler.choose(span.frames(), fps, mode, &mut rng);
        numbers.iter_mut().for_each(|number| *number += span.first);
        let decoded = span::decode_any_order(&mut video, &numbers).map_err(text)?;
        let values = transform.apply(&decoded, crop, &mut rng).map_err(text)?;
        let dims = [3, numbers.len(), transform.size, transform.size];
        let sound = match sound {
            None => Heard::default(),
            Some(sound) => {
                let mut drawn = (*views == Views::Train).then(|| draw.with("sound").rng());
                let media = entry.sound.as_ref().unwrap_or(&entry.media);
                sound::listen(media, span.seconds(), sound, drawn.as_mut()).map_err(text)?
            }
        };
        let (video, entry, frames, replaces) = (values, entry.clone(), numbers, None);
        Ok(Clip { video, dims, number, entry, sound, words, frames, view, replaces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{self, Options};
    use crate::video::{Crop, Reading};

    fn options(views: Views) -> ClipOptions {
        ClipOptions {
            sampler: Sampler::Segments { frames: 4, one_based: true },
            transform: Transform {
                size: 16,
                crop: Crop::RandomResized { scale: [0.5, 1.0], ratio: [0.75, 4.0 / 3.0] },
                ..Transform::default()
            },
            views,
            sound: None,
            decode: DecodeOptions::default(),
            workers: 2,
        }
    }

    /// Six clips, of which two are damaged.
    fn world() -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        let few =
            Options { train: 6, test: 1, untrimmed: 0, size: 32, frames: 8, ..Options::default() };
        shapes::generate(&out, &few, &|_, _| {}).unwrap();
        std::fs::write(out.join("train/00002.mp4"), "no video").unwrap();
        std::fs::write(out.join("train/00004.mp4"), "").unwrap();
        let manifest =
            Manifest::read(&out.join("manifest.csv"), &Reading::of_split("train")).unwrap();
        (dir, manifest)
    }

    const SHUFFLED: Order = Order { shuffle: true };

    #[test]
    fn a_resumed_reader_gives_the_same_clips_and_lists_bad_files_once() {
        let (_dir, manifest) = world();
        let key = Key::new(3, "data");
        let whole = ClipReader::new(manifest.clone(), options(Views::Train)).unwrap();
        let clips = whole.read_batch(&key, SHUFFLED, 0..18).unwrap();
        assert_eq!(whole.quarantined().len(), 2);
        assert_eq!(clips.iter().filter(|clip| clip.replaces.is_some()).count(), 6);
        assert_eq!(clips[0].dims, [3, 4, 16, 16]);
        let resumed = ClipReader::new(manifest, options(Views::Train)).unwrap();
        let rest = resumed.read_batch(&key, SHUFFLED, 11..18).unwrap();
        assert_eq!(rest, clips[11..]);
        let seen = |range: Range<usize>| -> std::collections::BTreeSet<String> {
            let whole = clips[range].iter().filter(|clip| clip.replaces.is_none());
            whole.map(|clip| clip.entry.id.clone()).collect()
        };
        assert_eq!((seen(0..6).len(), seen(6..12).len()), (4, 4));
        assert_ne!(clips[..6], clips[6..12]);
    }

    #[test]
    fn views_are_enumerated_and_the_same_every_time() {
        let (_dir, manifest) = world();
        let mut choice = options(Views::Test { temporal: 2, spatial: 3 });
        choice.transform.crop = Crop::Three;
        choice.sampler = Sampler::Sparse { frames: 4 };
        let reader = ClipReader::new(manifest, choice).unwrap();
        assert_eq!(reader.items(), 36);
        let order = Order { shuffle: false };
        let clips = reader.read_batch(&Key::new(1, "a"), order, 0..6).unwrap();
        let again = reader.read_batch(&Key::new(2, "b"), order, 36..42).unwrap();
        assert_eq!(clips, again);
        assert!(clips.iter().all(|clip| clip.entry.id == "train/00000.mp4"));
        assert_eq!(clips[0].frames, clips[2].frames);
        assert_ne!(clips[0].frames, clips[3].frames);
    }

    #[test]
    fn a_set_of_bad_files_is_an_error_that_names_one() {
        let (_dir, mut manifest) = world();
        manifest.entries.retain(|entry| entry.id.contains("00002") || entry.id.contains("00004"));
        let reader = ClipReader::new(manifest, options(Views::Train)).unwrap();
        let error = reader.read(&Key::new(1, "a"), SHUFFLED, 0).unwrap_err().to_string();
        assert!(error.starts_with("none of 2 videos") && error.contains(".mp4"), "{error}");
    }

    #[test]
    fn seconds_choose_a_part_of_the_file() {
        let (_dir, mut manifest) = world();
        manifest.entries.truncate(1);
        manifest.entries[0].start = Some(0.25);
        manifest.entries[0].end = Some(0.5);
        let reader = ClipReader::new(manifest.clone(), options(Views::Train)).unwrap();
        let clip = reader.read(&Key::new(1, "a"), SHUFFLED, 0).unwrap();
        assert!(clip.frames.iter().all(|frame| (4..8).contains(frame)), "{:?}", clip.frames);
        manifest.entries[0].start = Some(9.0);
        let reader = ClipReader::new(manifest, options(Views::Train)).unwrap();
        let error = reader.read(&Key::new(1, "a"), SHUFFLED, 0).unwrap_err().to_string();
        assert!(error.contains("`start` 9 is past the end"), "{error}");
    }
}
