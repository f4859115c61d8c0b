//! What a vertex of the graph can do, whatever computes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::frame::{Frame, FrameError, Frames};
use crate::handoff::Takeover;
pub use crate::optimizer::{Optimizer, OptimizerKind, Schedule};
use crate::timetable::{Timetable, When};

/// Which piece of work: the key that frames are joined by.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct At {
    /// Row of the curriculum, from 0.
    pub stage: u32,
    /// Optimiser update, counted over the run, from 0.
    pub step: u64,
    /// Part of the step, from 0.
    pub microbatch: u32,
}

/// Numbers that a node measured, by name.
pub type Measures = BTreeMap<String, f64>;

/// What a forward pass gives.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// Output frames by port.
    pub frames: Frames,
    /// Numbers for observers; losses are among them under the name of their port.
    pub measures: Measures,
    /// What people should know, such as a quarantined file.
    pub notices: Vec<Notice>,
}

/// Something that people should know and that did not stop the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A file that cannot be used; it is left out from now on.
    Quarantined {
        /// Path of the file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One optimiser update, the same for all trained nodes of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Step that the gradients belong to.
    pub step: u64,
    /// Learning rate of this step, before per-group factors.
    pub lr: f64,
    /// Factor on all gradients, from clipping by the global norm; 1 leaves them.
    pub scale: f64,
}

/// Numeric precision of a node's computation. Parameters and optimiser state stay f32.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats everywhere.
    #[default]
    F32,
    /// Forward and backward in bf16, reductions, parameters and optimiser state in f32.
    Bf16,
}

impl Precision {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Everything that makes a node, in a form that travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Name in the graph.
    pub name: String,
    /// Kind, for example `models/internvideo2`.
    pub kind: String,
    /// Options of the kind.
    pub options: serde_json::Value,
    /// Values of the symbols in the node's ports.
    pub dims: Dims,
    /// Input ports that are connected.
    pub wired: Vec<String>,
    /// Input ports whose gradient is wanted upstream.
    pub wants: Vec<String>,
    /// Whether a backward pass reaches this node.
    pub backward: bool,
    /// Microbatches of a step.
    #[serde(default = "one")]
    pub accumulate: u32,
    /// The optimiser, when the node trains.
    pub optimizer: Option<Optimizer>,
    /// Prefixes of parameter paths that do not train.
    pub frozen: Vec<String>,
    /// Prefixes of the parameter paths that train; all when absent.
    #[serde(default)]
    pub only: Option<Vec<String>>,
    /// Seed of the experiment.
    pub seed: u64,
    /// Device, for example `flex` or `tch:cuda:0`.
    pub device: String,
    /// Numeric precision.
    pub precision: Precision,
    /// Compute the activations of blocks again in the backward pass instead of keeping them.
    pub checkpointing: bool,
    /// Weights file loaded after initialisation.
    pub weights: Option<PathBuf>,
    /// Decay of the moving average when the `weights` port is connected.
    pub ema: Option<f64>,
    /// Low-rank adapters; the other parameters then do not train.
    #[serde(default)]
    pub lora: Option<crate::lora::Lora>,
    /// The steps that a source works in, when it does not in all of them.
    #[serde(default)]
    pub turns: Option<(Timetable, When)>,
}

impl NodeSpec {
    /// Whether a parameter trains, in a node that does.
    pub fn trains(&self, path: &str) -> bool {
        let under = |prefixes: &[String]| prefixes.iter().any(|prefix| covers(prefix, path));
        self.only.as_deref().is_none_or(under) && !under(&self.frozen)
    }

    /// A node that is not part of an experiment and does not train.
    pub fn alone(kind: &str, options: serde_json::Value, dims: Dims) -> Self {
        Self {
            name: kind.to_owned(),
            kind: kind.to_owned(),
            options,
            dims,
            wired: Vec::new(),
            wants: Vec::new(),
            backward: false,
            accumulate: one(),
            optimizer: None,
            frozen: Vec::new(),
            only: None,
            seed: 0,
            device: String::new(),
            precision: Precision::F32,
            checkpointing: false,
            weights: None,
            ema: None,
            lora: None,
            turns: None,
        }
    }
}

/// Whether a prefix covers a path of names: whole names only, and everything when it is empty.
pub fn covers(prefix: &str, path: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn one() -> u32 {
    1
}

/// State of a node: tensors by name, and words that describe them.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Parameters, optimiser state, buffers.
    pub tensors: BTreeMap<String, Frame>,
    /// Counters, cursor, versions.
    pub words: BTreeMap<String, String>,
}

/// Gradients that arrive at the outputs of a node: (port, frame), in a fixed order. A port that
/// feeds several consumers appears once for each; the node sums them in this order.
pub type Gradients = Vec<(String, Frame)>;

/// A vertex of the graph. Authors write kinds; the node around a kind is written once.
pub trait Node: Send {
    /// Computes the outputs of one microbatch and keeps what its backward pass needs.
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError>;

    /// Turns gradients of the outputs into gradients of the wanted inputs, and adds those of the
    /// parameters to what the step has so far.
    fn backward(&mut self, at: At, gradients: Gradients) -> Result<Frames, NodeError>;

    /// Sum of squares of the gradients that the step has so far.
    fn squared_norm(&mut self) -> Result<f64, NodeError>;

    /// Applies the gradients of the step and forgets them.
    fn update(&mut self, update: &Update) -> Result<Measures, NodeError>;

    /// Parameters by name, for nodes that listen to the `weights` port.
    fn weights(&self) -> Frames;

    /// Takes parameters of another node as they are.
    fn adopt(&mut self, weights: Frames) -> Result<(), NodeError>;

    /// Moves its average towards the parameters of another node, or copies them when it has no decay.
    fn follow(&mut self, weights: Frames) -> Result<(), NodeError>;

    /// The state at a step boundary. Cheap: device tensors are shared, not copied.
    fn save(&self) -> Part;

    /// Restores a state; refuses one that does not fit.
    fn load(&mut self, part: &Part) -> Result<(), NodeError>;

    /// Begins a stage with a state of an earlier one; refuses one that does not fit by the rules.
    fn take_over(&mut self, part: &Part, takeover: &Takeover) -> Result<(), NodeError>;

    /// Gradients of the step so far, by parameter; they are gone afterwards. None without parameters.
    fn take_gradients(&mut self) -> Frames {
        Frames::new()
    }

    /// Adds gradients of a node on the same weights to those of the step.
    fn add_gradients(&mut self, _gradients: Frames) -> Result<(), NodeError> {
        Ok(())
    }

    /// Forgets passes in flight and gradients of an unfinished step.
    fn rewind(&mut self);
}

/// Why a node could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An input port got no frame.
    #[error("input `{port}` got no frame")]
    MissingInput {
        /// Port.
        port: String,
    },
    /// A frame has another shape or dtype than the port.
    #[error("input `{port}` got {found}, expected {expected}")]
    Mismatch {
        /// Port.
        port: String,
        /// What came.
        found: String,
        /// What the port takes.
        expected: String,
    },
    /// An option has a value that the kind cannot use.
    #[error("option `{option}`: {reason}")]
    Option {
        /// Option.
        option: String,
        /// What is wrong.
        reason: String,
    },
    /// The node's device is not compiled in or not there.
    #[error("device `{device}` is not available; this build has {available}")]
    Device {
        /// Device asked for.
        device: String,
        /// Devices compiled in.
        available: String,
    },
    /// A weights file cannot be used.
    #[error("{file}: {reason}")]
    Weights {
        /// File.
        file: String,
        /// What is wrong, with the keys.
        reason: String,
    },
    /// A checkpoint part does not fit the node.
    #[error("the saved state does not fit: {reason}")]
    State {
        /// What is wrong, with the keys.
        reason: String,
    },
    /// A backward pass for work that has no forward pass.
    #[error("no forward pass is kept for step {} microbatch {}", at.step, at.microbatch)]
    NoForward {
        /// Which work.
        at: At,
    },
    /// Data cannot be read.
    #[error("{what}: {reason}")]
    Data {
        /// File or folder.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A frame is malformed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The computation panicked, which is a programming error.
    #[error("panicked: {message}")]
    Panic {
        /// Text of the panic.
        message: String,
    },
}
