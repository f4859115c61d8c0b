//! `metrics.csv`: what every node measured, exactly, and cut back when a run rewinds.
//!
//! One line per number: `stage,step,node,metric,value`. A value is printed with as many digits as
//! tell it from its neighbours, so equal bits give equal text.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

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

/// The file, open for the whole run.
#[derive(Debug)]
pub struct Record {
    file: BufWriter<File>,
    bytes: u64,
}

impl Record {
    /// Opens the file and cuts it back to `bytes`; 0 starts anew.
    pub fn open(path: &Path, bytes: u64) -> std::io::Result<Self> {
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut record = Self { file: BufWriter::new(file), bytes: 0 };
        record.cut(bytes)?;
        Ok(record)
    }

    /// Forgets everything after `bytes`.
    pub fn cut(&mut self, bytes: u64) -> std::io::Result<()> {
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
    pub fn write(&mut self, rows: &[Row]) -> std::io::Result<()> {
        for row in rows {
            let Row { stage, step, node, metric, value } = row;
            let line = format!("{stage},{step},{node},{metric},{value}\n");
            self.file.write_all(line.as_bytes())?;
            self.bytes += line.len() as u64;
        }
        self.file.flush()
    }

    /// Bytes so far; on disk once this returns.
    pub fn sync(&mut self) -> std::io::Result<u64> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
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
