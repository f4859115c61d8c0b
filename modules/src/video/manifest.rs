//! Which videos a data set has, and what is said about them.
//!
//! A folder is searched for known extensions, unless it holds a `manifest.csv` or `manifest.jsonl`.
//! A CSV or JSONL manifest has a `path` column, relative to the manifest, and optionally `start` and
//! `end` in seconds and `split`; all other columns are labels (integers) and texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::named::{named, one_line};

/// Extensions that a folder is searched for.
pub const EXTENSIONS: [&str; 19] = [
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "m2ts", "flv", "wmv",
    "ogv", "3gp", "ivf", "mjpeg", "nut", "asf",
];

/// One video, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The file; absolute, or relative to the working directory.
    pub file: PathBuf,
    /// Its path as the manifest or the folder names it, and a number for repeated paths: stable
    /// when the data set moves.
    pub id: String,
    /// Where the clip begins, in seconds.
    pub start: Option<f64>,
    /// Where the clip ends, in seconds.
    pub end: Option<f64>,
    /// Such as `train`.
    pub split: Option<String>,
    /// Integer columns.
    pub labels: BTreeMap<String, i64>,
    /// Text columns.
    pub texts: BTreeMap<String, String>,
}

/// The videos of a data set in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manifest {
    /// The videos.
    pub entries: Vec<Entry>,
    /// Files of a folder whose extension is none of [`EXTENSIONS`].
    pub ignored: usize,
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
    /// The file is no folder, CSV or JSONL.
    #[error("`{}` is none of a folder, `.csv`, `.jsonl`", named(path))]
    Unknown {
        /// The path.
        path: PathBuf,
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
    /// Lines of a manifest cannot be used; all of them are listed.
    #[error("{} unusable lines in a manifest:\n{}", problems.len(), problems.join("\n"))]
    Lines {
        /// `file:line: what is wrong`.
        problems: Vec<String>,
    },
}

impl Manifest {
    /// Reads a folder, a `.csv` or a `.jsonl`; keeps only the entries of a split where one is
    /// named. A folder's split is its sub-folder of that name.
    pub fn read(path: &Path, split: Option<&str>) -> Result<Self, ManifestError> {
        if !path.exists() {
            return Err(ManifestError::Missing { path: path.to_owned() });
        }
        let extension = path.extension().map(|text| text.to_string_lossy().to_lowercase());
        let mut manifest = match extension.as_deref() {
            _ if path.join("manifest.csv").is_file() => csv_file(&path.join("manifest.csv"))?,
            _ if path.join("manifest.jsonl").is_file() => jsonl_file(&path.join("manifest.jsonl"))?,
            _ if path.is_dir() => folder(path)?,
            Some("csv") => csv_file(path)?,
            Some("jsonl") => jsonl_file(path)?,
            _ => return Err(ManifestError::Unknown { path: path.to_owned() }),
        };
        if manifest.entries.is_empty() {
            let ignored = manifest.ignored;
            return Err(ManifestError::NoVideos { path: path.to_owned(), ignored });
        }
        if let Some(split) = split {
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
        Ok(manifest)
    }
}

/// All videos below a folder, sorted by path.
fn folder(root: &Path) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
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
            } else if is_video(&file) {
                manifest.entries.push(found(root, file));
            } else {
                manifest.ignored += 1;
            }
        }
    }
    manifest.entries.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(manifest)
}

fn is_video(file: &Path) -> bool {
    let extension = file.extension().map(|text| text.to_string_lossy().to_lowercase());
    extension.is_some_and(|text| EXTENSIONS.contains(&text.as_str()))
}

fn found(root: &Path, file: PathBuf) -> Entry {
    let inner = file.strip_prefix(root).unwrap_or(&file).to_owned();
    let mut parts = inner.components();
    let first = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let split = if parts.next().is_some() { first } else { None };
    let id = inner.to_string_lossy().into_owned();
    let (labels, texts) = (BTreeMap::new(), BTreeMap::new());
    Entry { file, id, start: None, end: None, split, labels, texts }
}

/// Gathers the entries and the problems of one manifest file.
struct Lines<'a> {
    path: &'a Path,
    entries: Vec<Entry>,
    problems: Vec<String>,
    seen: BTreeMap<String, usize>,
}

impl<'a> Lines<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, entries: Vec::new(), problems: Vec::new(), seen: BTreeMap::new() }
    }

    fn problem(&mut self, line: u64, what: &str) {
        self.problems.push(format!("{}:{line}: {what}", named(self.path)));
    }

    /// Turns the fields of a line into an entry.
    fn add(&mut self, line: u64, fields: impl Iterator<Item = (String, Value)>) {
        let mut entry = Entry {
            file: PathBuf::new(),
            id: String::new(),
            start: None,
            end: None,
            split: None,
            labels: BTreeMap::new(),
            texts: BTreeMap::new(),
        };
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("path", Value::String(text)) => entry.id = text,
                (_, Value::Null) => {}
                ("start" | "end", value) => {
                    let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0);
                    if seconds.is_none() {
                        let what = format!("`{name}` is {value}, not a number of seconds from 0");
                        return self.problem(line, &what);
                    }
                    if name == "start" { entry.start = seconds } else { entry.end = seconds }
                }
                ("split", value) => entry.split = Some(as_text(&value)),
                (_, Value::Number(number)) if number.is_i64() => {
                    entry.labels.insert(name, number.as_i64().unwrap_or_default());
                }
                (_, Value::String(text)) => {
                    entry.texts.insert(name, text);
                }
                // Structured values (boxes, questions) are for those who read the file themselves.
                _ => {}
            }
        }
        if entry.id.is_empty() {
            return self.problem(line, "`path` is missing or empty");
        }
        if let (Some(start), Some(end)) = (entry.start, entry.end)
            && end <= start
        {
            return self.problem(line, &format!("`end` {end} is not after `start` {start}"));
        }
        entry.file = self.path.parent().unwrap_or(Path::new("")).join(&entry.id);
        let times = self.seen.entry(entry.id.clone()).or_insert(0);
        if *times > 0 {
            entry.id = format!("{}#{times}", entry.id);
        }
        *times += 1;
        self.entries.push(entry);
    }

    fn finish(self) -> Result<Manifest, ManifestError> {
        if self.problems.is_empty() {
            Ok(Manifest { entries: self.entries, ignored: 0 })
        } else {
            Err(ManifestError::Lines { problems: self.problems })
        }
    }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn csv_file(path: &Path) -> Result<Manifest, ManifestError> {
    let io = |reason: String| ManifestError::Io { path: path.to_owned(), reason };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(|error| io(error.to_string()))?;
    let head = reader.headers().map_err(|error| io(error.to_string()))?.clone();
    let mut lines = Lines::new(path);
    if !head.iter().any(|name| name == "path") {
        lines.problem(1, "no column is named `path`; the first line names the columns");
        return lines.finish();
    }
    let mut record = csv::StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => return lines.finish(),
            Ok(true) => {}
            Err(error) => {
                let line = error.position().map_or(reader.position().line(), csv::Position::line);
                lines.problem(line, &complaint(&error));
                if matches!(error.kind(), csv::ErrorKind::Io(_)) {
                    return lines.finish();
                }
                continue;
            }
        }
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != head.len() {
            let what = format!("{} fields, but the first line names {}", record.len(), head.len());
            lines.problem(line, &what);
            continue;
        }
        let field = |(name, text): (&str, &str)| {
            let value = match (text.parse::<i64>(), text.parse::<f64>()) {
                _ if name == "path" => Value::from(text),
                _ if text.is_empty() => Value::Null,
                (Ok(number), _) => Value::from(number),
                (_, Ok(number)) if matches!(name, "start" | "end") => Value::from(number),
                _ => Value::from(text),
            };
            (name.to_owned(), value)
        };
        lines.add(line, head.iter().zip(record.iter()).map(field));
    }
}

/// What is wrong with a CSV line, without the position that is printed before it.
fn complaint(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "the text is not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

fn jsonl_file(path: &Path) -> Result<Manifest, ManifestError> {
    let io = |error: std::io::Error| ManifestError::Io {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let bytes = std::fs::read(path).map_err(io)?;
    let mut lines = Lines::new(path);
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = number as u64 + 1;
        match serde_json::from_slice::<serde_json::Map<String, Value>>(line) {
            Ok(fields) => lines.add(number, fields.into_iter()),
            Err(error) => lines.problem(number, &format!("not a JSON object: {error}")),
        }
    }
    lines.finish()
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
        let manifest = Manifest::read(dir.path(), None).unwrap();
        let ids: Vec<&str> = manifest.entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!((ids, manifest.ignored), (vec!["c.gif", "train/b.mp4", "train/deep/a.MKV"], 2));
        assert_eq!(Manifest::read(dir.path(), Some("train")).unwrap().entries.len(), 2);
        let error = Manifest::read(dir.path(), Some("test")).unwrap_err().to_string();
        assert!(error.contains("splits are `train`"), "{error}");
    }

    #[test]
    fn a_csv_gives_labels_texts_and_seconds_relative_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.csv");
        let text =
            "path,start,end,split,label,caption\na.mp4,0.5,2,train,3,\"a, b\"\na.mp4,,,test,4,c\n";
        std::fs::write(&path, text).unwrap();
        let entries = Manifest::read(&path, None).unwrap().entries;
        assert_eq!(entries[0].file, dir.path().join("a.mp4"));
        assert_eq!((entries[0].start, entries[0].end), (Some(0.5), Some(2.0)));
        assert_eq!(entries[0].texts["caption"], "a, b");
        assert_eq!((entries[1].labels["label"], entries[1].start), (4, None));
        assert_eq!(entries[1].id, "a.mp4#1");
        assert_eq!(Manifest::read(&path, Some("test")).unwrap().entries.len(), 1);
    }

    #[test]
    fn every_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (csv, jsonl) = (dir.path().join("a.csv"), dir.path().join("b.jsonl"));
        std::fs::write(&csv, "path,start,end\na.mp4,2,1\nb.mp4\n,1,2\nc.mp4,x,\nd.mp4,,\n")
            .unwrap();
        let error = Manifest::read(&csv, None).unwrap_err().to_string();
        for part in ["a.csv:2: `end`", "a.csv:3: 1 fields", "a.csv:4: `path`", "a.csv:5: `start`"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        std::fs::write(&jsonl, "{\"path\":\"a.mp4\",\"label\":1}\n{oops}\n[]\n").unwrap();
        let error = Manifest::read(&jsonl, None).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:2:") && error.contains("b.jsonl:3:"), "{error}");
        let gone = Manifest::read(&dir.path().join("gone"), None).unwrap_err().to_string();
        assert!(gone.contains("playhouse data shapes"), "{gone}");
    }
}
