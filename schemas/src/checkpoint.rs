//! A checkpoint: a directory with a manifest, complete or absent.
//!
//! Each node's part is one safetensors file. Everything is written into a folder aside, synced,
//! and renamed last; a reader never sees half a checkpoint. Every part carries its checksum.

use std::collections::BTreeMap;
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

/// Writes the manifest and renames the folder `aside`: from now on the checkpoint exists.
pub fn commit(
    folder: &Path,
    aside: &Path,
    manifest: &Manifest,
) -> Result<PathBuf, CheckpointError> {
    let path = aside.join("manifest.json");
    let text = serde_json::to_string_pretty(manifest).expect("a manifest is plain data");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(aside)?.sync_all()
    };
    write().map_err(io(format!("cannot write {}", path.display())))?;
    let done = folder.join(name(&manifest.stage, manifest.step));
    if done.exists() {
        // One that was found damaged: out of the way first, so that no moment has half of each.
        let old = folder.join(format!(".{}.old{PARTIAL}", name(&manifest.stage, manifest.step)));
        fs::rename(&done, &old).map_err(io(format!("cannot replace {}", done.display())))?;
        fs::remove_dir_all(&old).map_err(io(format!("cannot remove {}", old.display())))?;
    }
    fs::rename(aside, &done).map_err(io(format!("cannot rename {}", aside.display())))?;
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io(format!("cannot sync {}", folder.display())))?;
    Ok(done)
}

/// Reads the manifest of a checkpoint.
pub fn read_manifest(checkpoint: &Path) -> Result<Manifest, CheckpointError> {
    let path = checkpoint.join("manifest.json");
    let text = fs::read(&path).map_err(io(format!("cannot read {}", path.display())))?;
    let damaged =
        |reason: String| CheckpointError::Damaged { file: path.display().to_string(), reason };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("has format {}, this build reads {FORMAT}", manifest.format)));
    }
    for part in manifest.parts.values() {
        if part.file.contains(['/', '\\']) || part.file.contains("..") {
            return Err(damaged(format!("names the file `{}` outside itself", part.file)));
        }
    }
    Ok(manifest)
}

/// Committed checkpoints, oldest first.
pub fn list(folder: &Path) -> Vec<(Manifest, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')))
        .filter_map(|path| Some((read_manifest(&path).ok()?, path)))
        .collect();
    found.sort_by_key(|(manifest, _)| manifest.step);
    found
}

/// Why folders that look like checkpoints are none.
pub fn broken(folder: &Path) -> Vec<CheckpointError> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let shown = |path: &PathBuf| {
        path.is_dir() && !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'))
    };
    paths.filter(shown).filter_map(|path| read_manifest(&path).err()).collect()
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(folder: &Path, keep: usize) -> Result<(), CheckpointError> {
    let found = list(folder);
    for (_, path) in found.iter().take(found.len().saturating_sub(keep.max(1))) {
        fs::remove_dir_all(path).map_err(io(format!("cannot remove {}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part() -> Part {
        let mut part = Part::default();
        part.tensors.insert("w".into(), Frame::f32([2, 2], [1.0, 2.0, 3.0, 4.0]));
        part.words.insert("steps".into(), "3".into());
        part
    }

    fn write(folder: &Path, step: u64) -> Manifest {
        let aside = aside(folder, "s", step, 0);
        let entry = write_part(&aside, "n", &part()).unwrap();
        let manifest = Manifest {
            format: FORMAT,
            stage: "s".into(),
            step,
            graph: "g".into(),
            metrics_bytes: 0,
            version: "0".into(),
            parts: BTreeMap::from([("n".into(), entry)]),
        };
        commit(folder, &aside, &manifest).unwrap();
        manifest
    }

    #[test]
    fn what_is_committed_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = write(folder.path(), 5);
        let (found, path) = list(folder.path()).pop().unwrap();
        assert_eq!(found, manifest);
        let back = read_part(&path, &found.parts["n"]).unwrap();
        assert_eq!(back.tensors["w"].to_f32(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(back.words["steps"], "3");
    }

    #[test]
    fn a_part_without_tensors_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::default();
        for words in [BTreeMap::new(), BTreeMap::from([("cursor".to_owned(), "7".to_owned())])] {
            part.words = words;
            let entry = write_part(folder.path(), "n", &part).unwrap();
            let back = read_part(folder.path(), &entry).unwrap();
            assert!(back.tensors.is_empty());
            assert_eq!(back.words, part.words);
        }
    }

    #[test]
    fn what_is_not_committed_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        write_part(&aside(folder.path(), "s", 1, 0), "n", &part()).unwrap();
        assert!(list(folder.path()).is_empty());
        sweep(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_checkpoint_may_be_replaced_and_a_broken_manifest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 5);
        let (_, path) = list(folder.path()).pop().unwrap();
        fs::write(path.join("manifest.json"), "{").unwrap();
        assert!(list(folder.path()).is_empty());
        assert!(broken(folder.path())[0].to_string().contains("s-00000005/manifest.json"));
        write(folder.path(), 5);
        assert_eq!(list(folder.path()).len(), 1);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 5);
        let (manifest, path) = list(folder.path()).pop().unwrap();
        let file = path.join("n.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = read_part(&path, &manifest.parts["n"]).unwrap_err();
        assert!(error.to_string().contains("another checksum"), "{error}");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 20, 3] {
            write(folder.path(), step);
        }
        prune(folder.path(), 2).unwrap();
        let steps: Vec<u64> = list(folder.path()).iter().map(|(m, _)| m.step).collect();
        assert_eq!(steps, [3, 20]);
    }
}
