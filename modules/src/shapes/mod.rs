//! Moving shapes: a labelled synthetic world, written as real video files.
//!
//! Appearance (shape, colour, texture, background, still dots) is independent of motion, and every
//! motion has its time reversal beside it, so a model that looks at one frame can name the look but
//! not the motion. A data set is a folder, complete or absent:
//!
//! ```text
//! OUT/shapes.json              options, encoder, size of every file
//! OUT/manifest.csv             train and test, with a `split` column
//! OUT/vocab.txt                every word of the world, for BERT
//! OUT/tokenizer.json           the same tokens for language models
//! OUT/tokenizer_config.json    special tokens and a chat template
//! OUT/train/00000.mp4 …        H.264 and AAC
//! OUT/train/manifest.csv       path, split, labels, factors, the plainest captions
//! OUT/train/manifest.jsonl     the same and captions, questions, boxes, masks per frame
//! OUT/test/…
//! OUT/untrimmed/…              several events per video; half of the videos are for testing
//! OUT/untrimmed/manifest.csv   one row per event, with its seconds
//! OUT/untrimmed/grounding.csv  one row per event, of the whole video, with its frames
//! ```
//!
//! | file         | what                                                           |
//! |--------------|----------------------------------------------------------------|
//! | `world`      | what can be seen: looks and motions                            |
//! | `sound`      | what can be heard: pitch, timbre, beats                        |
//! | `phrases`    | what can be said: tables and templates                         |
//! | `describe`   | captions of a clip                                             |
//! | `questions`  | questions with answers and choices                             |
//! | `vocabulary` | tokenizers of the world's words                                |
//! | `render`     | pictures, boxes and masks                                      |
//! | `record`     | one clip and all that is known about it                        |
//! | `untrimmed`  | one longer video                                               |
//! | `manifest`   | records as CSV and JSON lines                                  |
//! | `encode`     | a film as an MP4 file                                          |
//! | `origin`     | whether a folder holds a whole data set                        |

mod describe;
mod encode;
mod manifest;
mod origin;
mod phrases;
mod questions;
mod record;
pub mod render;
pub mod sound;
#[cfg(test)]
mod tests;
mod untrimmed;
mod vocabulary;
pub mod world;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use encode::{Film, SAMPLE_RATE, encoder, write as write_film};
use origin::{FORMAT, Origin};
use record::Record;
pub use vocabulary::{SPECIAL, vocabulary, words};

use crate::video::named::named;

/// What to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Clips to train on.
    pub train: usize,
    /// Clips to test on.
    pub test: usize,
    /// Longer videos with several events.
    pub untrimmed: usize,
    /// Rows and columns in pixels; even.
    pub size: usize,
    /// Frames per clip, and per event.
    pub frames: usize,
    /// Frames per second.
    pub fps: usize,
    /// Motion classes; even, at most 14. See [`world::MOTIONS`].
    pub motions: usize,
    /// Appearance classes; at most 24: four shapes, then the same in the next colour.
    pub appearances: usize,
    /// Equal seeds give equal files.
    pub seed: u64,
    /// Whether files have a sound track.
    pub sound: bool,
    /// Whether `manifest.jsonl` holds a mask per frame.
    pub masks: bool,
    /// Whether there are textures, patterned backgrounds and still dots, which no label tells.
    pub clutter: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            train: 1024,
            test: 256,
            untrimmed: 8,
            size: 64,
            frames: 16,
            fps: 16,
            motions: 8,
            appearances: 8,
            seed: 0,
            sound: true,
            masks: true,
            clutter: true,
        }
    }
}

/// A data set that lies on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// Its folder.
    pub dir: PathBuf,
    /// How many video files it has.
    pub files: usize,
    /// FFmpeg's name of the video encoder.
    pub encoder: String,
    /// What the user should know, for instance that there was no H.264 encoder.
    pub notice: Option<String>,
    /// Whether it was there already and nothing was written.
    pub reused: bool,
}

/// Why a data set could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShapesError {
    /// An option is out of bounds.
    #[error("`{option}` is {value}, but must be {allowed}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: usize,
        /// The allowed values.
        allowed: &'static str,
    },
    /// The folder holds something else.
    #[error("`{}` exists and holds no moving shapes; name another folder or empty it", named(dir))]
    Occupied {
        /// The folder.
        dir: PathBuf,
    },
    /// The set has to be made again, but its folder also holds something else.
    #[error(
        "`{}` is no file of the data set in `{}`, which has to be made again; move it away or name another folder",
        named(file),
        named(dir)
    )]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// One file or folder in it.
        file: PathBuf,
    },
    /// There is nothing to write video with.
    #[error("this FFmpeg has no H.264 and no MPEG-4 encoder; install one with libx264")]
    NoEncoder,
    /// A film could not be encoded.
    #[error("cannot write video: {reason}; file `{}`", named(file))]
    Encode {
        /// The file.
        file: PathBuf,
        /// What FFmpeg said.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot write data set: {source}; path `{}`", named(path))]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Options {
    /// Refuses values that no data set can be made with.
    pub fn check(&self) -> Result<(), ShapesError> {
        let bounds = [
            ("size", self.size, 16..=2048, 2, "even, from 16 to 2048"),
            ("frames", self.frames, 2..=4096, 1, "from 2 to 4096"),
            ("fps", self.fps, 1..=240, 1, "from 1 to 240"),
            ("motions", self.motions, 2..=world::MOTIONS.len(), 2, "even, from 2 to 14"),
            ("appearances", self.appearances, 1..=world::APPEARANCES, 1, "from 1 to 24"),
        ];
        for (option, value, range, step, allowed) in bounds {
            if !range.contains(&value) || value % step != 0 {
                return Err(ShapesError::Option { option, value, allowed });
            }
        }
        Ok(())
    }

    fn files(&self) -> usize {
        self.train + self.test + self.untrimmed
    }
}

/// One clip in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeClip {
    /// The pictures.
    pub frames: crate::video::Frames,
    /// Appearance class.
    pub appearance: usize,
    /// Motion class.
    pub motion: usize,
    /// The plainest caption.
    pub caption: String,
}

/// Draws clip `number` of a split as [`generate`] would, without a file and without sound.
pub fn clip(options: &Options, split: &str, number: usize) -> ShapeClip {
    let options = Options { sound: false, masks: false, ..options.clone() };
    let (record, film) = record::make(&options, split, number);
    let (count, height, width) = (options.frames, film.height, film.width);
    ShapeClip {
        frames: crate::video::Frames { data: film.rgb, count, height, width },
        appearance: record.appearance,
        motion: record.motion.unwrap_or_default(),
        caption: record.texts.caption,
    }
}

/// Makes a data set, or finds it complete. `progress` gets (files done, files in all), from several
/// threads. Blocks; uses all of rayon's threads.
pub fn generate(
    out: &Path,
    options: &Options,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Made, ShapesError> {
    options.check()?;
    let found = origin::read(out);
    let equal = found.as_ref().filter(|found| found.format == FORMAT && found.options == *options);
    let broken = equal.and_then(|origin| origin.broken(out));
    if let (Some(origin), None) = (equal, &broken) {
        return Ok(made(out, origin, true));
    }
    let empty = std::fs::read_dir(out).map_or(!out.exists(), |mut list| list.next().is_none());
    match &found {
        None if !empty => return Err(ShapesError::Occupied { dir: out.to_owned() }),
        None => {}
        Some(found) => found.refuse_foreign(out)?,
    }
    let (encoder, notice) = encoder().ok_or(ShapesError::NoEncoder)?;
    let mut origin = Origin::new(options, encoder, notice);
    let part = sibling(out, "partial");
    let result = fill(&part, &mut origin, progress).and_then(|()| replace(&part, out));
    if let Err(error) = result {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_dir_all(&part);
        return Err(error);
    }
    let mut made = made(out, &origin, false);
    if let Some(broken) = broken {
        let again = format!("{broken}; all files of the data set were made again");
        made.notice =
            Some(made.notice.map_or(again.clone(), |notice| format!("{again}; {notice}")));
    }
    Ok(made)
}

fn made(out: &Path, origin: &Origin, reused: bool) -> Made {
    Made {
        dir: out.to_owned(),
        files: origin.options.files(),
        encoder: origin.encoder.clone(),
        notice: origin.notice.clone(),
        reused,
    }
}

/// A hidden path beside a folder, of this process alone.
fn sibling(out: &Path, what: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
}

/// Puts a finished folder in its place.
fn replace(part: &Path, out: &Path) -> Result<(), ShapesError> {
    let io = |source| ShapesError::Io { path: out.to_owned(), source };
    if !out.exists() {
        return std::fs::rename(part, out).map_err(io);
    }
    let old = sibling(out, "old");
    std::fs::rename(out, &old).map_err(io)?;
    std::fs::rename(part, out).map_err(io)?;
    std::fs::remove_dir_all(&old).map_err(io)
}

/// Writes everything into a folder that nobody looks at yet.
fn fill(
    part: &Path,
    origin: &mut Origin,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<(), ShapesError> {
    let options = &origin.options;
    let io = |path: &Path, source| ShapesError::Io { path: path.to_owned(), source };
    let done = AtomicUsize::new(0);
    let splits =
        [("train", options.train), ("test", options.test), ("untrimmed", options.untrimmed)];
    let mut all = Vec::new();
    for (split, count) in splits {
        let dir = part.join(split);
        std::fs::create_dir_all(&dir).map_err(|source| io(&dir, source))?;
        let one = |number: usize| -> Result<Record, ShapesError> {
            let (record, film) = record::make(options, split, number);
            let file = dir.join(&record.path);
            write_film(&film, &origin.encoder, &file)
                .map_err(|reason| ShapesError::Encode { file, reason })?;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, options.files());
            Ok(record)
        };
        let records: Vec<Record> = (0..count).into_par_iter().map(one).collect::<Result<_, _>>()?;
        for (name, bytes) in listing(split, &records) {
            save(&dir.join(name), &bytes).map_err(|source| io(&dir.join(name), source))?;
        }
        if split != "untrimmed" {
            all.extend(records);
        }
    }
    let beside = [("manifest.csv", manifest::csv_of_splits(&all))];
    for (name, bytes) in beside.into_iter().chain(vocabulary::files()) {
        save(&part.join(name), &bytes).map_err(|source| io(&part.join(name), source))?;
    }
    origin.measure(part)?;
    let name = part.join("shapes.json");
    let text = serde_json::to_vec_pretty(origin).unwrap_or_default();
    save(&name, &text).map_err(|source| io(&name, source))
}

/// Names and bytes of the manifests of a folder.
fn listing(folder: &str, records: &[Record]) -> Vec<(&'static str, Vec<u8>)> {
    let jsonl = ("manifest.jsonl", manifest::jsonl(records));
    if folder != "untrimmed" {
        return vec![("manifest.csv", manifest::csv(records)), jsonl];
    }
    let grounding = ("grounding.csv", manifest::csv_of_grounding(records));
    vec![("manifest.csv", manifest::csv_of_events(records)), grounding, jsonl]
}

/// Writes a file through to the disk.
fn save(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
