//! `metrics.csv`: what every node measured, exactly, and cut back when a run rewinds.
//!
//! One line per number: `stage,step,node,metric,value`. A value is printed with as many digits as
//! tell it from its neighbours, so equal bits give equal text.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const HEADER: &str = "stage,step,node,metric,value\n";

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name of the stage.
    pub stage: String,
    /// Step of the run.
    pub step: u64,
    /// Node, or `supervisor`.
    pub node: String,
    /// What was measured.
    pub metric: String,
    /// How much.
    pub value: f64,
}

/// The record cannot be written, or lacks what it should have.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot write {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Numbers of steps that are over are gone.
    #[error("{path} has {bytes} bytes, {needed} are needed to go on")]
    Short {
        /// The file.
        path: String,
        /// Bytes that are there.
        bytes: u64,
        /// Bytes that should be.
        needed: u64,
    },
}

/// The file, open for the whole run.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl Record {
    /// Opens the file as it is. It must be [`cut`](Self::cut) before anything is written.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true);
        let fail = |error| RecordError::Io { path: path.display().to_string(), error };
        let file = BufWriter::new(options.open(path).map_err(fail)?);
        Ok(Self { path: path.to_owned(), file, bytes: 0 })
    }

    fn fail(&self) -> impl FnOnce(std::io::Error) -> RecordError + use<> {
        let path = self.path.display().to_string();
        |error| RecordError::Io { path, error }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets everything after `bytes`; 0 starts anew. A file that is shorter is not touched.
    pub fn cut(&mut self, bytes: u64) -> Result<(), RecordError> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().metadata());
        let there = flushed.map_err(self.fail())?.len();
        if there < bytes {
            let path = self.path.display().to_string();
            return Err(RecordError::Short { path, bytes: there, needed: bytes });
        }
        self.try_cut(bytes).map_err(self.fail())
    }

    fn try_cut(&mut self, bytes: u64) -> std::io::Result<()> {
        let file = self.file.get_mut();
        file.set_len(bytes)?;
        file.seek(SeekFrom::End(0))?;
        self.bytes = bytes;
        if bytes == 0 {
            self.file.write_all(HEADER.as_bytes())?;
            self.file.flush()?;
            self.bytes = HEADER.len() as u64;
        }
        Ok(())
    }

    /// Adds the rows of one step.
    pub fn write(&mut self, rows: &[Row]) -> Result<(), RecordError> {
        let mut text = String::new();
        for Row { stage, step, node, metric, value } in rows {
            text.push_str(&format!("{stage},{step},{node},{metric},{value}\n"));
        }
        self.bytes += text.len() as u64;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(self.fail())
    }

    /// Bytes so far; on disk once this returns.
    pub fn sync(&mut self) -> Result<u64, RecordError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(self.fail())?;
        Ok(self.bytes)
    }
}

/// All rows of a file, in order. A last line that is not whole is left out.
pub fn read(path: &Path) -> Result<Vec<Row>, RecordError> {
    let fail = |error| RecordError::Io { path: path.display().to_string(), error };
    let text = std::fs::read_to_string(path).map_err(fail)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let row = |line: &str| {
        let mut fields = line.splitn(5, ',');
        let mut next = || fields.next().map(str::to_owned);
        let (stage, step, node, metric) = (next()?, next()?, next()?, next()?);
        let (step, value) = (step.parse().ok()?, next()?.parse().ok()?);
        Some(Row { stage, step, node, metric, value })
    };
    Ok(whole.lines().skip(1).filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, value: f64) -> Row {
        Row { stage: "s".into(), step, node: "n".into(), metric: "loss".into(), value }
    }

    #[test]
    fn a_rewound_record_equals_one_that_never_went_on() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.csv"), folder.path().join("b.csv"));
        let mut first = Record::open(&a).unwrap();
        first.cut(0).unwrap();
        first.write(&[row(0, 0.1)]).unwrap();
        let bytes = first.sync().unwrap();
        first.write(&[row(1, f64::from(0.2f32))]).unwrap();
        first.cut(bytes).unwrap();
        first.write(&[row(1, 3.0)]).unwrap();
        drop(first);
        let mut second = Record::open(&b).unwrap();
        second.cut(0).unwrap();
        second.write(&[row(0, 0.1), row(1, 3.0)]).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    }

    #[test]
    fn a_record_that_is_too_short_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        std::fs::write(&path, "stage,st").unwrap();
        let error = Record::open(&path).unwrap().cut(9).unwrap_err().to_string();
        assert!(error.ends_with("metrics.csv has 8 bytes, 9 are needed to go on"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"stage,st");
    }
}
