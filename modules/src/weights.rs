//! Weights files: safetensors in the key layout of the checkpoints that people have.
//!
//! A kind knows the layouts in which people have its parameters; a file is read in whichever fits.
//! The matrix of a linear layer is stored `[out, in]` in files and `[in, out]` in memory. Loading is
//! all or nothing: every parameter must be in the file with its shape; keys that no parameter takes
//! are reported.

pub mod adapters;
mod keys;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType as BurnDType, Device, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use schemas::node::{NodeError, Part};

use crate::kind::Kind;
use crate::layout::{Layout, Slot};
use crate::parameters::{self, Parameter};
use crate::tensors::AnyTensor;

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

/// Maps a weights file.
pub struct WeightsFile {
    name: String,
    map: Mmap,
}

impl WeightsFile {
    /// Opens a safetensors file.
    pub fn open(path: &Path) -> Result<Self, NodeError> {
        let name = path.display().to_string();
        let fail = |reason: String| NodeError::Weights { file: name.clone(), reason };
        // Opening a pipe would wait for whoever writes into it.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(fail("is not a file".to_owned()));
        }
        let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
        // SAFETY: the mapping is read-only; a file that is cut while it is read faults this
        // process, which the caller accepts for files it names itself.
        #[expect(unsafe_code, reason = "memory mapping a file")]
        let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(format!("cannot be read: {e}")))?;
        Ok(Self { name, map })
    }

    /// All tensors by key, as f32, uploaded to a device.
    pub fn tensors(&self) -> Result<SafeTensors<'_>, NodeError> {
        SafeTensors::deserialize(&self.map).map_err(|error| NodeError::Weights {
            file: self.name.clone(),
            reason: format!("is not a safetensors file: {error}"),
        })
    }
}

/// Loads `file` into `module`. Every parameter must be found with its shape.
pub fn load_into<K: Kind>(
    kind: &K,
    module: K::Module,
    file: &Path,
) -> Result<(K::Module, Coverage), NodeError> {
    let weights = WeightsFile::open(file)?;
    load_tensors(&weights.name, &weights.tensors()?, module, &layouts(kind))
}

/// Compares a file with the parameters of a module; reads neither.
pub fn check<K: Kind>(kind: &K, module: &K::Module, file: &Path) -> Result<(), NodeError> {
    let weights = WeightsFile::open(file)?;
    let parameters = parameters::list(module);
    keys::find(&weights.name, &weights.tensors()?, &parameters, &layouts(kind)).map(|_| ())
}

/// The layouts of a kind, and its own paths.
pub fn layouts<K: Kind>(kind: &K) -> Vec<Layout> {
    let mut layouts = kind.layouts();
    layouts.push(Layout::new("playhouse"));
    layouts
}

/// Writes the parameters of a saved state in the first layout of the kind.
pub fn export<K: Kind>(
    kind: &K,
    module: &K::Module,
    part: &Part,
    file: &Path,
) -> Result<(), NodeError> {
    let name = file.display().to_string();
    let fail = |reason: String| NodeError::Weights { file: name.clone(), reason };
    let layout = &layouts(kind)[0];
    let mut pieces = Vec::new();
    for parameter in parameters::list(module) {
        let saved = format!("parameter.{}", parameter.path);
        let frame = part.tensors.get(&saved);
        let frame = frame.ok_or_else(|| fail(format!("the saved state has no `{saved}`")))?;
        let values = frame.to_f32();
        pieces.push((layout.slot(&parameter.path), parameter, values));
    }
    write(assemble(pieces), file)
}

/// Writes tensors as a safetensors file, whole or not at all.
fn write(tensors: BTreeMap<String, Stored>, file: &Path) -> Result<(), NodeError> {
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
        if parameter.linear {
            let [inputs, outputs] = [parameter.shape[0], parameter.shape[1]];
            let at = |i: usize| values[(i % inputs) * outputs + i / inputs];
            values = (0..inputs * outputs).map(at).collect();
        }
        let shape = slot.file_shape(parameter.file_shape());
        let count = values.len();
        let empty = || (shape, vec![0.0; count * slot.part[1]]);
        let (_, all) = tensors.entry(slot.key).or_insert_with(empty);
        all[slot.part[0] * count..(slot.part[0] + 1) * count].copy_from_slice(&values);
    }
    tensors
}

/// Loads tensors into a module, in whichever of the layouts they are.
pub fn load_tensors<M: Module>(
    file: &str,
    tensors: &SafeTensors<'_>,
    module: M,
    layouts: &[Layout],
) -> Result<(M, Coverage), NodeError> {
    let found = keys::find(file, tensors, &parameters::list(&module), layouts)?;
    let module = load_slots(file, tensors, module, &found.slots)?;
    let loaded = found.slots.len();
    let slots = found.slots.into_iter().map(|(parameter, slot)| (parameter.path, slot)).collect();
    let coverage = Coverage { layout: found.layout, loaded, unused: found.unused, slots };
    Ok((module, coverage))
}

/// Gives parameters the tensors of these slots, which have their shapes.
fn load_slots<M: Module>(
    file: &str,
    tensors: &SafeTensors<'_>,
    module: M,
    slots: &[(Parameter, Slot)],
) -> Result<M, NodeError> {
    let mut values: BTreeMap<String, AnyTensor> = BTreeMap::new();
    for (parameter, slot) in slots {
        let fail = |reason: String| NodeError::Weights { file: file.to_owned(), reason };
        let view = tensors.tensor(&slot.key).map_err(|e| fail(format!("`{}`: {e}", slot.key)))?;
        let tensor = read(&view, slot.part, parameter.file_shape());
        let tensor = tensor.map_err(|e| fail(format!("`{}`: {e}", slot.key)))?;
        values.insert(parameter.path.clone(), tensor);
    }
    Ok(parameters::map(module, &mut |parameter, old| {
        let Some(new) = values.remove(&parameter.path) else { return old };
        let new = match (parameter.linear, new) {
            (true, AnyTensor::F2(matrix)) => matrix.transpose().into(),
            (_, new) => new,
        };
        let device = device_of(&old);
        new.to_device(&device)
    }))
}

fn device_of(tensor: &AnyTensor) -> Device {
    use crate::tensors::each_float;
    each_float!(tensor, t => t.device(), _other => unreachable!("parameters are floats"))
}

/// Part of a tensor of a file, in its own memory layout, widened to f32.
fn read(
    view: &safetensors::tensor::TensorView<'_>,
    [part, parts]: [usize; 2],
    shape: Vec<usize>,
) -> Result<AnyTensor, String> {
    let length = view.data().len() / parts;
    let bytes = &view.data()[part * length..(part + 1) * length];
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => {
            bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
        }
        Dtype::BF16 => {
            let wide = |b: &[u8; 2]| half::bf16::from_le_bytes(*b).to_f32();
            bytes.as_chunks::<2>().0.iter().map(wide).collect()
        }
        Dtype::F16 => {
            let wide = |b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f32();
            bytes.as_chunks::<2>().0.iter().map(wide).collect()
        }
        other => return Err(format!("{other:?}")),
    };
    let data = TensorData::new(values, shape);
    debug_assert_eq!(data.dtype(), BurnDType::F32);
    let host = crate::device::host();
    AnyTensor::from_data(data, &host).ok_or_else(|| "a rank above 6".to_owned())
}
