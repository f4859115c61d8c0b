//! Which files make up an archive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemas::node::NodeError;
use serde::Deserialize;

use super::mapped::{Mapped, fault, shown};
use super::safe::Distinct;

/// The longest index.
const MAX_INDEX: usize = 100_000_000;

/// What an index says.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) path: PathBuf,
    /// File names by key.
    pub(super) map: BTreeMap<String, String>,
}

/// The files of an archive.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    pub(super) index: Option<Index>,
    pub(super) notes: Vec<String>,
}

/// Finds the files of an archive, of which `path` is a file, the index or the folder.
pub(super) fn find(path: &Path) -> Result<Found, NodeError> {
    let found = std::fs::metadata(path);
    let found = found.map_err(|error| fault(path, format!("cannot be opened: {error}")))?;
    if found.is_dir() {
        return in_folder(path);
    }
    let name = name_of(path);
    if name.starts_with("zero_pp_rank_") || name.starts_with("bf16_zero_pp_rank_") {
        return Err(fault(path, DEEPSPEED.to_owned()));
    }
    if name.ends_with(".distcp") {
        return Err(fault(path, DISTRIBUTED.to_owned()));
    }
    if name.ends_with(".index.json") {
        return indexed(path, Vec::new());
    }
    Ok(Found { files: vec![path.to_owned()], index: None, notes: Vec::new() })
}

const DEEPSPEED: &str = "is the shard of one process of DeepSpeed ZeRO; take \
    mp_rank_00_model_states.pt of stages 1 and 2, or join the shards with zero_to_fp32.py";

const DISTRIBUTED: &str = "is a distributed checkpoint of PyTorch (FSDP), a shard for each \
    process; join them with torch.distributed.checkpoint.format_utils.dcp_to_torch_save";

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The kinds of files of a folder, best first.
const ENDINGS: [&[&str]; 4] = [
    &[".safetensors"],
    &[".safetensors.index.json"],
    &[".bin.index.json", ".pt.index.json", ".pth.index.json"],
    &[".bin", ".pt", ".pth"],
];

/// Files that win over others of their kind.
const USUAL: [&str; 5] = [
    "model.safetensors",
    "weights.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

fn in_folder(folder: &Path) -> Result<Found, NodeError> {
    let fail = |reason: String| fault(folder, reason);
    let entries = std::fs::read_dir(folder);
    let entries = entries.map_err(|error| fail(format!("cannot be listed: {error}")))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|error| fail(format!("cannot be listed: {error}")))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.insert(name);
        }
    }
    if names.iter().any(|name| name.ends_with(".distcp")) {
        return Err(fail(DISTRIBUTED.to_owned()));
    }
    if names.iter().any(|name| name.contains("zero_pp_rank_")) {
        return Err(fail(format!("holds files of DeepSpeed; one of them {DEEPSPEED}")));
    }
    let group = |endings: &[&str]| -> Vec<&String> {
        names.iter().filter(|name| endings.iter().any(|end| name.ends_with(end))).collect()
    };
    let [files, indices, torch_indices, torch_files] = ENDINGS.map(group);
    // The shards of an index are files of their own; the index stands for them.
    let whole = files.iter().any(|name| *name == USUAL[0]);
    let ordered = match (whole, indices.is_empty()) {
        (true, _) | (_, true) => [files, indices, torch_indices, torch_files],
        _ => [indices, files, torch_indices, torch_files],
    };
    let Some(group) = ordered.iter().find(|group| !group.is_empty()) else {
        return Err(fail("holds no .safetensors, .pt, .pth or .bin file".to_owned()));
    };
    let usual = group.iter().find(|name| USUAL.contains(&name.as_str()));
    let chosen = match (group.as_slice(), usual) {
        ([only], _) => only,
        (_, Some(usual)) => usual,
        _ => {
            let mut told: Vec<String> =
                group.iter().map(|name| format!("`{}`", shown(name))).collect();
            told.truncate(16);
            let told = told.join(", ");
            return Err(fail(format!("holds {told}; name the one that is meant")));
        }
    };
    let others: usize = ordered.iter().map(Vec::len).sum();
    let mut notes = Vec::new();
    if others > 1 {
        notes.push(format!("took {}", shown(chosen)));
    }
    let path = folder.join(chosen.as_str());
    if chosen.ends_with(".index.json") {
        return indexed(&path, notes);
    }
    Ok(Found { files: vec![path], index: None, notes })
}

#[derive(Deserialize)]
struct Text {
    weight_map: Distinct,
}

fn indexed(path: &Path, notes: Vec<String>) -> Result<Found, NodeError> {
    let file = Mapped::open(path)?;
    let fail = |reason: String| fault(path, reason);
    if file.bytes().len() > MAX_INDEX {
        return Err(fail("is too long for an index".to_owned()));
    }
    let text: Text = serde_json::from_slice(file.bytes())
        .map_err(|error| fail(format!("is no index of shards: {error}")))?;
    let map = text.weight_map.0;
    let names: BTreeSet<&String> = map.values().collect();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    for name in names {
        let plain = Path::new(name).file_name() == Some(name.as_ref()) && !name.contains('\\');
        if !plain {
            return Err(fail(format!("names `{}`, which is no file beside it", shown(name))));
        }
        let shard = folder.join(name);
        if !shard.exists() {
            let key = map.iter().find(|(_, file)| *file == name).map(|(key, _)| shown(key));
            let key = key.unwrap_or_default();
            return Err(fail(format!("names {}, which is missing (`{key}`)", shown(name))));
        }
        files.push(shard);
    }
    if files.is_empty() {
        return Err(fail("names no files".to_owned()));
    }
    Ok(Found { files, index: Some(Index { path: path.to_owned(), map }), notes })
}
