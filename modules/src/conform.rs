//! Conformance: a kind against the numbers that another implementation gave.
//!
//! A folder of references holds `config.json`, `inputs.safetensors`, `expected.safetensors`, the
//! weights, and on request `meta.json` with a tolerance. Arrays are named like ports, or as other
//! codes name them ([`ALIASES`]). `grad_input.<input>` and `grad_param.<key>` are gradients of the
//! `loss` port, or of the sum of an output times `cotangent.<output>`; a single `cotangent` belongs
//! to the output of its shape.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Gradients, Tensor, TensorData};
use schemas::dims::Dims;
use schemas::entry::{Compared, Conformance};
use schemas::node::{At, NodeError, NodeSpec};
use schemas::port::{Elements, Port, Ports};
use serde_json::Value;

use crate::archive::{Archive, Dtype};
use crate::kind::{Call, Kind, make, read};
use crate::layout::Slot;
use crate::parameters;
use crate::rng::Key;
use crate::tensors::{AnyTensor, Tensors};
use crate::weights;

/// Names that other codes give to what travels through a port.
const ALIASES: [(&str, &[&str]); 11] = [
    ("video", &["pixel_values", "pixel_values_videos", "image"]),
    ("ids", &["input_ids"]),
    ("types", &["token_type_ids"]),
    ("memory_mask", &["encoder_attention_mask", "image_attention_mask"]),
    ("mask", &["attention_mask", "pixel_attention_mask"]),
    ("hidden", &["bool_masked_pos"]),
    ("visible", &["mask", "bool_masked_pos", "context_mask"]),
    ("memory", &["encoder_hidden_states", "vision_embeds", "image_embeds"]),
    ("tokens", &["last_hidden_state", "encoder_out", "out", "last"]),
    ("pooled", &["pooler_output", "pooled_output"]),
    ("layers", &["z"]),
];

/// Arrays of smaller numbers are compared as if this were their largest: what is 0 in theory is noise
/// in f32.
const FLOOR: f64 = 5e-2;

/// An array of a reference file.
#[derive(Debug, Clone, PartialEq)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
    float: bool,
}

fn fault(path: &Path, reason: impl Into<String>) -> NodeError {
    NodeError::Weights { file: path.display().to_string(), reason: reason.into() }
}

fn arrays(path: &Path) -> Result<BTreeMap<String, Array>, NodeError> {
    let archive = Archive::open(path)?;
    let mut arrays = BTreeMap::new();
    for (key, info) in archive.keys() {
        let stored = archive.get(key)?;
        let values = match info.dtype {
            Dtype::I64 => {
                let one = |b: &[u8; 8]| i64::from_le_bytes(*b) as f64;
                stored.bytes.as_chunks::<8>().0.iter().map(one).collect()
            }
            _ => stored.to_f32().into_iter().map(f64::from).collect(),
        };
        let (shape, float) = (info.shape.to_vec(), info.dtype.is_float());
        arrays.insert(key.to_owned(), Array { shape, values, float });
    }
    Ok(arrays)
}

/// The worst value of an array beside its reference, in shares of the tolerance.
pub fn compare(name: &str, got: &[f64], expected: &[f64], tolerance: f64) -> Compared {
    let scale = expected.iter().fold(FLOOR, |most: f64, value| most.max(value.abs()));
    let share = |(got, expected): (&f64, &f64)| {
        let share = (got - expected).abs() / (tolerance * scale);
        if share.is_nan() { f64::INFINITY } else { share }
    };
    let shares = got.iter().zip(expected).map(share).enumerate();
    let (index, share) = shares.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0));
    let at = |values: &[f64]| values.get(index).copied().unwrap_or(f64::NAN);
    Compared { name: name.to_owned(), index, got: at(got), expected: at(expected), share }
}

/// Names under which a port may be in a reference.
fn names(port: &str) -> impl Iterator<Item = &str> {
    let others = ALIASES.iter().filter(move |(name, _)| *name == port);
    std::iter::once(port).chain(others.flat_map(|(_, names)| names.iter().copied()))
}

/// What a port is given: the array of its name, with its dims in the order of the port.
fn given(port: &Port, inputs: &BTreeMap<String, Array>) -> Option<(String, Array)> {
    let name = names(&port.name).find(|name| inputs.contains_key(*name))?;
    let mut array = inputs[name].clone();
    let rank = port.dims.split_whitespace().count();
    let bools = !array.float && array.values.iter().all(|v| *v == 0.0 || *v == 1.0);
    if port.elements == Elements::Int && bools && ["visible", "hidden"].contains(&&*port.name) {
        array = places(&array, if port.name == "hidden" { 1.0 } else { 0.0 })?;
    }
    if port.name == "video" && array.shape.len() == 4 {
        array.shape.insert(2, 1);
    } else if port.name == "video" && array.shape.len() == 5 && array.shape[1] != 3 {
        array = swapped(&array);
    }
    (array.shape.len() == rank).then(|| (name.to_owned(), array))
}

/// Where each row holds a value; every row holds it equally often.
fn places(array: &Array, value: f64) -> Option<Array> {
    let [rows, columns] = array.shape[..] else { return None };
    let found = |row: &[f64]| -> Vec<f64> {
        let row = row.iter().enumerate();
        row.filter(|(_, held)| **held == value).map(|(i, _)| i as f64).collect()
    };
    let rows_of: Vec<Vec<f64>> = array.values.chunks(columns.max(1)).map(found).collect();
    let count = rows_of.first().map_or(0, Vec::len);
    let even = rows_of.iter().all(|row| row.len() == count);
    let values = rows_of.concat();
    even.then_some(Array { shape: vec![rows, count], values, float: false })
}

/// A clip `[B, T, 3, H, W]` as `[B, 3, T, H, W]`, and the reverse.
fn swapped(array: &Array) -> Array {
    let [b, m, n, h, w] = array.shape[..] else { return array.clone() };
    let plane = h * w;
    let mut values = Vec::with_capacity(array.values.len());
    for (sample, second) in (0..b).flat_map(|s| (0..n).map(move |second| (s, second))) {
        for first in 0..m {
            let start = ((sample * m + first) * n + second) * plane;
            values.extend_from_slice(&array.values[start..start + plane]);
        }
    }
    Array { shape: vec![b, n, m, h, w], values, float: array.float }
}

impl Array {
    fn tensor(&self, float: bool) -> Option<AnyTensor> {
        let device = crate::device::host();
        let shape = self.shape.clone();
        let data = if float {
            TensorData::new(self.values.iter().map(|v| *v as f32).collect::<Vec<_>>(), shape)
        } else {
            TensorData::new(self.values.iter().map(|v| *v as i64).collect::<Vec<_>>(), shape)
        };
        AnyTensor::from_data(data, &device)
    }
}

fn values(tensor: &AnyTensor) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Options and dims: those that are given, else those that `config.json` says.
fn setting<K: Kind>(spec: &NodeSpec, folder: &Path) -> Result<(K, Dims), NodeError> {
    let path = folder.join("config.json");
    let config: Option<Value> = match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).map_err(|e| fault(&path, e.to_string()))?),
        Err(_) => None,
    };
    let published = config.as_ref().and_then(K::published);
    let empty = spec.options.as_object().is_none_or(serde_json::Map::is_empty);
    let mut dims = spec.dims.clone();
    let options = match (published, config) {
        (Some(published), _) if empty => {
            dims.extend(published.dims);
            published.options
        }
        (None, Some(config)) if empty => config,
        _ => spec.options.clone(),
    };
    let spec = NodeSpec { options, ..spec.clone() };
    Ok((read::<K>(&spec).map_err(|error| fault(&path, error.to_string()))?, dims))
}

/// Names of the dims of a port, bound to the extents of an array.
fn bind(dims: &mut Dims, port: &Port, array: &Array) {
    for (name, extent) in port.dims.split_whitespace().zip(&array.shape) {
        if name.chars().all(|c| c.is_ascii_alphabetic()) {
            dims.insert(name.to_owned(), *extent);
        }
    }
}

fn file(folder: &Path, names: [&str; 2]) -> PathBuf {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| folder.join(names[0]))
}

/// Port, name of the array, and the tensor that was made of it.
type Leaf = (String, String, AnyTensor);

/// A kind at work on the inputs of a reference.
struct Trial {
    expected: BTreeMap<String, Array>,
    inputs: BTreeMap<String, Array>,
    tolerance: f64,
    compared: Vec<Compared>,
    done: BTreeSet<String>,
}

impl Trial {
    fn open(folder: &Path, tolerance: Option<f64>) -> Result<Self, NodeError> {
        let meta = std::fs::read_to_string(folder.join("meta.json")).ok();
        let meta: Value = meta.and_then(|m| serde_json::from_str(&m).ok()).unwrap_or_default();
        Ok(Self {
            expected: arrays(&file(folder, ["expected.safetensors", "io.safetensors"]))?,
            inputs: arrays(&file(folder, ["inputs.safetensors", "io.safetensors"]))?,
            tolerance: tolerance.unwrap_or_else(|| suggested(&meta)),
            compared: Vec::new(),
            done: BTreeSet::new(),
        })
    }

    /// Compares an array with its reference, when there is one of as many values.
    fn meet(&mut self, name: &str, got: &[f64]) -> bool {
        let Some(expected) = self.expected.get(name) else { return false };
        if expected.values.len() != got.len() {
            return false;
        }
        self.compared.push(compare(name, got, &expected.values, self.tolerance));
        self.done.insert(name.to_owned())
    }

    /// The output to go back from, and its gradient.
    fn ends(
        &self,
        outputs: &BTreeMap<String, AnyTensor>,
        ports: &Ports,
    ) -> Vec<(AnyTensor, AnyTensor)> {
        if let Some(loss) = ports.losses().find_map(|port| outputs.get(port)) {
            let one = Tensor::<1>::ones([1], &crate::device::host());
            return vec![(loss.clone(), one.into())];
        }
        let mut ends = Vec::new();
        for (port, output) in outputs.iter().filter(|(_, output)| output.is_float()) {
            let own = [format!("cotangent.{port}"), format!("cotangent_{port}")];
            let own = own.iter().find_map(|name| self.inputs.get(name));
            let shared = self.inputs.get("cotangent").filter(|c| c.shape == output.shape());
            let Some(cotangent) = own.or(shared.filter(|_| ends.is_empty())) else { continue };
            if let Some(cotangent) = cotangent.tensor(true) {
                ends.push((output.clone(), cotangent));
            }
        }
        ends
    }

    /// Compares the gradients of inputs and parameters.
    fn meet_gradients<M: Module>(
        &mut self,
        leaves: &[Leaf],
        (module, slots): (&M, &BTreeMap<String, Slot>),
        all: &mut Gradients,
    ) {
        for (_, name, leaf) in leaves {
            let Some(gradient) = leaf.gradient(all) else { continue };
            let mut found =
                Array { shape: gradient.shape(), values: values(&gradient), float: true };
            if self.inputs[name].shape.len() == 5 && self.inputs[name].shape != found.shape {
                found = swapped(&found);
            }
            self.meet(&format!("grad_input.{name}"), &found.values);
        }
        let mut gradients = parameters::gradients(module, all);
        let pieces = parameters::list(module).into_iter().filter_map(|parameter| {
            let slot = slots.get(&parameter.path)?.clone();
            let gradient = gradients.remove(&parameter.path)?;
            let found = values(&gradient).into_iter().map(|v| v as f32).collect();
            Some((slot, parameter, found))
        });
        for (key, (_, found)) in weights::assemble(pieces.collect()) {
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            self.meet(&format!("grad_param.{key}"), &found);
        }
    }

    fn finish(self) -> Conformance {
        let left = self.expected.into_keys().filter(|name| !self.done.contains(name)).collect();
        Conformance { tolerance: self.tolerance, compared: self.compared, left }
    }
}

/// Share of the largest value that an array may be off: ten times what the reference was off in
/// single precision, at least 2e-5.
fn suggested(meta: &Value) -> f64 {
    let measured = meta["f32_vs_f64_max_abs_diff_and_scale"].as_object();
    let one =
        |pair: &Value| pair[0].as_f64().unwrap_or(0.0) / pair[1].as_f64().unwrap_or(1.0).max(1.0);
    let worst = measured.into_iter().flatten().map(|(_, pair)| one(pair)).fold(0.0, f64::max);
    (10.0 * worst).max(2e-5)
}

/// Compares a kind with a folder of references: outputs, and gradients where there are any.
pub fn run<K: Kind>(
    spec: &NodeSpec,
    folder: &Path,
    tolerance: Option<f64>,
) -> Result<Conformance, NodeError> {
    let (kind, mut dims) = setting::<K>(spec, folder)?;
    let mut trial = Trial::open(folder, tolerance)?;
    let all: Vec<String> = kind.ports(&[]).inputs.into_iter().map(|port| port.name).collect();
    let ports = kind.ports(&all);
    let mut tensors = Tensors::new();
    let mut leaves = Vec::new();
    for port in &ports.inputs {
        let Some((name, array)) = given(port, &trial.inputs) else { continue };
        bind(&mut dims, port, &array);
        let float = port.elements == Elements::Float;
        let Some(tensor) = array.tensor(float) else { continue };
        let tensor = if float { tensor.leaf() } else { tensor };
        leaves.push((port.name.clone(), name, tensor.clone()));
        tensors.put(&port.name, tensor);
    }
    let wired: Vec<String> = leaves.iter().map(|(port, _, _)| port.clone()).collect();
    let ports = kind.ports(&wired);
    if let Some(problem) = kind.check(&dims).into_iter().next() {
        let reason = format!("`{}`: {}; {}", problem.option, problem.message, problem.hint);
        return Err(fault(&folder.join("config.json"), reason));
    }
    let spec = NodeSpec { dims, ..spec.clone() };
    let module = make(&kind, &spec, &crate::device::host().autodiff());
    let mut slots = BTreeMap::new();
    let mut module = module;
    if parameters::count(&module) > 0 {
        let archive = Archive::open(&file(folder, ["model.safetensors", "weights.safetensors"]))?;
        let (loaded, coverage) = weights::load(&archive, module, &weights::layouts(&kind))?;
        (module, slots) = (loaded, coverage.slots);
    }
    let call = Call::new(Key::new(spec.seed, "conform"), At::default());
    let outputs = kind.forward(&module, tensors, &call)?.into_map();
    for (port, output) in &outputs {
        let found = values(output);
        let mut names = names(port);
        names.any(|name| trial.meet(name, &found));
    }
    let ends = trial.ends(&outputs, &ports);
    if let Some(mut all) = (!ends.is_empty()).then(|| crate::vjp::backward(ends)).flatten() {
        trial.meet_gradients(&leaves, (&module, &slots), &mut all);
    }
    Ok(trial.finish())
}
