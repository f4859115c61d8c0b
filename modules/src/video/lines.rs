//! CSV and JSONL manifests: lines to entries, with every line that cannot be used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::manifest::{Entry, Manifest, ManifestError, Reading};
use super::media::Media;
use super::named::{named, one_line};
use super::record::Record;

/// Gathers the entries and the problems of one manifest file.
pub(super) struct Lines<'a> {
    path: &'a Path,
    how: &'a Reading,
    entries: Vec<Entry>,
    problems: Vec<String>,
    seen: BTreeMap<String, usize>,
    /// Entries that have no picture, and are left out.
    pub(super) unseen: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(path: &'a Path, how: &'a Reading) -> Self {
        let (entries, problems, seen) = Default::default();
        Self { path, how, entries, problems, seen, unseen: 0 }
    }

    pub(super) fn problem(&mut self, place: impl std::fmt::Display, what: &str) {
        self.problems.push(format!("{}:{place}: {}", named(self.path), one_line(what)));
    }

    /// Turns the fields of a line into an entry. `place` is the line, or what stands for it.
    pub(super) fn add(&mut self, place: impl std::fmt::Display, fields: Map<String, Value>) {
        self.put(place, fields, None);
    }

    /// As [`Lines::add`], with frames and sound where they were found.
    pub(super) fn put(
        &mut self,
        place: impl std::fmt::Display,
        fields: Map<String, Value>,
        found: Option<(Media, Option<Media>)>,
    ) {
        match self.entry(fields, found) {
            Ok(entry) => self.entries.push(entry),
            Err(what) => self.problem(place, &what),
        }
    }

    fn entry(
        &mut self,
        mut fields: Map<String, Value>,
        found: Option<(Media, Option<Media>)>,
    ) -> Result<Entry, String> {
        for (name, form) in &self.how.columns {
            let value = column(&fields, form)?;
            fields.insert(name.clone(), value);
        }
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let path = match take("path") {
            Some(value @ (Value::Array(_) | Value::Object(_))) => {
                return Err(format!("`path` is {value}, not a text"));
            }
            value => value.map(|value| as_text(&value)).filter(|path| !path.is_empty()),
        };
        let path = path.ok_or_else(|| "`path` is missing or empty".to_owned())?;
        let start = take("start").map(|value| seconds("start", &value)).transpose()?;
        let end = take("end").map(|value| seconds("end", &value)).transpose()?;
        let split = take("split").map(|value| as_text(&value));
        if let (Some(start), Some(end)) = (start, end)
            && end <= start
        {
            return Err(format!("`end` {end} is not after `start` {start}"));
        }
        let (media, sound) = found.unwrap_or_else(|| {
            let Reading { prefix, suffix, .. } = self.how;
            let file = PathBuf::from(format!("{prefix}{path}{suffix}"));
            (self.path.parent().unwrap_or(Path::new("")).join(file).into(), None)
        });
        let times = self.seen.entry(path.clone()).or_insert(0);
        let id = if *times > 0 { format!("{path}#{times}") } else { path };
        *times += 1;
        let record = Arc::new(Record::from(fields));
        Ok(Entry { media, sound, id, start, end, split, record })
    }

    pub(super) fn finish(self) -> Result<Manifest, ManifestError> {
        if self.problems.is_empty() {
            Ok(Manifest { entries: self.entries, ignored: 0, unseen: self.unseen })
        } else {
            Err(ManifestError::Lines { problems: self.problems })
        }
    }
}

/// The value of a column, or of a text with columns in braces.
fn column(fields: &Map<String, Value>, form: &str) -> Result<Value, String> {
    let find = |name: &str| {
        let known = || fields.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let missing = || format!("there is no column `{name}`; there are {}", known());
        fields.get(name).ok_or_else(missing)
    };
    if !form.contains('{') {
        return find(form).cloned();
    }
    let (mut text, mut rest) = (String::new(), form);
    while let Some((before, after)) = rest.split_once('{') {
        let unclosed = || format!("`{form}` in `columns` opens a brace that it does not close");
        let (name, after) = after.split_once('}').ok_or_else(unclosed)?;
        text.push_str(before);
        match find(name)? {
            Value::Null => return Err(format!("column `{name}` is empty, but `columns` needs it")),
            value => text.push_str(&as_text(value)),
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(Value::from(text))
}

/// Seconds from a number, a text with one, or `hh:mm:ss.fff`.
fn seconds(name: &str, value: &Value) -> Result<f64, String> {
    let clock = |text: &str| -> Option<f64> {
        let parts: Vec<f64> =
            text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let whole = |part: &f64| *part >= 0.0 && part.is_finite();
        let fits = parts.len() <= 3 && parts.iter().all(whole);
        fits.then(|| parts.iter().fold(0.0, |sum, part| sum * 60.0 + part))
    };
    let found = match value {
        Value::String(text) => clock(text),
        value => value.as_f64().filter(|seconds| *seconds >= 0.0),
    };
    found.ok_or_else(|| {
        format!("`{name}` is {value}, not a number of seconds from 0, nor `hh:mm:ss`")
    })
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The entries of a CSV file, whose first line names the columns.
pub(super) fn csv_file(path: &Path, how: &Reading) -> Result<Manifest, ManifestError> {
    let io = |reason: String| ManifestError::Io { path: path.to_owned(), reason };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(|error| io(error.to_string()))?;
    let head = reader.headers().map_err(|error| io(error.to_string()))?.clone();
    let mut lines = Lines::new(path, how);
    if !how.columns.contains_key("path") && !head.iter().any(|name| name == "path") {
        lines.problem(1, &no_path(&head));
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
            let value = if text.is_empty() { Value::Null } else { Value::from(text) };
            (name.to_owned(), value)
        };
        lines.add(line, head.iter().zip(record.iter()).map(field).collect());
    }
}

/// What to write when no column is named `path`.
fn no_path(head: &csv::StringRecord) -> String {
    let known: Vec<String> = head.iter().map(|name| format!("`{name}`")).collect();
    let has = |name: &str| head.iter().any(|known| known == name);
    let form = if has("videoid") && has("page_dir") {
        "{ path: \"{page_dir}/{videoid}.mp4\", caption: name }"
    } else if has("YoutubeID") {
        "{ path: \"{YoutubeID}.mp4\", start: Start_timestamp, end: End_timestamp, caption: Caption }"
    } else {
        "{ path: THAT_COLUMN }"
    };
    format!(
        "no column is named `path`; the first line names {}; rename one, or write `columns: {form}`",
        known.join(", ")
    )
}

/// What is wrong with a CSV line, without the position that is printed before it.
fn complaint(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "the text is not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

/// The entries of a file with one JSON object a line.
pub(super) fn jsonl_file(path: &Path, how: &Reading) -> Result<Manifest, ManifestError> {
    let io = |error: std::io::Error| ManifestError::Io {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let bytes = std::fs::read(path).map_err(io)?;
    let mut lines = Lines::new(path, how);
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = number as u64 + 1;
        match serde_json::from_slice::<Map<String, Value>>(line) {
            Ok(fields) => lines.add(number, fields),
            Err(error) => lines.problem(number, &format!("not a JSON object: {error}")),
        }
    }
    lines.finish()
}
