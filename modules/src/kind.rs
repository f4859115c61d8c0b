//! How a file becomes a kind.
//!
//! A file under `audio/`, `data/`, `losses/`, `masks/`, `models/`, `probes/`, `select/` or `text/` defines an
//! options struct and implements one trait for it: [`Kind`] for a burn module, [`Host`] for work on
//! host data (sources, masks, memory banks). Its `ENTRY` puts it into the registry under its path.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use burn::module::{Module, ParamId};
use burn::tensor::Device;
use schemars::JsonSchema;
use schemas::dims::Dims;
pub use schemas::entry::Published;
use schemas::entry::{Count, Entry, Export, OptionProblem, Parameter, read_options};
use schemas::frame::Frames;
use schemas::lora::Lora;
use schemas::node::{At, Forwarded, Node, NodeError, NodeSpec, Part};
use schemas::port::Ports;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::conform;
use crate::host_node::HostNode;
use crate::init::Init;
use crate::kind_node::KindNode;
use crate::layout::Layout;
use crate::parameters;
use crate::rng::Key;
use crate::segments::Segments;
use crate::tensors::Tensors;
use crate::weights;

/// Circumstances of one forward pass.
#[derive(Debug, Clone)]
pub struct Call {
    /// Names the draws of this pass: (seed, node, stage, step, microbatch).
    pub key: Key,
    /// Whether dropout and drop path are active: the node trains in this stage.
    pub training: bool,
    /// Which work.
    pub at: At,
    /// Number of the step among those that the node works in, counted over the run.
    pub turn: u64,
    /// Microbatches of a step.
    pub accumulate: u32,
    /// Takes note of blocks whose activations are not kept, under activation checkpointing.
    pub segments: Option<Segments>,
}

impl Call {
    /// A pass that does not train.
    pub fn new(key: Key, at: At) -> Self {
        Self { key, training: false, at, turn: at.step, accumulate: 1, segments: None }
    }

    /// Number of the microbatch among those of the node, from the first one of the run.
    pub fn number(&self) -> u64 {
        self.turn * u64::from(self.accumulate) + u64::from(self.at.microbatch)
    }
}

/// A port, and names of its array in references.
pub type Names = (&'static str, &'static [&'static str]);

/// A kind whose nodes hold a burn module. The implementing type is its options.
pub trait Kind: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static {
    /// The module: parameters and `forward`.
    type Module: Module + Debug + 'static;

    /// Ports, given which inputs are connected.
    fn ports(&self, wired: &[String]) -> Ports;

    /// Problems that the options show, alone or with the dims of the inputs.
    fn check(&self, _dims: &Dims) -> Vec<OptionProblem> {
        Vec::new()
    }

    /// Makes the module. `dims` holds the values of all symbols in the ports.
    fn init(&self, dims: &Dims, init: &Init) -> Self::Module;

    /// Takes tensors by port, calls the module, gives tensors by port.
    fn forward(
        &self,
        module: &Self::Module,
        inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError>;

    /// Ways in which the checkpoints that people have name the parameters; the first one is written
    /// when nothing else is asked for. Every kind can also be read and written under its own paths.
    fn layouts(&self) -> Vec<Layout> {
        Vec::new()
    }

    /// What the `config.json` beside published weights says in the words of this kind; none when it is
    /// of another network.
    fn published(_config: &Value) -> Option<Published> {
        None
    }

    /// The same for checkpoints that hold the kind several times.
    fn all_published(config: &Value) -> Vec<Published> {
        Self::published(config).into_iter().collect()
    }

    /// Names of arrays in references of the published code, where they are not the usual ones; none for
    /// what that code does not have.
    fn reference_names(&self) -> &'static [Names] {
        &[]
    }

    /// Whether weight decay applies: matrices, but not norms, biases, tokens and tables.
    fn decays(&self, path: &str, shape: &[usize]) -> bool {
        let extent = shape.iter().filter(|&&d| d > 1).count();
        extent > 1 && !["pos_embed", "token", "table", "bias"].iter().any(|w| path.contains(w))
    }

    /// Layer of a parameter for layer-wise decay: 0 for the embedding, i + 1 for block i, and
    /// `layers() + 1` for what comes after the last block.
    fn layer(&self, path: &str) -> usize {
        match path.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
            Some(number) => number.parse::<usize>().map_or(0, |n| n + 1),
            None if path.contains("embed") || path.contains("token") => 0,
            None => self.layers() + 1,
        }
    }

    /// Number of blocks.
    fn layers(&self) -> usize {
        0
    }

    /// Rows of the table of words, when there is one.
    fn vocabulary(&self) -> Option<usize> {
        None
    }

    /// Floating point operations of one forward pass; 0 when unknown.
    fn flops(&self, _dims: &Dims) -> u64 {
        0
    }
}

/// A kind that works on host data: a source, a mask, a memory bank.
pub trait Host: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static {
    /// What the node keeps between steps: open files, a bank.
    type State: Send;

    /// Ports, given which inputs are connected.
    fn ports(&self, wired: &[String]) -> Ports;

    /// Problems that the options show, alone or with the dims of the inputs.
    fn check(&self, _dims: &Dims) -> Vec<OptionProblem> {
        Vec::new()
    }

    /// Opens what the node needs. `key` names (seed, node).
    fn open(&self, dims: &Dims, key: &Key) -> Result<Self::State, NodeError>;

    /// Frames of one microbatch, a function of the state at the last boundary, the inputs and the
    /// draws named by `call.key`.
    fn forward(
        &self,
        state: &mut Self::State,
        inputs: Frames,
        call: &Call,
    ) -> Result<Forwarded, NodeError>;

    /// What must survive a restart; nothing when frames are a function of the step.
    fn save(&self, _state: &Self::State) -> Part {
        Part::default()
    }

    /// Restores what [`Host::save`] gave.
    fn load(&self, _state: &mut Self::State, _part: &Part) -> Result<(), NodeError> {
        Ok(())
    }
}

fn options<C: DeserializeOwned>(options: &Value) -> C {
    serde_json::from_value(options.clone()).expect("options were resolved before")
}

fn resolve<C: Serialize + DeserializeOwned>(options: &Value) -> Result<Value, OptionProblem> {
    let config: C = read_options(options)?;
    Ok(serde_json::to_value(config).expect("options are plain data"))
}

fn schema<C: JsonSchema>() -> Value {
    serde_json::to_value(schemars::schema_for!(C)).expect("a schema is plain data")
}

/// Reads the options of a node spec.
pub(crate) fn read<C: DeserializeOwned>(spec: &NodeSpec) -> Result<C, NodeError> {
    serde_path_to_error::deserialize(&spec.options).map_err(|error| NodeError::Option {
        option: error.path().to_string(),
        reason: error.inner().to_string(),
    })
}

fn build<K: Kind>(spec: &NodeSpec) -> Result<Box<dyn Node>, NodeError> {
    Ok(Box::new(KindNode::<K>::build(spec)?))
}

fn build_host<H: Host>(spec: &NodeSpec) -> Result<Box<dyn Node>, NodeError> {
    Ok(Box::new(HostNode::<H>::build(spec)?))
}

/// Makes the module of a node, with its adapters.
pub fn make<K: Kind>(kind: &K, spec: &NodeSpec, device: &Device) -> K::Module {
    let init = || Init::new(spec.seed, &spec.name, device);
    let first = init();
    let module = kind.init(&spec.dims, &first);
    let Some(lora) = &spec.lora else { return module };
    // Making a module makes no parameter, so its layers can be named before it is made again.
    let paths: BTreeMap<_, _> = parameters::ids(&module).into_iter().collect();
    let covered = |(number, id): (usize, ParamId)| {
        let layer = paths.get(&id)?.strip_suffix(".weight")?;
        lora.covers(layer).then_some(number)
    };
    let numbers = first.linears().into_iter().enumerate().filter_map(covered).collect();
    kind.init(&spec.dims, &init().with_lora(lora.clone(), numbers))
}

fn list<K: Kind>(spec: &NodeSpec) -> Vec<Parameter> {
    let Ok(kind) = read::<K>(spec) else { return Vec::new() };
    let spec = NodeSpec { lora: None, ..spec.clone() };
    parameters::list(&make(&kind, &spec, &crate::device::host()))
}

fn layouts<K: Kind>(spec: &NodeSpec) -> Vec<Layout> {
    read::<K>(spec).map(|kind| weights::layouts(&kind)).unwrap_or_default()
}

fn count<K: Kind>(spec: &NodeSpec) -> Count {
    let Ok(kind) = read::<K>(spec) else { return Count::default() };
    let module = make(&kind, spec, &crate::device::host());
    let listed = parameters::list(&module);
    let of = |only: &str| -> u64 {
        let chosen = listed.iter().filter(|p| p.path.starts_with(only));
        chosen.map(|p| p.shape.iter().product::<usize>() as u64).sum()
    };
    Count { parameters: of(""), blocks: of("blocks."), flops: kind.flops(&spec.dims) }
}

fn check_weights<K: Kind>(spec: &NodeSpec) -> Result<(), NodeError> {
    let (kind, Some(file)) = (read::<K>(spec)?, &spec.weights) else { return Ok(()) };
    let module = make(&kind, spec, &crate::device::host());
    weights::check(&kind, &module, (&spec.kind, file))
}

fn adapters<K: Kind>(spec: &NodeSpec, folder: &Path) -> Result<Lora, NodeError> {
    let (kind, host) = (read::<K>(spec)?, crate::device::host());
    let bare = NodeSpec { lora: None, ..spec.clone() };
    let lora = weights::adapters::read_config(&kind, &make(&kind, &bare, &host), folder)?;
    let spec = NodeSpec { lora: Some(lora.clone()), ..bare };
    weights::adapters::check(&kind, &make(&kind, &spec, &host), folder)?;
    Ok(lora)
}

fn export<K: Kind>(
    spec: &NodeSpec,
    part: &Part,
    what: Export,
    file: &Path,
) -> Result<(), NodeError> {
    let kind = read::<K>(spec)?;
    let module = make(&kind, spec, &crate::device::host());
    weights::export(&kind, &module, part, (what, spec.lora.as_ref()), file)
}

/// The entry of a kind with a module. `about` is the text of its file.
pub const fn entry<K: Kind>(about: &'static str) -> Entry {
    Entry {
        schema: schema::<K>,
        resolve: resolve::<K>,
        ports: |value, wired| options::<K>(value).ports(wired),
        check: |value, dims| options::<K>(value).check(dims),
        count: count::<K>,
        parameters: list::<K>,
        layouts: layouts::<K>,
        published: K::all_published,
        check_weights: check_weights::<K>,
        adapters: adapters::<K>,
        export: export::<K>,
        conform: conform::run::<K>,
        build: build::<K>,
        about,
        source: false,
    }
}

/// The entry of a kind on host data.
pub const fn host<H: Host>(about: &'static str) -> Entry {
    Entry {
        schema: schema::<H>,
        resolve: resolve::<H>,
        ports: |value, wired| options::<H>(value).ports(wired),
        check: |value, dims| options::<H>(value).check(dims),
        count: |_| Count::default(),
        parameters: |_| Vec::new(),
        layouts: |_| Vec::new(),
        published: |_| Vec::new(),
        check_weights: |_| Ok(()),
        adapters: |spec, _| {
            let reason = format!("`{}` has no layers for adapters", spec.kind);
            Err(NodeError::State { reason })
        },
        export: |spec, _, _, _| {
            let reason = format!("`{}` has no parameters to export", spec.kind);
            Err(NodeError::State { reason })
        },
        conform: |spec, _| {
            let reason = format!("`{}` works on host data; compare it in a test", spec.kind);
            Err(NodeError::State { reason })
        },
        build: build_host::<H>,
        about,
        source: false,
    }
}

/// The entry of a kind on host data without inputs.
pub const fn source<H: Host>(about: &'static str) -> Entry {
    let mut entry = host::<H>(about);
    entry.source = true;
    entry
}
