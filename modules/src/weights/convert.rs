//! Published checkpoints in our own paths, and back.
//!
//! An imported checkpoint is a folder: one safetensors file for each kind that found its parameters,
//! named like the kind with a dot for the slash, whose keys are parameter paths; `rest.safetensors`
//! with what no kind takes; and `weights.json`, which remembers what the checkpoint looked like.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemas::dims::Dims;
use schemas::entry::{Entry, Registry, find};
use schemas::node::{NodeError, NodeSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{beside, keys};
use crate::archive::{self, Archive, Declared, Dtype, Plan};
use crate::layout::{Layout, Slot};
use crate::parameters::Parameter;

/// What an imported checkpoint looked like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// Name of the file or folder that was imported.
    pub source: String,
    /// The kinds that found their parameters.
    pub parts: Vec<ImportedPart>,
    /// Shape and type of each tensor, by key.
    pub tensors: BTreeMap<String, (String, Vec<usize>)>,
    /// Tensors that no kind takes, each with a reason.
    pub rest: BTreeMap<String, String>,
}

/// A kind in an imported checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedPart {
    /// The kind.
    pub kind: String,
    /// File with its parameters.
    pub file: String,
    /// Its options.
    pub options: Value,
    /// Dims of its inputs, as far as the weights depend on them.
    pub dims: Dims,
    /// Layout in which the checkpoint was.
    pub layout: String,
    /// What all keys began with.
    pub prefix: String,
    /// Number of tensors of the checkpoint that it takes.
    pub tensors: usize,
}

impl ImportedPart {
    fn spec(&self) -> NodeSpec {
        NodeSpec::alone(&self.kind, self.options.clone(), self.dims.clone())
    }
}

/// Name of the file that remembers.
const WORDS: &str = "weights.json";
/// Name of the file with what no kind takes.
const REST: &str = "rest.safetensors";

/// File of the n-th part of a kind, counted from 1.
fn name_of(kind: &str, number: usize) -> String {
    let kind = kind.replace('/', ".");
    if number == 1 { format!("{kind}.safetensors") } else { format!("{kind}.{number}.safetensors") }
}

/// The file of a kind in an imported checkpoint; the path itself when it is none. Where the kind is
/// there more than once, the part whose options are most like these ones.
pub(crate) fn file_of(kind: &str, options: &Value, path: &Path) -> PathBuf {
    let read = || -> Option<PathBuf> {
        let text = std::fs::read_to_string(path.join(WORDS)).ok()?;
        let imported: Imported = serde_json::from_str(&text).ok()?;
        let alike = |part: &&ImportedPart| {
            let own = part.options.as_object().into_iter().flatten();
            own.filter(|(name, value)| options.get(name) == Some(value)).count()
        };
        // Of equals the first one, as it is listed.
        let parts = imported.parts.iter().rev().filter(|part| part.kind == kind);
        Some(path.join(&parts.max_by_key(alike)?.file))
    };
    read().filter(|file| file.is_file()).unwrap_or_else(|| path.to_owned())
}

fn fault(path: &Path, reason: String) -> NodeError {
    NodeError::Weights { file: path.display().to_string(), reason }
}

/// A kind to look for, with options and dims.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The kind.
    pub kind: String,
    /// Its options, with defaults filled in.
    pub options: Value,
    /// Dims of its inputs.
    pub dims: Dims,
}

/// The kinds that know the `config.json` in a folder, in the order of the registry.
pub fn recognise(registry: Registry, folder: &Path) -> Result<Vec<Wanted>, NodeError> {
    let file = folder.join("config.json");
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(Vec::new()) };
    let config: Value = serde_json::from_str(&text)
        .map_err(|error| fault(&file, format!("is not JSON: {error}")))?;
    let mut wanted = Vec::new();
    for (kind, _, entry) in registry {
        for published in (entry.published)(&config) {
            let options = (entry.resolve)(&published.options).map_err(|problem| {
                let option = problem.option;
                fault(&file, format!("does not fit `{kind}`: `{option}`: {}", problem.message))
            })?;
            wanted.push(Wanted { kind: (*kind).to_owned(), options, dims: published.dims });
        }
    }
    Ok(wanted)
}

/// A kind whose parameters were found in an archive.
pub(super) struct Taken {
    pub(super) part: ImportedPart,
    pub(super) slots: Vec<(Parameter, Slot)>,
    pub(super) layout: Layout,
}

/// Finds kinds in an archive.
fn take(registry: Registry, archive: &Archive, wanted: &Wanted) -> Result<Taken, NodeError> {
    let Wanted { kind, options, dims } = wanted.clone();
    let entry = entry_of(registry, &kind)?;
    let spec = NodeSpec::alone(&kind, options.clone(), dims.clone());
    let problems = (entry.check)(&options, &dims);
    if let Some(problem) = problems.first() {
        let reason = format!("does not fit `{kind}`: {}; {}", problem.message, problem.hint);
        return Err(archive.fail(reason));
    }
    let layouts = (entry.layouts)(&spec);
    let found = keys::find(archive, &(entry.parameters)(&spec), &layouts)?;
    let named = layouts.into_iter().find(|layout| layout.name == found.layout);
    let there = found.slots.iter().map(|(_, slot)| &slot.key);
    let keys: BTreeSet<&String> = there.filter(|key| archive.info(key).is_some()).collect();
    let (tensors, layout, prefix) = (keys.len(), found.layout, found.prefix);
    let file = name_of(&kind, 1);
    let part = ImportedPart { kind, file, options, dims, layout, prefix, tensors };
    let layout = named.unwrap_or_else(|| Layout::new("playhouse"));
    Ok(Taken { part, slots: found.slots, layout })
}

/// What a kind would take from an archive.
pub fn cover(
    registry: Registry,
    archive: &Archive,
    wanted: &Wanted,
) -> Result<ImportedPart, NodeError> {
    take(registry, archive, wanted).map(|taken| taken.part)
}

fn entry_of(registry: Registry, kind: &str) -> Result<&'static Entry, NodeError> {
    find(registry, kind).ok_or_else(|| NodeError::State {
        reason: format!("no kind is named `{kind}`; `playhouse list` shows all"),
    })
}

/// Writes the parameters of a kind under their paths.
fn write_part(archive: &Archive, taken: &Taken, file: &Path) -> Result<(), NodeError> {
    let Taken { part, slots, .. } = taken;
    let words = BTreeMap::from([
        ("kind".to_owned(), part.kind.clone()),
        ("options".to_owned(), part.options.to_string()),
    ]);
    let by_path: BTreeMap<&str, &(Parameter, Slot)> =
        slots.iter().map(|slot| (slot.0.path.as_str(), slot)).collect();
    let declare = |(parameter, slot): &(Parameter, Slot)| Declared {
        key: parameter.path.clone(),
        dtype: archive.info(&slot.key).map_or(Dtype::F32, |info| info.dtype),
        shape: parameter.file_shape(),
    };
    let plan = Plan::new(slots.iter().map(declare).collect(), words)?;
    write(file, &plan, |key| {
        let (parameter, slot) = by_path[key];
        if archive.info(&slot.key).is_none() {
            let values = parameter.shape.iter().product::<usize>();
            return Ok(Cow::Owned(vec![0; 4 * values])); // it starts at zero
        }
        let stored = archive.get(&slot.key)?;
        let [part, parts] = slot.part;
        let length = stored.bytes.len() / parts;
        let run = part * length..(part + 1) * length;
        if parameter.linear && slot.straight {
            let dims = [parameter.shape[0], parameter.shape[1]];
            return Ok(Cow::Owned(turned(&stored.bytes[run], dims)));
        }
        Ok(match stored.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[run]),
            Cow::Owned(bytes) => Cow::Owned(bytes[run].to_vec()),
        })
    })
}

/// Imports an archive into a folder. Every kind that is wanted must find all its parameters.
pub fn import(
    registry: Registry,
    archive: &Archive,
    wanted: &[Wanted],
    source: &Path,
    folder: &Path,
) -> Result<Imported, NodeError> {
    let taken: Result<Vec<Taken>, _> =
        wanted.iter().map(|wanted| take(registry, archive, wanted)).collect();
    let mut taken = taken?;
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for Taken { part, .. } in &mut taken {
        let number = numbers.entry(part.kind.clone()).or_default();
        *number += 1;
        part.file = name_of(&part.kind, *number);
    }
    check_zeros(archive, &taken)?;
    std::fs::create_dir_all(folder)
        .map_err(|error| fault(folder, format!("cannot be made: {error}")))?;
    let mut rest: BTreeSet<&str> = archive.keys().map(|(key, _)| key).collect();
    for one in &taken {
        for (_, slot) in &one.slots {
            rest.remove(slot.key.as_str());
        }
        write_part(archive, one, &folder.join(&one.part.file))?;
    }
    if !rest.is_empty() {
        let declare = |key: &&str| {
            let info = archive.info(key)?;
            let key = (*key).to_owned();
            Some(Declared { key, dtype: info.dtype, shape: info.shape.to_vec() })
        };
        let plan = Plan::new(rest.iter().filter_map(declare).collect(), BTreeMap::new())?;
        write(&folder.join(REST), &plan, |key| Ok(archive.get(key)?.bytes))?;
    }
    let tensor = |(key, info): (&str, archive::Info<'_>)| {
        (key.to_owned(), (info.dtype.name().to_owned(), info.shape.to_vec()))
    };
    let source = source.file_name().unwrap_or(source.as_os_str()).to_string_lossy().into_owned();
    let left = |key: &str| Ok((key.to_owned(), beside::reason(archive, key, &taken)?));
    let rest: Result<BTreeMap<_, _>, NodeError> = rest.into_iter().map(left).collect();
    let imported = Imported {
        source,
        tensors: archive.keys().map(tensor).collect(),
        rest: rest?,
        parts: taken.into_iter().map(|taken| taken.part).collect(),
    };
    let text = serde_json::to_string_pretty(&imported).expect("plain data");
    let file = folder.join(WORDS);
    let aside = file.with_extension("partial");
    std::fs::write(&aside, text + "\n")
        .and_then(|()| std::fs::rename(&aside, &file))
        .map_err(|error| fault(&file, format!("cannot be written: {error}")))?;
    Ok(imported)
}

/// Every rule that lets parameters be absent must find one that is.
fn check_zeros(archive: &Archive, taken: &[Taken]) -> Result<(), NodeError> {
    let slots = taken.iter().flat_map(|taken| &taken.slots);
    let absent = slots.filter(|(_, slot)| archive.info(&slot.key).is_none());
    let used: BTreeSet<usize> = absent
        .filter_map(|(parameter, slot)| archive.starts_at_zero([&slot.key, &parameter.path]))
        .collect();
    let mut idle = archive.zeros().iter().enumerate().filter(|(number, _)| !used.contains(number));
    idle.next().map_or(Ok(()), |(_, change)| {
        let (name, keys) = (change.rule.name(), &change.keys);
        Err(archive.fail(format!("rule `{name}`: no absent parameter fits `{keys}`")))
    })
}

fn write<'a>(
    file: &Path,
    plan: &Plan,
    mut piece: impl FnMut(&str) -> Result<Cow<'a, [u8]>, NodeError>,
) -> Result<(), NodeError> {
    let tensors = plan.tensors().iter().map(|declared| {
        let bytes = piece(&declared.key)?;
        Ok((declared.key.clone(), bytes))
    });
    archive::write(file, plan, tensors, None).map(|_| ())
}

/// Bytes of a matrix of these rows and columns, the other way round.
fn turned(bytes: &[u8], [rows, columns]: [usize; 2]) -> Vec<u8> {
    let size = bytes.len() / (rows * columns).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for (column, row) in (0..columns).flat_map(|c| (0..rows).map(move |r| (c, r))) {
        let at = (row * columns + column) * size;
        out.extend_from_slice(&bytes[at..at + size]);
    }
    out
}

/// What a tensor of an exported file is made of: by part, the archive, the key, and the rows and
/// columns of a matrix that is to be turned.
type Pieces<'a> = BTreeMap<usize, (&'a Archive, String, Option<[usize; 2]>)>;

/// Writes an imported checkpoint as one file: with the keys, shapes and types that it had, or in
/// another layout of its kinds.
pub fn export(
    registry: Registry,
    folder: &Path,
    layout: Option<&str>,
    file: &Path,
) -> Result<usize, NodeError> {
    let words = folder.join(WORDS);
    let text = std::fs::read_to_string(&words)
        .map_err(|error| fault(&words, format!("cannot be read: {error}")))?;
    let imported: Imported = serde_json::from_str(&text)
        .map_err(|error| fault(&words, format!("is not what import wrote: {error}")))?;
    let archives: Result<Vec<Archive>, _> =
        imported.parts.iter().map(|p| Archive::open(&folder.join(&p.file))).collect();
    let archives = archives?;
    let rest = folder.join(REST);
    let rest = if rest.is_file() { Some(Archive::open(&rest)?) } else { None };
    let mut tensors: BTreeMap<String, (Declared, Pieces<'_>)> = BTreeMap::new();
    for (part, archive) in imported.parts.iter().zip(&archives) {
        let spec = part.spec();
        let entry = entry_of(registry, &part.kind)?;
        let chosen = choose((entry.layouts)(&spec), part, layout, &words)?;
        for parameter in (entry.parameters)(&spec) {
            let mut slot = chosen.slot(&parameter.path);
            if layout.is_none() {
                slot.key.insert_str(0, &part.prefix);
            }
            let Some(info) = archive.info(&parameter.path) else { continue };
            let shape = imported.tensors.get(&slot.key).filter(|_| layout.is_none());
            let shape =
                shape.map_or_else(|| slot.file_shape(slot.stored(&parameter)), |t| t.1.clone());
            let declared = Declared { key: slot.key.clone(), dtype: info.dtype, shape };
            let (_, pieces) = tensors.entry(slot.key).or_insert_with(|| (declared, Pieces::new()));
            let turn = (parameter.linear && slot.straight)
                .then(|| [parameter.shape[1], parameter.shape[0]]);
            pieces.insert(slot.part[0], (archive, parameter.path, turn));
        }
    }
    for (key, info) in rest.iter().flat_map(Archive::keys) {
        let (dtype, shape) = (info.dtype, info.shape.to_vec());
        let declared = Declared { key: key.to_owned(), dtype, shape };
        let archive = rest.as_ref().expect("its keys were listed");
        let pieces = Pieces::from([(0, (archive, key.to_owned(), None))]);
        tensors.insert(key.to_owned(), (declared, pieces));
    }
    let declared = tensors.values().map(|(declared, _)| declared.clone()).collect();
    let plan = Plan::new(declared, BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    write(file, &plan, |key| joined(&tensors[key].1))?;
    Ok(tensors.len())
}

fn joined<'a>(pieces: &Pieces<'a>) -> Result<Cow<'a, [u8]>, NodeError> {
    if let [(archive, key, None)] = pieces.values().collect::<Vec<_>>()[..] {
        return Ok(archive.get(key)?.bytes);
    }
    let mut all = Vec::new();
    for (archive, key, turn) in pieces.values() {
        let bytes = archive.get(key)?.bytes;
        match turn {
            Some(dims) => all.extend(turned(&bytes, *dims)),
            None => all.extend_from_slice(&bytes),
        }
    }
    Ok(Cow::Owned(all))
}

fn choose(
    layouts: Vec<Layout>,
    part: &ImportedPart,
    wanted: Option<&str>,
    words: &Path,
) -> Result<Layout, NodeError> {
    let name = wanted.unwrap_or(&part.layout);
    let names: Vec<&str> = layouts.iter().map(|layout| layout.name).collect();
    let names = names.join(", ");
    layouts.into_iter().find(|layout| layout.name == name).ok_or_else(|| {
        let kind = &part.kind;
        fault(words, format!("`{kind}` has no layout `{name}`; it has {names}"))
    })
}
