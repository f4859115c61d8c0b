//! Weights files: safetensors in the key layout of the checkpoints that people have.
//!
//! A kind knows the layouts in which people have its parameters; a file is read in whichever fits.
//! The matrix of a linear layer is stored `[out, in]` in files and `[in, out]` in memory. Loading is
//! all or nothing: every parameter must be in the file with its shape; keys that no parameter takes
//! are reported.

pub mod adapters;
mod beside;
pub mod convert;
pub(crate) mod keys;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use safetensors::Dtype;
use schemas::entry::Export;
use schemas::lora::Lora;
use schemas::node::{NodeError, Part};

use crate::archive::{Archive, widen};
use crate::kind::Kind;
use crate::layout::{Layout, Slot};
use crate::parameters::{self, Parameter};
use crate::tensors::AnyTensor;
use crate::tokenizer::Tokenizer;

/// What a weights file covered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Layout in which the file is.
    pub layout: String,
    /// Where each parameter was found, by path.
    pub slots: BTreeMap<String, Slot>,
    /// Parameters loaded.
    pub loaded: usize,
    /// Keys of the file that no parameter took.
    pub unused: Vec<String>,
}

/// Opens what `weights:` names: a file, a folder of a published checkpoint, a folder that
/// `playhouse weights import` wrote, each followed by `#` and the text that keys begin with when the
/// kind is there more than once.
fn open<K: Kind>(kind: &K, name: &str, path: &Path) -> Result<Archive, NodeError> {
    if path.exists() {
        let options = serde_json::to_value(kind).unwrap_or_default();
        return Archive::open(&convert::file_of(name, &options, path));
    }
    let whole = path.to_string_lossy();
    match whole.rsplit_once('#') {
        Some((file, part)) => Archive::open_at(Path::new(file), Some(part.trim_end_matches('.'))),
        None => Archive::open(path),
    }
}

/// Loads a weights file into a module. Every parameter must be found with its shape.
pub fn load_into<K: Kind>(
    kind: &K,
    module: K::Module,
    (name, file): (&str, &Path),
) -> Result<(K::Module, Coverage), NodeError> {
    load(&open(kind, name, file)?, module, &layouts(kind))
}

/// Compares a file with the parameters of a module; reads neither.
pub fn check<K: Kind>(
    kind: &K,
    module: &K::Module,
    (name, file): (&str, &Path),
) -> Result<(), NodeError> {
    let parameters = parameters::list(module);
    keys::find(&open(kind, name, file)?, &parameters, &layouts(kind))?;
    check_tokenizer(kind, file)
}

/// Refuses a folder whose tokenizer has ids beyond the network's table of words.
fn check_tokenizer<K: Kind>(kind: &K, folder: &Path) -> Result<(), NodeError> {
    let Some(rows) = kind.vocabulary().filter(|_| folder.is_dir()) else { return Ok(()) };
    // A folder of weights need not hold a tokenizer, or one that is known here.
    let Ok(tokenizer) = Tokenizer::open(folder) else { return Ok(()) };
    tokenizer.check_vocabulary(rows).map_err(|error| {
        let reason = format!("its tokenizer is not that of this network: {error}");
        NodeError::Weights { file: folder.display().to_string(), reason }
    })
}

/// The layouts of a kind, and its own paths.
pub fn layouts<K: Kind>(kind: &K) -> Vec<Layout> {
    let mut layouts = kind.layouts();
    layouts.push(Layout::new("playhouse"));
    layouts
}

/// Writes parameters of a saved state: a file in the first layout of the kind, or a folder of adapters.
pub fn export<K: Kind>(
    kind: &K,
    module: &K::Module,
    part: &Part,
    (what, lora): (Export, Option<&Lora>),
    file: &Path,
) -> Result<(), NodeError> {
    let name = file.display().to_string();
    let fail = |reason: String| NodeError::Weights { file: name.clone(), reason };
    let frame = |path: &str| {
        let saved = format!("parameter.{path}");
        let frame = part.tensors.get(&saved);
        frame.ok_or_else(|| fail(format!("the saved state has no `{saved}`")))
    };
    let lora = match (what, lora) {
        (Export::Parameters, _) => None,
        (_, Some(lora)) => Some(lora),
        (_, None) => return Err(fail("cannot be written: the node has no `lora`".to_owned())),
    };
    let mut values = |parameter: &Parameter| Ok(frame(&parameter.path)?.to_f32());
    if let (Export::Adapters, Some(lora)) = (what, lora) {
        return adapters::write_folder(kind, &parameters::list(module), lora, &mut values, file);
    }
    let layout = &layouts(kind)[0];
    let mut pieces = Vec::new();
    for parameter in parameters::list(module) {
        let mut values = values(&parameter)?;
        if let Some(lora) = lora {
            if parameter.path.contains(".lora.") {
                continue;
            }
            let layer = parameter.path.strip_suffix(".weight").filter(|_| parameter.linear);
            let path = |matrix: &str| layer.map(|layer| format!("{layer}.lora.{matrix}"));
            let adapted =
                path("a").filter(|a| part.tensors.contains_key(&format!("parameter.{a}")));
            if let (Some(a), Some(b)) = (adapted, path("b")) {
                let (a, b) = (frame(&a)?, frame(&b)?);
                adapters::add([a, b], lora, &mut values)?;
            }
        }
        pieces.push((layout.slot(&parameter.path), parameter, values));
    }
    write(assemble(pieces), file)
}

/// Writes tensors as a safetensors file, whole or not at all.
pub(crate) fn write(tensors: BTreeMap<String, Stored>, file: &Path) -> Result<(), NodeError> {
    let name = file.display().to_string();
    let fail = |reason: String| NodeError::Weights { file: name.clone(), reason };
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(key, (shape, values))| {
            let bytes: Vec<_> = values.into_iter().map(f32::to_le_bytes).collect();
            (key, shape, bytes.into_flattened())
        })
        .collect();
    let mut views = Vec::new();
    for (key, shape, bytes) in &tensors {
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes);
        views.push((key.as_str(), view.map_err(|error| fail(format!("`{key}`: {error}")))?));
    }
    let data = safetensors::serialize(views, None).map_err(|error| fail(error.to_string()))?;
    let aside = file.with_extension("partial");
    std::fs::write(&aside, data)
        .and_then(|()| std::fs::rename(&aside, file))
        .map_err(|error| fail(format!("cannot be written: {error}")))
}

/// Shape and values of a tensor of a file.
pub type Stored = (Vec<usize>, Vec<f32>);

/// Tensors of a file by key, from the values of parameters, row-major, and where they are stored.
pub fn assemble(pieces: Vec<(Slot, Parameter, Vec<f32>)>) -> BTreeMap<String, Stored> {
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    for (slot, parameter, mut values) in pieces {
        if slot.turned(&parameter) {
            let [inputs, outputs] = [parameter.shape[0], parameter.shape[1]];
            let at = |i: usize| values[(i % inputs) * outputs + i / inputs];
            values = (0..inputs * outputs).map(at).collect();
        }
        let shape = slot.file_shape(slot.stored(&parameter));
        let count = values.len();
        let empty = || (shape, vec![0.0; count * slot.part[1]]);
        let (_, all) = tensors.entry(slot.key).or_insert_with(empty);
        all[slot.part[0] * count..(slot.part[0] + 1) * count].copy_from_slice(&values);
    }
    tensors
}

/// Loads tensors into a module, in whichever of the layouts they are.
pub fn load<M: Module>(
    archive: &Archive,
    module: M,
    layouts: &[Layout],
) -> Result<(M, Coverage), NodeError> {
    let found = keys::find(archive, &parameters::list(&module), layouts)?;
    let module = load_slots(archive, module, &found.slots)?;
    let loaded = found.slots.len();
    let slots = found.slots.into_iter().map(|(parameter, slot)| (parameter.path, slot)).collect();
    let coverage = Coverage { layout: found.layout, loaded, unused: found.unused, slots };
    Ok((module, coverage))
}

/// Gives parameters the tensors of these slots, which have their shapes.
fn load_slots<M: Module>(
    archive: &Archive,
    module: M,
    slots: &[(Parameter, Slot)],
) -> Result<M, NodeError> {
    let mut wanted: BTreeMap<&str, &Slot> =
        slots.iter().map(|(parameter, slot)| (parameter.path.as_str(), slot)).collect();
    let mut failure = None;
    // One tensor at a time, so that no second copy of the file is in memory.
    let module = parameters::load(module, &mut |parameter| {
        let slot = wanted.remove(parameter.path.as_str()).filter(|_| failure.is_none())?;
        read(archive, slot, parameter).map_err(|error| failure = Some(error)).ok()
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

/// The value of a parameter, widened to f32; the matrix of a linear layer is turned around.
fn read(archive: &Archive, slot: &Slot, parameter: &Parameter) -> Result<AnyTensor, NodeError> {
    let stored = archive.get(&slot.key)?;
    let [part, parts] = slot.part;
    let length = stored.bytes.len() / parts;
    let mut values = Vec::new();
    widen(stored.dtype, &stored.bytes[part * length..(part + 1) * length], &mut values);
    archive.release(&slot.key);
    let data = TensorData::new(values, slot.stored(parameter));
    let tensor = AnyTensor::from_data(data, &crate::device::host());
    let tensor =
        tensor.ok_or_else(|| archive.fail(format!("`{}` has a rank above 6", slot.key)))?;
    Ok(match (slot.turned(parameter), tensor) {
        (true, AnyTensor::F2(matrix)) => matrix.transpose().into(),
        (_, tensor) => tensor,
    })
}
