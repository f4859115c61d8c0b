//! TensorBoard event files under `tb/`: every number of every step.
//!
//! The format is TFRecord around `Event` messages: length, checksum of the length, bytes,
//! checksum of the bytes. The few fields that are needed are written by hand.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::observer::{self, Happening, Observer, Open, Verdict};
use crate::record::Row;

/// Options and state.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TensorBoard {
    /// Steps between written steps.
    every: u64,
    #[serde(skip)]
    file: Option<BufWriter<File>>,
}

impl Default for TensorBoard {
    fn default() -> Self {
        Self { every: 1, file: None }
    }
}

impl Open for TensorBoard {
    fn open(&mut self, run: &Path) -> Result<(), String> {
        let folder = run.join("tb");
        fs::create_dir_all(&folder)
            .map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        let seconds = wall_time() as u64;
        let name = format!("events.out.tfevents.{seconds:010}.{}", std::process::id());
        let path = folder.join(name);
        let fail = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
        let mut file = BufWriter::new(File::create(&path).map_err(fail)?);
        write_record(&mut file, &version_event(wall_time())).map_err(fail)?;
        self.file = Some(file);
        Ok(())
    }
}

impl Observer for TensorBoard {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        let Some(file) = &mut self.file else { return Verdict::GoOn };
        let written = match happening {
            Happening::Stepped { step, rows, .. } if step.is_multiple_of(self.every.max(1)) => {
                write_record(file, &scalar_event(wall_time(), *step, rows))
            }
            Happening::Saved { .. } | Happening::Ended => file.flush(),
            _ => Ok(()),
        };
        if let Err(error) = written {
            tracing::error!(%error, "TensorBoard events cannot be written; giving up on them");
            self.file = None;
        }
        Verdict::GoOn
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn write_record(out: &mut impl Write, data: &[u8]) -> std::io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked(&length).to_le_bytes())?;
    out.write_all(data)?;
    out.write_all(&masked(data).to_le_bytes())
}

/// TFRecord's rotated CRC-32C.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length-delimited field.
fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// `Event.wall_time` (field 1, double).
fn begin(wall_time: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend_from_slice(&wall_time.to_le_bytes());
    event
}

fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = begin(wall_time);
    field(&mut event, 3, b"brain.Event:2"); // Event.file_version
    event
}

fn scalar_event(wall_time: f64, step: u64, rows: &[Row]) -> Vec<u8> {
    let mut event = begin(wall_time);
    event.push(2 << 3); // Event.step
    varint(&mut event, step);
    let mut summary = Vec::new();
    for row in rows {
        let mut value = Vec::new();
        field(&mut value, 1, format!("{}/{}", row.node, row.metric).as_bytes()); // Value.tag
        value.push(2 << 3 | 5); // Value.simple_value
        value.extend_from_slice(&(row.value as f32).to_le_bytes());
        field(&mut summary, 1, &value);
    }
    field(&mut event, 5, &summary); // Event.summary
    event
}

/// Observer `tensorboard`.
pub const ENTRY: observer::Entry = observer::entry::<TensorBoard>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_scalar_is_written_field_by_field() {
        let row = Row {
            stage: "s".into(),
            step: 300,
            node: "a".into(),
            metric: "loss".into(),
            value: 1.5,
        };
        let event = scalar_event(2.0, 300, &[row]);
        let mut expected = vec![9];
        expected.extend(2.0f64.to_le_bytes());
        expected.extend([16, 0xac, 2, 42, 15, 10, 13, 10, 6]);
        expected.extend(b"a/loss");
        expected.push(21);
        expected.extend(1.5f32.to_le_bytes());
        assert_eq!(event, expected);
    }
}
