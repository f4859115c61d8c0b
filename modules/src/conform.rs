//! Conformance: a kind against the numbers that another implementation gave.
//!
//! A folder of references holds `config.json`, `inputs.safetensors`, `expected.safetensors`, the
//! weights, and on request `meta.json` with a tolerance. Arrays are named like ports, or as other
//! codes name them ([`names`]), or as the caller says. Arrays `hidden.<i>` are the outputs of blocks
//! and are compared with those that the `layers` port holds. `grad_input.<input>` and `grad_param.<key>` are gradients of the
//! `loss` port, or of the sum of an output times `cotangent.<output>`; a single `cotangent` belongs
//! to the output of its shape.

mod array;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use schemas::dims::{Dim, Dims};
use schemas::entry::{Against, Compared, Conformance};
use schemas::node::{At, NodeError, NodeSpec};
use schemas::port::{Elements, Port, Ports};
use serde_json::Value;

use crate::archive::Archive;
use crate::kind::{Call, Kind, make, read};
use crate::layers::block;
use crate::layout::Slot;
use crate::parameters;
use crate::rng::Key;
use crate::tensors::{AnyTensor, Tensors};
use crate::weights;

use array::{Array, arrays, swapped};
use names::Naming;

/// Arrays of smaller numbers are compared as if this were their largest: what is 0 in theory is noise
/// in f32.
const FLOOR: f64 = 5e-2;

fn fault(path: &Path, reason: impl Into<String>) -> NodeError {
    NodeError::Weights { file: path.display().to_string(), reason: reason.into() }
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

fn values(tensor: &AnyTensor) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Options and dims that `config.json` says; those that are given win, name by name.
fn setting<K: Kind>(spec: &NodeSpec, folder: &Path) -> Result<(K, Dims), NodeError> {
    let path = folder.join("config.json");
    let config: Option<Value> = match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).map_err(|e| fault(&path, e.to_string()))?),
        Err(_) => None,
    };
    // A kind that stands in a checkpoint several times is told apart by what is given.
    let mut published = config.as_ref().map(K::all_published).unwrap_or_default();
    let told = published.iter().position(|one| says(&one.options, &spec.options));
    let published = (!published.is_empty()).then(|| published.swap_remove(told.unwrap_or(0)));
    let bare = spec.options.as_object().is_none_or(serde_json::Map::is_empty);
    let mut dims = Dims::new();
    let mut options = match (published, config) {
        (Some(published), _) => {
            dims = published.dims;
            published.options
        }
        // A configuration that the kind does not know says nothing where options are given.
        (None, Some(config)) if bare || serde_json::from_value::<K>(config.clone()).is_ok() => {
            config
        }
        (None, _) => Value::Object(serde_json::Map::new()),
    };
    dims.extend(spec.dims.clone());
    if !bare {
        lay_over(&mut options, &spec.options);
    }
    let spec = NodeSpec { options, ..spec.clone() };
    Ok((read::<K>(&spec).map_err(|error| fault(&path, error.to_string()))?, dims))
}

/// Whether options hold all that others hold.
fn says(options: &Value, others: &Value) -> bool {
    match (options, others) {
        (Value::Object(options), Value::Object(others)) => {
            others.iter().all(|(name, value)| options.get(name).is_some_and(|one| says(one, value)))
        }
        (one, other) => one == other,
    }
}

/// Options over others.
fn lay_over(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                lay_over(under.entry(name.as_str()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Names of the dims of a port, bound to the extents of an array.
fn bind(dims: &mut Dims, port: &Port, array: &Array) {
    for (name, extent) in port.dims.split_whitespace().zip(&array.shape) {
        if name.chars().all(|c| c.is_ascii_alphabetic()) {
            dims.insert(name.to_owned(), *extent);
        }
    }
}

/// Every side of the lattices of what is given must be known.
fn check_sides(ports: &Ports, leaves: &[Leaf], dims: &Dims) -> Result<(), String> {
    let given = |port: &&Port| leaves.iter().any(|(name, _, _)| *name == port.name);
    for port in ports.inputs.iter().filter(given) {
        for side in Dim::parse_all(port.lattice.as_deref().unwrap_or_default()).unwrap_or_default()
        {
            side.value(dims).map_err(|error| {
                format!("the lattice of `{}`: {error}; say it with `--dim`", port.name)
            })?;
        }
    }
    Ok(())
}

fn file(folder: &Path, names: [&str; 2]) -> PathBuf {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| folder.join(names[0]))
}

/// Arrays of the inputs; where all arrays are in one file, `input.` stands before them.
fn inputs(folder: &Path) -> Result<BTreeMap<String, Array>, NodeError> {
    let all = arrays(&file(folder, ["inputs.safetensors", "io.safetensors"]))?;
    let bare = |name: String| name.strip_prefix("input.").map(str::to_owned).unwrap_or(name);
    Ok(all.into_iter().map(|(name, array)| (bare(name), array)).collect())
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
    /// 1 = token, 0 = padding, `[B, L]`, where the kind takes such a mask.
    mask: Option<Array>,
}

impl Trial {
    fn open(against: &Against) -> Result<Self, NodeError> {
        let folder = &against.folder;
        let meta = std::fs::read_to_string(folder.join("meta.json")).ok();
        let meta: Value = meta.and_then(|m| serde_json::from_str(&m).ok()).unwrap_or_default();
        Ok(Self {
            expected: arrays(&file(folder, ["expected.safetensors", "io.safetensors"]))?,
            inputs: inputs(folder)?,
            tolerance: against.tolerance.unwrap_or_else(|| suggested(&meta)),
            compared: Vec::new(),
            done: BTreeSet::new(),
            mask: None,
        })
    }

    /// Compares an array with its reference, when there is one of as many values.
    fn meet(&mut self, name: &str, got: &[f64]) -> bool {
        let Some(expected) = self.expected.get(name) else { return false };
        if expected.values.len() != got.len() {
            return false;
        }
        let mut got = got.to_vec();
        if let Some(mask) = &self.mask
            && expected.shape.starts_with(&mask.shape)
        {
            // What stands at padding is nobody's: references leave different things there.
            let row = got.len() / mask.values.len().max(1);
            for (place, there) in mask.values.iter().enumerate() {
                if *there == 0.0 {
                    let row = place * row..(place + 1) * row;
                    got[row.clone()].copy_from_slice(&expected.values[row]);
                }
            }
        }
        self.compared.push(compare(name, &got, &expected.values, self.tolerance));
        self.done.insert(name.to_owned())
    }

    /// Compares what the blocks gave with arrays `<name>.<i>`, one for each block.
    fn meet_blocks<K: Kind>(&mut self, kind: &K, name: &str, layers: &AnyTensor) {
        let depth = kind.layers();
        let count = (0..).take_while(|i| self.expected.contains_key(&format!("{name}.{i}")));
        let (found, taps) = (values(layers), layers.shape()[0]);
        let options = serde_json::to_value(kind).unwrap_or_default();
        let inputs = options["tap_inputs"].as_bool().unwrap_or(false);
        let width = layers.shape().last().copied().unwrap_or(1).max(1);
        let unit = |row: &[f64]| (row.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-3;
        let units = found.chunks(width).all(unit);
        if count.count() != depth || inputs || units || !(1..=depth).contains(&taps) {
            return; // not the outputs of all blocks, or not as they are in the stream
        }
        let interval = options["tap_interval"].as_f64().unwrap_or(1.0);
        let places = block::taps(depth, taps, interval);
        for (place, one) in places.into_iter().zip(found.chunks(found.len() / taps)) {
            self.meet(&format!("{name}.{place}"), one);
        }
    }

    /// Every name that was said must be one of a port and of an array.
    fn check_names(&self, ports: &Ports, against: &Against) -> Result<(), NodeError> {
        let all = || ports.inputs.iter().chain(&ports.outputs).map(|port| port.name.as_str());
        for (port, array) in &against.names {
            let fail = |reason: String| Err(fault(&against.folder, reason));
            if !all().any(|name| name == port) {
                let names = all().collect::<Vec<_>>().join(", ");
                return fail(format!("no port is named `{port}`; there are {names}"));
            }
            let input = ports.inputs.iter().any(|one| one.name == *port);
            let arrays = if input { &self.inputs } else { &self.expected };
            let blocks = port == "layers" && arrays.contains_key(&format!("{array}.0"));
            if !self.expected.contains_key(array) && !arrays.contains_key(array) && !blocks {
                let names = arrays.keys().filter(|name| !name.starts_with("grad_"));
                let names = names.map(String::as_str).collect::<Vec<_>>().join(", ");
                let which = if input { "an input" } else { "an expected output" };
                return fail(format!("no array of {which} is named `{array}`; there are {names}"));
            }
        }
        Ok(())
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
            let given = self.inputs.get(name).map(|array| &array.shape);
            if given.is_some_and(|shape| shape.len() == 5 && *shape != found.shape) {
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
pub fn run<K: Kind>(spec: &NodeSpec, against: &Against) -> Result<Conformance, NodeError> {
    let folder = against.folder.as_path();
    let (kind, mut dims) = setting::<K>(spec, folder)?;
    let mut trial = Trial::open(against)?;
    let all: Vec<String> = kind.ports(&[]).inputs.into_iter().map(|port| port.name).collect();
    let ports = kind.ports(&all);
    trial.check_names(&ports, against)?;
    let mut tensors = Tensors::new();
    let mut leaves = Vec::new();
    let naming = Naming { said: &against.names, own: kind.reference_names() };
    for port in &ports.inputs {
        let found = naming.given(port, &trial.inputs, &trial.expected, &dims);
        let Some((name, array)) = found else { continue };
        bind(&mut dims, port, &array);
        if port.name == "mask" && array.shape.len() == 2 {
            trial.mask = Some(array.clone());
        }
        let float = port.elements == Elements::Float;
        let Some(tensor) = array.tensor(float) else { continue };
        let tensor = if float { tensor.leaf() } else { tensor };
        leaves.push((port.name.clone(), name, tensor.clone()));
        tensors.put(&port.name, tensor);
    }
    check_sides(&ports, &leaves, &dims).map_err(|reason| fault(folder, reason))?;
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
        let met = naming.of(port).into_iter().any(|name| trial.meet(name, &found));
        if !met && port == "layers" && !naming.of(port).is_empty() {
            let said = against.names.iter().find(|(name, _)| name == port);
            trial.meet_blocks(&kind, said.map_or("hidden", |(_, array)| array), output);
        }
    }
    let ends = trial.ends(&outputs, &ports);
    if let Some(mut all) = (!ends.is_empty()).then(|| crate::vjp::backward(ends)).flatten() {
        trial.meet_gradients(&leaves, (&module, &slots), &mut all);
    }
    Ok(trial.finish())
}
