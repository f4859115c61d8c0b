//! Kinds as modules with the weights of a fixture, and their gradients in the file's layout.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor};
use modules::REGISTRY;
use modules::archive::Archive;
use modules::init::Init;
use modules::kind::{Call, Kind};
use modules::layout::Slot;
use modules::parameters::Parameter;
use modules::rng::Key;
use modules::tensors::{AnyTensor, Tensors};
use modules::{parameters, weights};
use schemas::dims::Dims;
use schemas::entry::find;
use schemas::node::At;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::report::Report;
use super::vjepa2::meet_named;

/// The device that fixtures run on, with autodiff.
pub fn autodiff() -> Device {
    crate::device::device().autodiff()
}

/// A kind with its module.
#[derive(Debug)]
pub struct Network<K: Kind> {
    /// Options.
    pub kind: K,
    /// Parameters of the fixture.
    pub module: K::Module,
    /// Keys of the file that a parameter took.
    pub taken: BTreeSet<String>,
    slots: BTreeMap<String, Slot>,
}

impl<K: Kind + std::fmt::Debug> Network<K> {
    /// Makes the module and loads a weights file through the code that users go through.
    pub fn load(fixture: &Fixture, file: &str, options: Value, dims: &Dims) -> Self {
        let kind: K = serde_json::from_value(options).expect("the options are right");
        let problems = kind.check(dims);
        assert!(problems.is_empty(), "{problems:?}");
        let module = kind.init(dims, &Init::new(0, "golden", &autodiff()));
        let archive = Archive::open(&fixture.folder.join(file));
        let archive = archive.unwrap_or_else(|error| panic!("{error}"));
        let (module, coverage) = weights::load(&archive, module, &weights::layouts(&kind))
            .unwrap_or_else(|error| panic!("{error}"));
        let taken = coverage.slots.values().map(|slot| slot.key.clone()).collect();
        Self { kind, module, taken, slots: coverage.slots }
    }

    /// Makes the module that the fixture's `config.json` says; `more` are dims that it leaves open.
    pub fn published(fixture: &Fixture, file: &str, more: &Dims) -> Self {
        let found = K::published(&fixture.config).expect("the kind knows the configuration");
        let mut dims = found.dims;
        dims.extend(more.clone());
        Self::load(fixture, file, found.options, &dims)
    }

    /// Runs the kind as a node does, without drop path.
    pub fn forward(&self, inputs: Tensors) -> Tensors {
        let given = self.kind.forward(&self.module, inputs, &call());
        given.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Gradients by key, in the layout of the file.
    pub fn gradients(&self, all: &mut Gradients) -> Arrays {
        let list = parameters::list(&self.module);
        let mut found = parameters::gradients(&self.module, all);
        let piece = |parameter: Parameter| {
            let slot = self.slots.get(&parameter.path)?.clone();
            let gradient = any(found.remove(&parameter.path)?);
            let values = gradient.values.iter().map(|value| *value as f32).collect();
            Some((slot, parameter, values))
        };
        arrays(list.into_iter().filter_map(piece).collect())
    }
}

/// A pass that does not train.
pub fn call() -> Call {
    Call::new(Key::new(0, "golden"), At::default())
}

/// Runs a kind without parameters.
pub fn plain<K: Kind>(kind: &K, inputs: Tensors) -> Tensors {
    let module = kind.init(&Dims::new(), &Init::new(0, "golden", &autodiff()));
    kind.forward(&module, inputs, &call()).unwrap_or_else(|error| panic!("{error}"))
}

/// Parameters of a node, by key of `network`'s file: it starts with one file and follows a node that
/// holds the other with this decay.
pub fn followed<K: Kind + std::fmt::Debug>(
    fixture: &Fixture,
    network: &Network<K>,
    (kind, dims): (&str, &Dims),
    files: [&str; 2],
    decay: f64,
) -> Arrays {
    let options = serde_json::to_value(&network.kind).expect("options are plain data");
    let entry = find(REGISTRY, kind).expect("the kind exists");
    let node = |file: &str, ema: Option<f64>| {
        let spec = json!({
            "name": kind, "kind": kind, "options": options, "dims": dims, "wired": [],
            "wants": [], "backward": false, "optimizer": null, "frozen": [], "seed": 0,
            "device": crate::device::name(), "precision": "f32", "checkpointing": false,
            "weights": fixture.folder.join(file), "ema": ema,
        });
        let spec = serde_json::from_value(spec).expect("a spec");
        (entry.build)(&spec).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut follower = node(files[0], Some(decay));
    let leader = node(files[1], None);
    follower.follow(leader.weights()).unwrap_or_else(|error| panic!("{error}"));
    let mut held = follower.weights();
    let piece = |parameter: Parameter| {
        let values = held.remove(&parameter.path)?.to_f32();
        Some((network.slots.get(&parameter.path)?.clone(), parameter, values))
    };
    let pieces = parameters::list(&network.module).into_iter().filter_map(piece).collect();
    arrays(pieces)
}

/// Compares all `ema.<m0 and digits>.<key>`: `m0998` is a decay of 0.998.
pub fn check_moments<K: Kind + std::fmt::Debug>(
    report: &mut Report,
    (fixture, arrays): (&Fixture, &Arrays),
    network: &Network<K>,
    named: (&str, &Dims),
    files: [&str; 2],
) {
    let digits = |key: &String| Some(key.strip_prefix("ema.m0")?.split_once('.')?.0.to_owned());
    for digits in arrays.keys().filter_map(digits).collect::<BTreeSet<_>>() {
        let decay = format!("0.{digits}").parse().expect("digits");
        let after = followed(fixture, network, named, files, decay);
        meet_named(report, &format!("ema.m0{digits}."), &after);
    }
}

/// Tensors of a file from parts of it.
fn arrays(pieces: Vec<(Slot, Parameter, Vec<f32>)>) -> Arrays {
    let wide = |(key, (shape, values)): (String, weights::Stored)| {
        (key, Array { shape, values: values.into_iter().map(f64::from).collect() })
    };
    weights::assemble(pieces).into_iter().map(wide).collect()
}

/// Takes one tensor by port.
pub fn port<const D: usize>(tensors: &mut Tensors, name: &str) -> Tensor<D>
where
    Tensor<D>: modules::tensors::Ranked,
{
    tensors.take(name).unwrap_or_else(|error| panic!("{error}"))
}

fn any(tensor: AnyTensor) -> Array {
    let data = tensor.to_data();
    Array { shape: data.shape().to_vec(), values: data.iter::<f64>().collect() }
}

/// Whether the networks together took every key of a weights file.
pub fn check_coverage(
    report: &mut Report,
    fixture: &Fixture,
    file: &str,
    taken: &[&BTreeSet<String>],
) {
    let all: BTreeSet<String> = fixture.arrays(file).into_keys().collect();
    let taken: BTreeSet<String> = taken.iter().flat_map(|set| set.iter().cloned()).collect();
    report.same(&format!("keys of {file}"), &taken, &all);
}

/// Compares all `<prefix>grad_param.*` of the fixture, and the norms of all gradients.
pub fn check_gradients(report: &mut Report, fixture: &Fixture, prefix: &str, gradients: &Arrays) {
    for (key, gradient) in gradients {
        let name = format!("{prefix}grad_param.{key}");
        if report.expects(&name) {
            report.meet(&name, gradient);
        }
    }
    let norms = fixture.meta["param_grad_l2"].as_object().filter(|_| prefix.is_empty());
    for (key, norm) in norms.into_iter().flatten() {
        let one = |values: Vec<f64>| Array { shape: vec![1], values };
        let expected = one(vec![norm.as_f64().expect("norms are numbers")]);
        let found =
            gradients.get(key).map_or(0.0, |g| g.values.iter().map(|v| v * v).sum::<f64>().sqrt());
        report.compare(&format!("param_grad_l2.{key}"), &one(vec![found]), &expected);
    }
}

/// Dims by name.
pub fn dims<const N: usize>(pairs: [(&str, usize); N]) -> Dims {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Number of parameters, without making any.
pub fn count<M: Module>(module: &M) -> u64 {
    parameters::count(module)
}
