//! Writing safetensors, one tensor in memory at a time.
//!
//! All keys, types and shapes are declared first, so the header is known before the first element.
//! A file is written under another name and renamed when it is complete; of a sharded archive, all
//! shards first and the index last.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use schemas::node::NodeError;
use serde_json::{Map, Value, json};

use super::dtype::Dtype;
use super::mapped::{fault, shown, volume};

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its key.
    pub key: String,
    /// What its elements are.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: Vec<usize>,
}

impl Declared {
    fn bytes(&self) -> u64 {
        // The plan has multiplied the extents before.
        volume(&self.shape).map_or(0, |count| (count * self.dtype.size()) as u64)
    }
}

/// All tensors that will be written, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    tensors: Vec<Declared>,
    words: BTreeMap<String, String>,
}

impl Plan {
    /// A plan of some tensors, with words for the metadata. The order becomes that of the size of
    /// their elements, largest first, then of their keys, so that every element is aligned.
    pub fn new(
        mut tensors: Vec<Declared>,
        words: BTreeMap<String, String>,
    ) -> Result<Self, NodeError> {
        let fail = |reason: String| fault(Path::new("the weights to write"), reason);
        if tensors.is_empty() {
            return Err(fail("hold no tensors".to_owned()));
        }
        tensors.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.key.cmp(&b.key)));
        let (mut keys, mut total) = (std::collections::BTreeSet::new(), 0u64);
        for tensor in &tensors {
            let key = shown(&tensor.key);
            volume(&tensor.shape).map_err(|reason| fail(format!("`{key}`: {reason}")))?;
            let sum = total.checked_add(tensor.bytes());
            total = sum.ok_or_else(|| fail(format!("`{key}`: all together are too large")))?;
            if tensor.key == "__metadata__" || !keys.insert(tensor.key.as_str()) {
                return Err(fail(format!("name `{key}` twice, or it has a meaning of its own")));
            }
        }
        Ok(Self { tensors, words })
    }

    /// The tensors in the order in which their elements are taken.
    pub fn tensors(&self) -> &[Declared] {
        &self.tensors
    }

    /// The tensors of each shard, by number. A shard is never empty.
    fn shards(&self, limit: Option<u64>) -> Vec<std::ops::Range<usize>> {
        let (mut shards, mut start, mut held) = (Vec::new(), 0, 0u64);
        for (at, tensor) in self.tensors.iter().enumerate() {
            let bytes = tensor.bytes();
            if at > start && limit.is_some_and(|limit| held.saturating_add(bytes) > limit) {
                shards.push(start..at);
                (start, held) = (at, 0);
            }
            held = held.saturating_add(bytes);
        }
        shards.push(start..self.tensors.len());
        shards
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file, or the index of the shards.
    pub path: PathBuf,
    /// All files with tensors.
    pub files: Vec<PathBuf>,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// A file that is not complete yet; it is removed unless it is renamed.
struct Partial {
    aside: PathBuf,
    path: PathBuf,
    renamed: bool,
}

impl Partial {
    fn new(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        Self { aside, path, renamed: false }
    }

    fn rename(&mut self) -> Result<(), NodeError> {
        let renamed = std::fs::rename(&self.aside, &self.path);
        renamed.map_err(|error| fault(&self.path, format!("cannot be written: {error}")))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            // What is left over is only in the way; there is nobody to tell.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}

/// Writes tensors to `path`; in shards of at most `shard_bytes` where one file would be larger (a
/// tensor that is larger alone has a shard of its own). `tensors` gives key and elements in the
/// order of the plan.
pub fn write<'a>(
    path: &Path,
    plan: &Plan,
    tensors: impl IntoIterator<Item = Result<(String, Cow<'a, [u8]>), NodeError>>,
    shard_bytes: Option<u64>,
) -> Result<Written, NodeError> {
    let shards = plan.shards(shard_bytes);
    let index = path.with_file_name(format!("{}.index.json", file_name(path)?));
    let sharded = shards.len() > 1;
    let (old, other) = if sharded { (path, "single file") } else { (index.as_path(), "index") };
    if old.exists() {
        let reason = format!("is an older {other}; beside it nobody could tell which one is meant");
        return Err(fault(old, reason));
    }
    let mut tensors = tensors.into_iter();
    let (mut partials, mut places) = (Vec::new(), Map::new());
    for (at, shard) in shards.iter().enumerate() {
        let name = if sharded { shard_path(path, at, shards.len())? } else { path.to_owned() };
        for tensor in &plan.tensors[shard.clone()] {
            places.insert(tensor.key.clone(), Value::from(file_name(&name)?));
        }
        let partial = Partial::new(name);
        write_one(&partial, plan, shard.clone(), &mut tensors)?;
        partials.push(partial);
    }
    if tensors.next().is_some() {
        return Err(fault(path, "is given more tensors than were declared".to_owned()));
    }
    let bytes = plan.tensors.iter().map(Declared::bytes).sum();
    let files = partials.iter().map(|partial| partial.path.clone()).collect();
    if !sharded {
        partials.iter_mut().try_for_each(Partial::rename)?;
        return Ok(Written { path: path.to_owned(), files, bytes });
    }
    let text = json!({ "metadata": { "total_size": bytes }, "weight_map": places });
    let mut last = Partial::new(index.clone());
    let unwritable = |error: std::io::Error| fault(&index, format!("cannot be written: {error}"));
    std::fs::write(&last.aside, format!("{text:#}\n")).map_err(unwritable)?;
    // An old index must not speak of new shards, not even for a moment.
    if index.exists() {
        std::fs::remove_file(&index).map_err(unwritable)?;
    }
    partials.iter_mut().try_for_each(Partial::rename)?;
    last.rename()?;
    Ok(Written { path: index, files, bytes })
}

fn file_name(path: &Path) -> Result<String, NodeError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| name.ends_with(".safetensors"));
    let name = name.ok_or_else(|| fault(path, "must end with .safetensors".to_owned()))?;
    Ok(name.to_owned())
}

fn shard_path(path: &Path, at: usize, of: usize) -> Result<PathBuf, NodeError> {
    let name = file_name(path)?;
    let stem = name.trim_end_matches(".safetensors");
    Ok(path.with_file_name(format!("{stem}-{:05}-of-{of:05}.safetensors", at + 1)))
}

fn write_one<'a>(
    partial: &Partial,
    plan: &Plan,
    range: std::ops::Range<usize>,
    tensors: &mut impl Iterator<Item = Result<(String, Cow<'a, [u8]>), NodeError>>,
) -> Result<(), NodeError> {
    let declared = &plan.tensors[range];
    let fail = |reason: String| fault(&partial.path, reason);
    let unwritable = |error: std::io::Error| fail(format!("cannot be written: {error}"));
    let (mut header, mut offset) = (Map::new(), 0);
    if !plan.words.is_empty() {
        header.insert("__metadata__".to_owned(), json!(plan.words));
    }
    for tensor in declared {
        let end = offset + tensor.bytes();
        let dtype = tensor.dtype.safetensors();
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.key.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let file = File::create(&partial.aside).map_err(unwritable)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    out.write_all(&(text.len() as u64).to_le_bytes()).map_err(unwritable)?;
    out.write_all(&text).map_err(unwritable)?;
    for tensor in declared {
        let key = shown(&tensor.key);
        let given = tensors.next().ok_or_else(|| fail(format!("is given no `{key}`")))?;
        let (name, bytes) = given?;
        if name != tensor.key {
            return Err(fail(format!("is given `{}` where `{key}` follows", shown(&name))));
        }
        if bytes.len() as u64 != tensor.bytes() {
            let (held, expected) = (bytes.len(), tensor.bytes());
            return Err(fail(format!("`{key}` has {held} bytes, {expected} were declared")));
        }
        out.write_all(&bytes).map_err(unwritable)?;
    }
    let file = out.into_inner().map_err(|error| unwritable(error.into_error()))?;
    file.sync_all().map_err(unwritable)
}
