//! Weights files: safetensors in the key layout of the checkpoints that people have.
//!
//! A kind maps each of its parameter paths to a key. The matrix of a linear layer is stored
//! `[out, in]` in files and `[in, out]` in memory. Loading is all or nothing: every parameter
//! must be in the file with its shape; keys that no parameter takes are reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType as BurnDType, Device, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use schemas::node::{NodeError, Part};

use crate::kind::Kind;
use crate::parameters::{self, Parameter};
use crate::tensors::AnyTensor;

/// What a weights file covered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
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
    load_tensors(&weights.name, &weights.tensors()?, module, &|path| kind.key(path))
}

/// Compares a file with the parameters of a module; reads neither.
pub fn check<K: Kind>(kind: &K, module: &K::Module, file: &Path) -> Result<(), NodeError> {
    let weights = WeightsFile::open(file)?;
    let tensors = weights.tensors()?;
    match_keys(&weights.name, &tensors, module, &|path| kind.key(path)).map(|_| ())
}

/// Keys by parameter path, and the keys that no parameter takes.
type Matched = (Vec<(Parameter, String)>, Vec<String>);

fn match_keys<M: Module>(
    file: &str,
    tensors: &SafeTensors<'_>,
    module: &M,
    key: &dyn Fn(&str) -> String,
) -> Result<Matched, NodeError> {
    let mut problems = Vec::new();
    let mut matched = Vec::new();
    let mut unused: BTreeSet<String> = tensors.names().iter().map(|n| n.to_string()).collect();
    for parameter in parameters::list(module) {
        let key = key(&parameter.path);
        let Ok(view) = tensors.tensor(&key) else {
            problems.push(format!("`{key}` is missing"));
            continue;
        };
        unused.remove(&key);
        let expected = parameter.file_shape();
        if squeezed(view.shape()) != squeezed(&expected) {
            problems.push(format!("`{key}` is {:?}, expected {expected:?}", view.shape()));
        } else if !is_float(view.dtype()) {
            problems.push(format!("`{key}` has dtype {:?}, not a float", view.dtype()));
        } else {
            matched.push((parameter, key));
        }
    }
    if problems.is_empty() {
        return Ok((matched, unused.into_iter().collect()));
    }
    let more = problems.len().saturating_sub(8);
    problems.truncate(8);
    let mut tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    if !unused.is_empty() {
        let shown: Vec<String> = unused.iter().take(4).map(|key| format!("`{key}`")).collect();
        let more = if unused.len() > shown.len() { " and more" } else { "" };
        tail.push_str(&format!("; no parameter takes {}{more}", shown.join(", ")));
    }
    let reason = format!("{}{tail}", problems.join("; "));
    Err(NodeError::Weights { file: file.to_owned(), reason })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Writes the parameters of a saved state in the key layout of the public checkpoints.
pub fn export<K: Kind>(
    kind: &K,
    module: &K::Module,
    part: &Part,
    file: &Path,
) -> Result<(), NodeError> {
    let name = file.display().to_string();
    let fail = |reason: String| NodeError::Weights { file: name.clone(), reason };
    let mut tensors = Vec::new();
    for parameter in parameters::list(module) {
        let saved = format!("parameter.{}", parameter.path);
        let frame = part.tensors.get(&saved);
        let frame = frame.ok_or_else(|| fail(format!("the saved state has no `{saved}`")))?;
        let mut values = frame.to_f32();
        if parameter.linear {
            let [inputs, outputs] = [parameter.shape[0], parameter.shape[1]];
            let at = |i: usize| values[(i % inputs) * outputs + i / inputs];
            values = (0..inputs * outputs).map(at).collect();
        }
        let bytes: Vec<_> = values.into_iter().map(f32::to_le_bytes).collect();
        tensors.push((kind.key(&parameter.path), parameter.file_shape(), bytes.into_flattened()));
    }
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

/// Loads tensors into a module, with `key` naming each parameter path.
pub fn load_tensors<M: Module>(
    file: &str,
    tensors: &SafeTensors<'_>,
    module: M,
    key: &dyn Fn(&str) -> String,
) -> Result<(M, Coverage), NodeError> {
    let (matched, unused) = match_keys(file, tensors, &module, key)?;
    let mut found: BTreeMap<String, AnyTensor> = BTreeMap::new();
    for (parameter, key) in matched {
        let fail = |reason: String| NodeError::Weights { file: file.to_owned(), reason };
        let view = tensors.tensor(&key).map_err(|e| fail(format!("`{key}`: {e}")))?;
        let shape = parameter.file_shape();
        let tensor = read(&view, shape).map_err(|e| fail(format!("`{key}`: {e}")))?;
        found.insert(parameter.path, tensor);
    }
    let loaded = found.len();
    let module = parameters::map(module, &mut |parameter, old| {
        let Some(new) = found.remove(&parameter.path) else { return old };
        let new = match (parameter.linear, new) {
            (true, AnyTensor::F2(matrix)) => matrix.transpose().into(),
            (_, new) => new,
        };
        let device = device_of(&old);
        new.to_device(&device)
    });
    Ok((module, Coverage { loaded, unused }))
}

fn device_of(tensor: &AnyTensor) -> Device {
    use crate::tensors::each_float;
    each_float!(tensor, t => t.device(), _other => unreachable!("parameters are floats"))
}

/// Extents without ones in front, so that `[1, N, D]` tables fit `[N, D]` and the reverse.
fn squeezed(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&d| d == 1).count();
    &shape[ones.min(shape.len().saturating_sub(1))..]
}

/// The tensor in its own memory layout, widened to f32.
fn read(
    view: &safetensors::tensor::TensorView<'_>,
    shape: Vec<usize>,
) -> Result<AnyTensor, String> {
    let bytes = view.data();
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
