//! Which videos a data set has, and what is said about them.
//!
//! A folder is searched for videos, pictures and shards, unless it holds a `manifest.csv`,
//! `manifest.jsonl` or `manifest.json`. A manifest has a `path` column, relative to the manifest, and
//! optionally `start` and `end` (seconds, or `hh:mm:ss.fff`) and `split`; all other columns are the
//! record of the entry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::json_manifest::json_file;
use super::lines::{csv_file, jsonl_file};
use super::media::Media;
use super::named::{named, one_line};
use super::record::Record;
use super::shards;

/// Extensions of pictures, which are clips of one frame.
pub const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Extensions of videos.
pub const VIDEOS: [&str; 19] = [
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "m2ts", "flv", "wmv",
    "ogv", "3gp", "ivf", "mjpeg", "nut", "asf",
];

/// One video, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where its frames lie.
    pub media: Media,
    /// Where its sound lies, if not there too.
    pub sound: Option<Media>,
    /// Its path as the manifest or the folder names it, and a number for repeated paths: stable
    /// when the data set moves.
    pub id: String,
    /// Where the clip begins, in seconds.
    pub start: Option<f64>,
    /// Where the clip ends, in seconds.
    pub end: Option<f64>,
    /// Such as `train`.
    pub split: Option<String>,
    /// All other columns.
    pub record: Arc<Record>,
}

/// Which entries of a data set are read, and how its columns are named.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Only entries of this split. A folder's split is its sub-folder of that name.
    pub split: Option<String>,
    /// A name that is used here, and the manifest's column for it, or a text with columns in braces
    /// such as `{page_dir}/{videoid}.mp4`.
    pub columns: BTreeMap<String, String>,
    /// Stands before every path.
    pub prefix: String,
    /// Stands after every path.
    pub suffix: String,
    /// Whether lists or objects are wanted, which a CSV cannot hold: then the `manifest.jsonl` of a
    /// folder is read although it has a `manifest.csv`.
    pub nested: bool,
}

impl Reading {
    /// The entries of one split.
    pub fn of_split(split: &str) -> Self {
        Self { split: Some(split.to_owned()), ..Self::default() }
    }
}

/// The videos of a data set in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manifest {
    /// The videos.
    pub entries: Vec<Entry>,
    /// Files of a folder, and members of shards, whose extension is not known.
    pub ignored: usize,
    /// Entries of a list or an archive that have no video and no picture, and are left out.
    pub unseen: usize,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// The path does not exist.
    #[error(
        "no data at `{}`; check the path, or make a set with `playhouse data shapes DIR`: its videos are in DIR/train and DIR/test",
        named(path)
    )]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot read data: {reason}; path `{}`", named(path))]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is no folder, manifest or shard.
    #[error("`{}` is none of a folder, `.csv`, `.jsonl`, `.json`, `.tar`", named(path))]
    Unknown {
        /// The path.
        path: PathBuf,
    },
    /// A pattern of shards cannot be read.
    #[error("{reason}")]
    Pattern {
        /// What is wrong, and what to write.
        reason: String,
    },
    /// There are no videos.
    #[error(
        "no videos in `{}` ({ignored} files with other extensions); put videos there, such as `.mp4`",
        named(path)
    )]
    NoVideos {
        /// The path.
        path: PathBuf,
        /// Files with other extensions.
        ignored: usize,
    },
    /// No entry belongs to the split.
    #[error("no entry of split `{split}` in `{}`; splits are {known}", named(path))]
    NoSplit {
        /// The path.
        path: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits there are.
        known: String,
    },
    /// Lines of a manifest cannot be used; the first of them are listed.
    #[error("{} unusable lines in a manifest:\n{}", problems.len(), first(problems))]
    Lines {
        /// `file:line: what is wrong`.
        problems: Vec<String>,
    },
}

/// The first problems, one a line, and how many are left.
fn first(problems: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = problems[..problems.len().min(SHOWN)].join("\n");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        left => format!("{shown}\nand {left} more"),
    }
}

impl Manifest {
    /// Reads a folder, a `.csv`, a `.jsonl`, a `.json`, a `.tar`, or a pattern of shards such as
    /// `shards-{000..009}.tar`.
    pub fn read(path: &Path, how: &Reading) -> Result<Self, ManifestError> {
        let pattern = |reason| ManifestError::Pattern { reason };
        let manifest = if path.exists() {
            Self::of_path(path, how)?
        } else if let Some(files) = shards::expand(path).map_err(pattern)? {
            shards::read(&files, None, how)?
        } else {
            return Err(ManifestError::Missing { path: path.to_owned() });
        };
        manifest.of_split(path, how)
    }

    fn of_path(path: &Path, how: &Reading) -> Result<Self, ManifestError> {
        let inside = if how.nested {
            ["manifest.jsonl", "manifest.json", "manifest.csv"]
        } else {
            ["manifest.csv", "manifest.jsonl", "manifest.json"]
        };
        let inside = inside.map(|name| path.join(name)).into_iter().find(|file| file.is_file());
        let file = inside.as_deref().unwrap_or(path);
        match extension(file).as_deref() {
            _ if file.is_dir() => folder(file, how),
            Some("csv") => csv_file(file, how),
            Some("jsonl") => jsonl_file(file, how),
            Some("json") => json_file(file, how),
            Some("tar") => shards::read(&[file.to_owned()], None, how),
            _ => Err(ManifestError::Unknown { path: path.to_owned() }),
        }
    }

    /// Adds the entries of another part of the data set.
    pub(super) fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.ignored += other.ignored;
        self.unseen += other.unseen;
    }

    /// Keeps the entries of the split that is asked for.
    fn of_split(mut self, path: &Path, how: &Reading) -> Result<Self, ManifestError> {
        let manifest = &mut self;
        if manifest.entries.is_empty() {
            let ignored = manifest.ignored;
            return Err(ManifestError::NoVideos { path: path.to_owned(), ignored });
        }
        if let Some(split) = how.split.as_deref() {
            let known: std::collections::BTreeSet<String> =
                manifest.entries.iter().filter_map(|entry| entry.split.clone()).collect();
            manifest.entries.retain(|entry| entry.split.as_deref() == Some(split));
            if manifest.entries.is_empty() {
                let known =
                    Vec::from_iter(known.iter().map(|name| format!("`{}`", one_line(name))))
                        .join(", ");
                let known = if known.is_empty() { "not given".to_owned() } else { known };
                let (path, split) = (path.to_owned(), split.to_owned());
                return Err(ManifestError::NoSplit { path, split, known });
            }
        }
        Ok(self)
    }
}

/// All videos and pictures below a folder, sorted by path, and then those in its shards.
fn folder(root: &Path, how: &Reading) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    let mut archives = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let io = |error: std::io::Error| ManifestError::Io {
            path: dir.clone(),
            reason: error.to_string(),
        };
        for item in std::fs::read_dir(&dir).map_err(io)? {
            let item = item.map_err(io)?;
            let (file, kind) = (item.path(), item.file_type().map_err(io)?);
            // A linked folder could lead back up; a linked file cannot.
            if kind.is_dir() {
                open.push(file);
            } else {
                match extension(&file) {
                    Some(end) if VIDEOS.contains(&&*end) || IMAGES.contains(&&*end) => {
                        manifest.entries.push(found(root, file));
                    }
                    Some(end) if end == "tar" => archives.push(file),
                    _ => manifest.ignored += 1,
                }
            }
        }
    }
    manifest.entries.sort_by(|a, b| a.media.cmp(&b.media));
    archives.sort();
    manifest.extend(shards::read(&archives, Some(root), how)?);
    Ok(manifest)
}

fn extension(file: &Path) -> Option<String> {
    file.extension().map(|text| text.to_string_lossy().to_lowercase())
}

fn found(root: &Path, file: PathBuf) -> Entry {
    let inner = file.strip_prefix(root).unwrap_or(&file).to_owned();
    let mut parts = inner.components();
    let first = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let split = if parts.next().is_some() { first } else { None };
    let id = inner.to_string_lossy().into_owned();
    let media = Media::from(file);
    Entry { media, sound: None, id, start: None, end: None, split, record: Arc::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_searched_in_order_and_other_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("train/deep")).unwrap();
        for name in ["train/b.mp4", "train/deep/a.MKV", "c.gif", "notes.txt", "train/x.json"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let manifest = Manifest::read(dir.path(), &Reading::default()).unwrap();
        let ids: Vec<&str> = manifest.entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!((ids, manifest.ignored), (vec!["c.gif", "train/b.mp4", "train/deep/a.MKV"], 2));
        assert_eq!(
            Manifest::read(dir.path(), &Reading::of_split("train")).unwrap().entries.len(),
            2
        );
        let error = Manifest::read(dir.path(), &Reading::of_split("test")).unwrap_err().to_string();
        assert!(error.contains("splits are `train`"), "{error}");
    }

    #[test]
    fn a_csv_gives_labels_texts_and_seconds_relative_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        let text =
            "path,start,end,split,label,caption\na.mp4,0.5,2,train,3,\"a, b\"\na.mp4,,,test,4,c\n";
        std::fs::write(&path, text).unwrap();
        let entries = Manifest::read(&path, &Reading::default()).unwrap().entries;
        assert_eq!(entries[0].media.file, dir.path().join("a.mp4"));
        assert_eq!((entries[0].start, entries[0].end), (Some(0.5), Some(2.0)));
        assert_eq!(entries[0].record.get("caption").unwrap(), "a, b");
        assert_eq!((entries[1].record.integer("label"), entries[1].start), (Some(4), None));
        assert_eq!(entries[1].id, "a.mp4#1");
        assert_eq!(Manifest::read(&path, &Reading::of_split("test")).unwrap().entries.len(), 1);
    }

    #[test]
    fn every_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (csv, jsonl) = (dir.path().join("a.csv"), dir.path().join("b.jsonl"));
        std::fs::write(&csv, "path,start,end\na.mp4,2,1\nb.mp4\n,1,2\nc.mp4,x,\nd.mp4,,\n")
            .unwrap();
        let error = Manifest::read(&csv, &Reading::default()).unwrap_err().to_string();
        for part in ["a.csv:2: `end`", "a.csv:3: 1 fields", "a.csv:4: `path`", "a.csv:5: `start`"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        std::fs::write(&jsonl, "{\"path\":\"a.mp4\",\"label\":1}\n{oops}\n[]\n").unwrap();
        let error = Manifest::read(&jsonl, &Reading::default()).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:2:") && error.contains("b.jsonl:3:"), "{error}");
        let gone =
            Manifest::read(&dir.path().join("gone"), &Reading::default()).unwrap_err().to_string();
        assert!(gone.contains("playhouse data shapes"), "{gone}");
    }
}
