//! A checkpoint: a directory with a manifest, complete or absent.
//!
//! Each node's part is one safetensors file. Everything is written into a folder aside, synced,
//! and renamed last; a reader never sees half a checkpoint. The manifest has the checksum of every
//! part, and `manifest.sha256` beside it has the manifest's, as `sha256sum -c` reads it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::frame::{DType, Frame};
use crate::node::Part;

/// The version of the layout that this build writes and reads.
pub const FORMAT: u32 = 1;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Name of the stage that the next step belongs to.
    pub stage: String,
    /// The next step of the run.
    pub step: u64,
    /// Hash of the graph and the curriculum; a run resumes only under the same.
    pub graph: String,
    /// Bytes of `metrics.csv` that belong to the steps before.
    pub metrics_bytes: u64,
    /// Version of the program that wrote it.
    pub version: String,
    /// Parts by node. Nodes that never changed have none.
    pub parts: BTreeMap<String, PartFile>,
}

/// One node's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartFile {
    /// File name inside the checkpoint.
    pub file: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{what}: {error}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file is not what the manifest says.
    #[error("{file}: {reason}")]
    Damaged {
        /// File.
        file: String,
        /// What differs.
        reason: String,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let what = what.into();
    |error| CheckpointError::Io { what, error }
}

/// Writes one part into a folder aside.
pub fn write_part(folder: &Path, node: &str, part: &Part) -> Result<PartFile, CheckpointError> {
    let name = format!("{node}.safetensors");
    let path = folder.join(&name);
    let damaged =
        |reason: String| CheckpointError::Damaged { file: path.display().to_string(), reason };
    let bytes: Vec<(String, Dtype, Vec<usize>, Bytes)> = part
        .tensors
        .iter()
        .map(|(name, frame)| {
            (name.clone(), dtype(frame.dtype()), frame.shape().to_vec(), frame.bytes())
        })
        .collect();
    // The library writes no valid header for a file without tensors.
    let mut views = Vec::new();
    if bytes.is_empty() {
        let nothing = TensorView::new(Dtype::U8, vec![0], &[]);
        views.push((NOTHING, nothing.map_err(|e| damaged(e.to_string()))?));
    }
    for (name, dtype, shape, bytes) in &bytes {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|e| damaged(e.to_string()))?));
    }
    let words = part.words.clone().into_iter().collect();
    let data = serialize(views, Some(words)).map_err(|e| damaged(e.to_string()))?;
    fs::create_dir_all(folder).map_err(io(format!("cannot make {}", folder.display())))?;
    let write = |path: &Path| -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&data)?;
        file.sync_all()
    };
    write(&path).map_err(io(format!("cannot write {}", path.display())))?;
    Ok(PartFile { file: name, bytes: data.len() as u64, sha256: hex(&Sha256::digest(&data)) })
}

/// Tensor of no bytes, in parts without tensors.
const NOTHING: &str = "_";

/// Reads one part and compares it with its entry in the manifest.
pub fn read_part(folder: &Path, entry: &PartFile) -> Result<Part, CheckpointError> {
    let path = folder.join(&entry.file);
    let damaged =
        |reason: String| CheckpointError::Damaged { file: path.display().to_string(), reason };
    let data = fs::read(&path).map_err(io(format!("cannot read {}", path.display())))?;
    if data.len() as u64 != entry.bytes {
        return Err(damaged(format!("is {} bytes, expected {}", data.len(), entry.bytes)));
    }
    if hex(&Sha256::digest(&data)) != entry.sha256 {
        return Err(damaged("has another checksum than the manifest says".to_owned()));
    }
    parse_part(&data).map_err(damaged)
}

/// Reads a safetensors file as a part, without a manifest.
pub fn read_loose_part(path: &Path) -> Result<Part, CheckpointError> {
    let file = File::open(path).map_err(io(format!("cannot open {}", path.display())))?;
    // SAFETY: the mapping is private to this function and read once.
    #[expect(unsafe_code, reason = "memory mapping a file")]
    let map = unsafe { Mmap::map(&file) }.map_err(io(format!("cannot read {}", path.display())))?;
    parse_part(&map)
        .map_err(|reason| CheckpointError::Damaged { file: path.display().to_string(), reason })
}

fn parse_part(data: &[u8]) -> Result<Part, String> {
    let (_, metadata) = SafeTensors::read_metadata(data).map_err(|e| e.to_string())?;
    let tensors = SafeTensors::deserialize(data).map_err(|e| e.to_string())?;
    let mut part = Part::default();
    for (name, view) in tensors.iter().filter(|(name, _)| *name != NOTHING) {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::Bf16,
            Dtype::F16 => DType::F16,
            Dtype::I64 => DType::I64,
            Dtype::U8 => DType::U8,
            Dtype::BOOL => DType::Bool,
            other => return Err(format!("`{name}` has dtype {other:?}")),
        };
        let bytes = Bytes::copy_from_slice(view.data());
        let frame = Frame::host(dtype, view.shape().to_vec(), bytes).map_err(|e| e.to_string())?;
        part.tensors.insert(name.to_owned(), frame);
    }
    part.words.extend(metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    Ok(part)
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

/// Hex digits of bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Folder that the parts of a checkpoint are written to before it is committed. Attempts have
/// folders of their own, so that what is left of one cannot get into another.
pub fn aside(folder: &Path, stage: &str, step: u64, attempt: u64) -> PathBuf {
    folder.join(format!(".{}.{attempt}{PARTIAL}", name(stage, step)))
}

/// Ending of folders that are not committed.
const PARTIAL: &str = ".partial";

/// Removes what was never committed, as after a crash.
pub fn sweep(folder: &Path) -> Result<(), CheckpointError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(PARTIAL) {
            fs::remove_dir_all(&path).map_err(io(format!("cannot remove {}", path.display())))?;
        }
    }
    Ok(())
}

/// Name of a checkpoint.
pub fn name(stage: &str, step: u64) -> String {
    format!("{stage}-{step:08}")
}

/// Name of the manifest's file.
const MANIFEST: &str = "manifest.json";

/// Name of the file with the manifest's checksum.
const CHECKSUM: &str = "manifest.sha256";

/// The manifest's checksum, as `sha256sum` prints it.
fn checksum(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex(&Sha256::digest(manifest)))
}

/// Writes the manifest and renames the folder `aside`: from now on the checkpoint exists.
pub fn commit(
    folder: &Path,
    aside: &Path,
    manifest: &Manifest,
) -> Result<PathBuf, CheckpointError> {
    let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain data");
    let write = |name: &str, text: &str| -> std::io::Result<()> {
        let mut file = File::create(aside.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let written = write(CHECKSUM, &checksum(text.as_bytes()))
        .and_then(|()| write(MANIFEST, &text))
        .and_then(|()| File::open(aside)?.sync_all());
    written.map_err(io(format!("cannot write {}", aside.join(MANIFEST).display())))?;
    let done = folder.join(name(&manifest.stage, manifest.step));
    if done.exists() {
        // One that was found damaged: out of the way first, so that no moment has half of each.
        remove(folder, &done)?;
    }
    fs::rename(aside, &done).map_err(io(format!("cannot rename {}", aside.display())))?;
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io(format!("cannot sync {}", folder.display())))?;
    Ok(done)
}

/// Removes a checkpoint. A crash leaves it whole or not at all.
fn remove(folder: &Path, checkpoint: &Path) -> Result<(), CheckpointError> {
    let old = folder.join(format!(".{}.old{PARTIAL}", file_name(checkpoint)));
    fs::rename(checkpoint, &old).map_err(io(format!("cannot move {}", checkpoint.display())))?;
    fs::remove_dir_all(&old).map_err(io(format!("cannot remove {}", old.display())))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads the manifest of a checkpoint, and compares it with its checksum and the folder's name.
pub fn read_manifest(checkpoint: &Path) -> Result<Manifest, CheckpointError> {
    let read = |name: &str| {
        let path = checkpoint.join(name);
        fs::read(&path).map_err(io(format!("cannot read {}", path.display())))
    };
    let damaged = |reason: String| {
        let file = checkpoint.join(MANIFEST).display().to_string();
        CheckpointError::Damaged { file, reason }
    };
    let text = read(MANIFEST)?;
    if read(CHECKSUM)? != checksum(&text).as_bytes() {
        return Err(damaged(format!("has another checksum than {CHECKSUM} says")));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("has format {}, this build reads {FORMAT}", manifest.format)));
    }
    let own = name(&manifest.stage, manifest.step);
    if file_name(checkpoint) != own {
        return Err(damaged(format!("belongs to `{own}`, another checkpoint than the folder's")));
    }
    for part in manifest.parts.values() {
        if part.file.contains(['/', '\\']) || part.file.contains("..") {
            return Err(damaged(format!("names the file `{}` outside itself", part.file)));
        }
    }
    Ok(manifest)
}

/// Folders that are not aside.
fn shown(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir() && !file_name(path).starts_with('.')).collect()
}

/// Committed checkpoints that are as they were written, oldest first. Parts are not read.
pub fn list(folder: &Path) -> Vec<(Manifest, PathBuf)> {
    let paths = shown(folder).into_iter();
    let mut found: Vec<_> =
        paths.filter_map(|path| Some((read_manifest(&path).ok()?, path))).collect();
    found.sort_by_key(|(manifest, _)| manifest.step);
    found
}

/// Why folders that were checkpoints are none.
pub fn broken(folder: &Path) -> Vec<CheckpointError> {
    let mut paths = shown(folder);
    paths.retain(|path| is_named_so(&file_name(path)) || path.join(MANIFEST).exists());
    paths.sort();
    paths.iter().filter_map(|path| read_manifest(path).err()).collect()
}

/// Whether a folder has the name of a checkpoint.
fn is_named_so(name: &str) -> bool {
    let digits = |step: &str| step.len() >= 8 && step.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once('-').is_some_and(|(_, step)| digits(step))
}

/// Removes all but the newest `keep` checkpoints, and those of the steps that `stay`.
pub fn prune(folder: &Path, keep: usize, stay: &BTreeSet<u64>) -> Result<(), CheckpointError> {
    let mut found = list(folder);
    found.retain(|(manifest, _)| !stay.contains(&manifest.step));
    for (_, path) in found.iter().take(found.len().saturating_sub(keep.max(1))) {
        remove(folder, path)?;
    }
    Ok(())
}
