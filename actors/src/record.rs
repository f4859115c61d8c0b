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

/// The record cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {error}")]
pub struct RecordError {
    path: String,
    error: std::io::Error,
}

/// The file, open for the whole run.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl Record {
    /// Opens the file and cuts it back to `bytes`; 0 starts anew.
    pub fn open(path: &Path, bytes: u64) -> Result<Self, RecordError> {
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true);
        let fail = |error| RecordError { path: path.display().to_string(), error };
        let file = BufWriter::new(options.open(path).map_err(fail)?);
        let mut record = Self { path: path.to_owned(), file, bytes: 0 };
        record.cut(bytes)?;
        Ok(record)
    }

    fn fail(&self) -> impl FnOnce(std::io::Error) -> RecordError {
        let path = self.path.display().to_string();
        |error| RecordError { path, error }
    }

    /// Forgets everything after `bytes`.
    pub fn cut(&mut self, bytes: u64) -> Result<(), RecordError> {
        self.try_cut(bytes).map_err(self.fail())
    }

    fn try_cut(&mut self, bytes: u64) -> std::io::Result<()> {
        self.file.flush()?;
        let file = self.file.get_mut();
        let keep = bytes.min(file.metadata()?.len());
        file.set_len(keep)?;
        file.seek(SeekFrom::End(0))?;
        self.bytes = keep;
        if keep == 0 {
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
        let mut first = Record::open(&a, 0).unwrap();
        first.write(&[row(0, 0.1)]).unwrap();
        let bytes = first.sync().unwrap();
        first.write(&[row(1, f64::from(0.2f32))]).unwrap();
        first.cut(bytes).unwrap();
        first.write(&[row(1, 3.0)]).unwrap();
        drop(first);
        let mut second = Record::open(&b, 0).unwrap();
        second.write(&[row(0, 0.1), row(1, 3.0)]).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    }
}
