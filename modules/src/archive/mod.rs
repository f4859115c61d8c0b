//! Weight files of other programs, read in place and written as safetensors.
//!
//! Read: a safetensors file; a folder or an index file of sharded safetensors; what `torch.save`
//! writes, as a zip archive, as the stream of before PyTorch 1.6, or sharded with an index. Files are
//! mapped and tensors borrowed from the mapping; a tensor that is not asked for is not read. Pickles
//! are read as data: nothing in a file is ever called.
//!
//! Loading is all or nothing here as well: a tensor that cannot be read (quantised, complex, a type
//! that is not in `Dtype`) is an error when the archive is opened, with its key. Objects that are no
//! tensors are listed in `Metadata::skipped`.

mod change;
mod dtype;
mod folder;
mod mapped;
mod merge;
mod pickle;
pub mod rules;
mod safe;
mod torch;
mod tree;
mod write;
mod zip;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::node::NodeError;

pub use change::Change;
pub use dtype::{Dtype, narrow, widen};
pub use write::{Declared, Plan, Written, write};

use mapped::{Mapped, Slot, fault, shown};

/// How tensors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Safetensors.
    Safetensors,
    /// The zip archive of `torch.save`.
    Torch,
    /// The stream that `torch.save` wrote before PyTorch 1.6.
    TorchStream,
}

impl Format {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Torch => "a PyTorch archive",
            Self::TorchStream => "a PyTorch stream of before 1.6",
        }
    }
}

/// An object of a pickle that is no plain data and was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path of keys to it.
    pub path: String,
    /// Its class.
    pub what: String,
    /// Tensors among the values that it is made of.
    pub tensors: usize,
}

/// What an archive says beside its tensors.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// How tensors are stored.
    pub format: Format,
    /// The part of the file that the keys count from.
    pub part: Option<String>,
    /// Metadata of safetensors; plain values of the outermost dict of a pickle.
    pub words: BTreeMap<String, String>,
    /// Objects that are no tensors.
    pub skipped: Vec<Skipped>,
    /// What was chosen and what was left, in sentences for people.
    pub notes: Vec<String>,
}

/// A tensor that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info<'a> {
    /// What its elements are.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: &'a [usize],
    /// The file it lies in.
    pub file: &'a Path,
}

/// A tensor of an archive.
#[derive(Debug, Clone)]
pub struct Stored<'a> {
    /// What its elements are.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: &'a [usize],
    /// Its elements, row-major and little-endian; borrowed where they lie so in the file.
    pub bytes: Cow<'a, [u8]>,
}

impl Stored<'_> {
    /// Its values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.f32_into(&mut values);
        values
    }

    /// Writes its values as f32 over `out`, whose memory is used again.
    pub fn f32_into(&self, out: &mut Vec<f32>) {
        widen(self.dtype, &self.bytes, out);
    }
}

/// Which part of a pickle is wanted.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    /// The state dict, when there is one only.
    Model,
    Everything,
    Part(&'a str),
}

/// What one file holds.
#[derive(Debug)]
struct Contents {
    format: Format,
    slots: Vec<(String, Slot)>,
    /// Keys of tensors that cannot be read, and why.
    refused: Vec<(String, String)>,
    skipped: Vec<Skipped>,
    words: BTreeMap<String, String>,
    part: Option<String>,
}

impl Contents {
    fn new(format: Format) -> Self {
        let (slots, refused, skipped) = (Vec::new(), Vec::new(), Vec::new());
        Self { format, slots, refused, skipped, words: BTreeMap::new(), part: None }
    }

    fn of(file: &Mapped, wanted: Wanted<'_>) -> Result<Self, NodeError> {
        let bytes = file.bytes();
        let contents = if safe::recognised(bytes) {
            safe::read(bytes)
        } else if bytes.starts_with(b"PK\x03\x04") {
            torch::read_zip(bytes, wanted)
        } else if bytes.starts_with(b"\x80") && bytes.get(1).is_some_and(|p| (2..=5).contains(p)) {
            torch::read_stream(bytes, wanted)
        } else {
            safe::read(bytes)
        };
        contents.map_err(|reason| fault(&file.path, reason))
    }
}

/// Tensors by key, in one file or several.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    files: Vec<Mapped>,
    slots: BTreeMap<String, (usize, Slot)>,
    metadata: Metadata,
    /// Tensors that rules changed.
    changed: BTreeMap<String, Vec<u8>>,
    /// Patterns of parameters that may be absent and start at zero, by rule.
    zeros: Vec<Change>,
}

impl Archive {
    /// Opens a file, a folder or an index. In a pickle, the state dict is taken when it is the only
    /// entry with tensors.
    pub fn open(path: &Path) -> Result<Self, NodeError> {
        Self::open_at(path, None)
    }

    /// An error about this archive.
    pub(crate) fn fail(&self, reason: String) -> NodeError {
        fault(&self.path, reason)
    }

    /// Opens the part of an archive whose keys begin with `prefix` and a dot, without that beginning.
    /// An empty prefix is everything.
    pub fn open_at(path: &Path, prefix: Option<&str>) -> Result<Self, NodeError> {
        let found = folder::find(path)?;
        let wanted = match prefix {
            Some("") => Wanted::Everything,
            Some(part) => Wanted::Part(part),
            None if found.index.is_some() => Wanted::Everything,
            None => Wanted::Model,
        };
        let mut archive = Self {
            path: path.to_owned(),
            files: Vec::new(),
            slots: BTreeMap::new(),
            metadata: Metadata {
                format: Format::Safetensors,
                part: prefix.filter(|part| !part.is_empty()).map(str::to_owned),
                words: BTreeMap::new(),
                skipped: Vec::new(),
                notes: found.notes,
            },
            changed: BTreeMap::new(),
            zeros: Vec::new(),
        };
        let mut refused = BTreeMap::new();
        for file in &found.files {
            let mapped = Mapped::open(file)?;
            let contents = Contents::of(&mapped, wanted)?;
            archive.files.push(mapped);
            archive.add(contents, &mut refused)?;
        }
        if let Some(index) = found.index {
            archive.check(&index, &refused)?;
        }
        archive.narrow_to_part(refused)?;
        Ok(archive)
    }

    /// Takes in what the last file holds.
    fn add(
        &mut self,
        contents: Contents,
        refused: &mut BTreeMap<String, String>,
    ) -> Result<(), NodeError> {
        let at = self.files.len() - 1;
        let path = self.files[at].path.clone();
        for (key, slot) in contents.slots {
            if let Some((first, _)) = self.slots.get(&key) {
                let first = self.files[*first].path.display();
                let key = shown(&key);
                return Err(fault(&path, format!("`{key}` is in {first} as well")));
            }
            self.slots.insert(key, (at, slot));
        }
        refused.extend(contents.refused);
        self.metadata.format = contents.format;
        self.metadata.skipped.extend(contents.skipped);
        self.metadata.words.extend(contents.words);
        if self.metadata.part.is_none() && contents.part.is_some() {
            let part = contents.part.clone().unwrap_or_default();
            self.metadata.notes.push(format!("took the part `{}`", shown(&part)));
            self.metadata.part = contents.part;
        }
        Ok(())
    }

    /// Compares the shards with their index.
    fn check(
        &self,
        index: &folder::Index,
        refused: &BTreeMap<String, String>,
    ) -> Result<(), NodeError> {
        for (key, file) in &index.map {
            let held = self.slots.get(key).map(|(at, _)| &self.files[*at].path);
            if held.is_none() && refused.contains_key(key) {
                continue;
            }
            if held.and_then(|path| path.file_name()) != Some(file.as_ref()) {
                let key = shown(key);
                let reason = format!("`{key}` is not in {}, where it should be", shown(file));
                return Err(fault(&index.path, reason));
            }
        }
        match self.slots.iter().find(|(key, _)| !index.map.contains_key(*key)) {
            None => Ok(()),
            Some((key, (at, _))) => {
                let key = shown(key);
                let reason = format!("holds `{key}`, which {} leaves out", index.path.display());
                Err(fault(&self.files[*at].path, reason))
            }
        }
    }

    /// Keeps the keys of the wanted part, without its name, and refuses what cannot be read there.
    fn narrow_to_part(&mut self, refused: BTreeMap<String, String>) -> Result<(), NodeError> {
        let part = self.metadata.part.as_ref().map(|part| format!("{part}."));
        let inside = |key: &str| match &part {
            None => Some(key.to_owned()),
            Some(part) => key.strip_prefix(part.as_str()).map(str::to_owned),
        };
        let mut problems: Vec<String> = refused
            .iter()
            .filter(|(key, _)| inside(key).is_some())
            .map(|(key, reason)| format!("`{}` {reason}", shown(key)))
            .collect();
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(8);
            problems.truncate(8);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let path = if let [only] = &self.files[..] { &only.path } else { &self.path };
            return Err(fault(path, format!("{}{more}", problems.join("; "))));
        }
        let all = std::mem::take(&mut self.slots);
        let mut left: BTreeMap<String, usize> = BTreeMap::new();
        for (key, slot) in all {
            match inside(&key) {
                Some(key) => drop(self.slots.insert(key, slot)),
                None => {
                    let group = key.split('.').next().unwrap_or_default();
                    *left.entry(group.to_owned()).or_default() += 1;
                }
            }
        }
        let mut told: Vec<String> =
            left.iter().map(|(name, count)| format!("`{}` ({count})", shown(name))).collect();
        let more = told.len().saturating_sub(16);
        told.truncate(16);
        if more > 0 {
            told.push(format!("{more} more"));
        }
        let told = told.join(", ");
        match (&self.metadata.part, self.slots.is_empty()) {
            (Some(part), true) => {
                let part = shown(part);
                let there = if told.is_empty() { "no tensors".to_owned() } else { told };
                Err(fault(&self.path, format!("has no tensors in `{part}`; it has {there}")))
            }
            (None, true) => Err(fault(&self.path, "holds no tensors".to_owned())),
            _ => {
                if !told.is_empty() {
                    self.metadata.notes.push(format!("left {told}"));
                }
                Ok(())
            }
        }
    }

    /// All tensors, sorted by key.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (&str, Info<'_>)> {
        self.slots.iter().map(|(key, (at, slot))| (key.as_str(), self.info_of(*at, slot)))
    }

    /// What a tensor is, when it is there.
    pub fn info(&self, key: &str) -> Option<Info<'_>> {
        self.slots.get(key).map(|(at, slot)| self.info_of(*at, slot))
    }

    fn info_of<'a>(&'a self, at: usize, slot: &'a Slot) -> Info<'a> {
        Info { dtype: slot.dtype, shape: &slot.shape, file: &self.files[at].path }
    }

    /// A tensor. Where the file has checksums, they are compared when a tensor is first read.
    pub fn get(&self, key: &str) -> Result<Stored<'_>, NodeError> {
        let Some((at, slot)) = self.slots.get(key) else {
            return Err(fault(&self.path, format!("`{}` is missing", shown(key))));
        };
        if let Some(bytes) = self.changed.get(key) {
            let bytes = Cow::Borrowed(bytes.as_slice());
            return Ok(Stored { dtype: slot.dtype, shape: &slot.shape, bytes });
        }
        let file = &self.files[*at];
        let bytes = file.read(slot);
        let bytes =
            bytes.map_err(|reason| fault(&file.path, format!("`{}`: {reason}", shown(key))))?;
        Ok(Stored { dtype: slot.dtype, shape: &slot.shape, bytes })
    }

    /// Says that a tensor is not needed soon: its pages leave the memory of this process.
    pub fn release(&self, key: &str) {
        if let Some((at, slot)) = self.slots.get(key) {
            self.files[*at].release(slot);
        }
    }

    /// What the archive says beside its tensors.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.slots.values().fold(0, |sum, (_, slot)| sum.saturating_add(slot.bytes()))
    }
}
