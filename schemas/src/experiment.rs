//! The experiment file, field for field.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lora::LoraConfig;
use crate::node::{Optimizer, Precision};
use crate::stage::{GateConfig, LossConfig, Moments, TrainConfig};

/// One experiment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// What the experiment is to find out.
    #[serde(default)]
    pub question: String,
    /// Seed of every random draw.
    #[serde(default)]
    pub seed: u64,
    /// Nodes by name.
    pub graph: BTreeMap<String, NodeConfig>,
    /// Stages in order.
    pub curriculum: Vec<StageConfig>,
    /// Who watches the run; `progress` and `metrics_csv` when absent.
    #[serde(default)]
    pub observers: Vec<ObserverConfig>,
    /// Machines or processes that nodes may be placed on, by name.
    #[serde(default)]
    pub hosts: BTreeMap<String, HostConfig>,
    /// Host of each node; nodes that are not named stay with the supervisor.
    #[serde(default)]
    pub place: BTreeMap<String, String>,
    /// How the run behaves.
    #[serde(default)]
    pub run: RunConfig,
}

/// One node: these keys, and the options of its kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeConfig {
    /// What the node is an instance of, for example `models/internvideo2`.
    pub kind: String,
    /// Another node whose weights these are: a second vertex on the same parameters, with inputs, and a mode,
    /// of its own. What it does not say is as at the other node. Its gradients become part of the other's update.
    #[serde(default)]
    pub same: Option<String>,
    /// Where each input comes from: `port: node.port`; null leaves an optional input open.
    #[serde(default, rename = "in")]
    pub inputs: BTreeMap<String, Option<String>>,
    /// `true`, or prefixes of parameters, that never train. Gradients still pass through.
    #[serde(default)]
    pub frozen: Frozen,
    /// Weights file, safetensors in the key layout of the public checkpoints.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// Device: `flex`, `tch`, `tch:cuda:0`.
    #[serde(default)]
    pub device: Option<String>,
    /// What the node computes in: `f32` or `bf16`. Parameters that train, gradients and optimiser
    /// state stay f32.
    #[serde(default)]
    pub precision: Precision,
    /// Compute the activations of blocks again in the backward pass: less memory, and each
    /// block runs forward twice.
    #[serde(default)]
    pub checkpointing: bool,
    /// Decay of the moving average of the weights that arrive at the `weights` port.
    #[serde(default)]
    pub ema: Option<f64>,
    /// Low-rank adapters beside matrices of linear layers; the other parameters then do not train.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
    /// Options of the kind.
    #[serde(flatten)]
    pub options: BTreeMap<String, Value>,
}

/// Keys of a node that are not options of its kind.
pub const NODE_KEYS: [&str; 10] = [
    "kind",
    "same",
    "in",
    "frozen",
    "weights",
    "device",
    "precision",
    "checkpointing",
    "ema",
    "lora",
];

/// What of a node never trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "takes `true`, `false`, or a list of names; write, for example, `frozen: true`"
)]
pub enum Frozen {
    /// All of it, or nothing.
    All(bool),
    /// Parameters whose path begins with one of these names.
    Some(Vec<String>),
}

impl Default for Frozen {
    fn default() -> Self {
        Self::All(false)
    }
}

/// One row of the curriculum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name, unique.
    pub name: String,
    /// Optimiser updates.
    pub steps: u64,
    /// Nodes that train, on request with exceptions; none for a stage that only measures.
    #[serde(default)]
    pub train: Vec<TrainConfig>,
    /// Weight of each loss, by `node.port`. Only what they need runs.
    pub losses: BTreeMap<String, LossConfig>,
    /// How gradients become updates; needed when something trains.
    #[serde(default)]
    pub optimizer: Option<Optimizer>,
    /// Whether the optimiser's moments go on from the stage before: `keep`, `reset`, or names of nodes.
    #[serde(default)]
    pub moments: Moments,
    /// Microbatches whose gradients add up to one update.
    #[serde(default = "one")]
    pub accumulate: u32,
    /// Media, and how often each comes in a round of steps. One is drawn for each step; losses say with `on` which
    /// media they count for.
    #[serde(default)]
    pub mixture: BTreeMap<String, u32>,
    /// What ends the stage before its last step; any of them does.
    #[serde(default)]
    pub until: Vec<GateConfig>,
    /// What differs in this stage, by dotted path in the graph.
    #[serde(default, rename = "with")]
    pub changes: BTreeMap<String, Value>,
    /// The earlier stage whose end this one begins with; the one before it when absent.
    #[serde(default)]
    pub from: Option<String>,
    /// Nodes that begin with the parameters of another node of the earlier stage.
    #[serde(default)]
    pub takes: BTreeMap<String, String>,
    /// Nodes, or parts of them (`node.prefix`), that start from fresh parameters in this stage.
    #[serde(default)]
    pub fresh: Vec<String>,
    /// Parts of nodes (`node.prefix`) of the earlier stage that nobody takes over.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Rules that fit parameters to this stage, by `node.path`; `*` stands for any characters.
    #[serde(default)]
    pub rules: BTreeMap<String, Value>,
}

fn one() -> u32 {
    1
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            steps: 1,
            train: Vec::new(),
            losses: BTreeMap::new(),
            optimizer: None,
            moments: Moments::default(),
            accumulate: one(),
            mixture: BTreeMap::new(),
            until: Vec::new(),
            changes: BTreeMap::new(),
            from: None,
            takes: BTreeMap::new(),
            fresh: Vec::new(),
            drop: Vec::new(),
            rules: BTreeMap::new(),
        }
    }
}

/// An observer: a name, or a mapping with `kind` and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "takes names, or mappings with `kind`; write, for example, `[progress, { kind: checkpoint, every: 100 }]`"
)]
pub enum ObserverConfig {
    /// By name, with default options.
    Name(String),
    /// With options.
    Full {
        /// Name of the observer.
        kind: String,
        /// Its options.
        #[serde(flatten)]
        options: BTreeMap<String, Value>,
    },
}

impl ObserverConfig {
    /// Name of the observer.
    pub fn kind(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Full { kind, .. } => kind,
        }
    }

    /// Options of the observer.
    pub fn options(&self) -> Value {
        match self {
            Self::Name(_) => Value::Object(serde_json::Map::new()),
            Self::Full { options, .. } => {
                Value::Object(options.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            }
        }
    }
}

/// A process that nodes may be placed on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// How frames travel to and from it.
    #[serde(default)]
    pub transport: TransportConfig,
    /// Address that a remote agent connects to, for example `tcp://10.0.0.1:5555`. Without one,
    /// the agent is started as a child process on this machine.
    #[serde(default)]
    pub listen: Option<String>,
    /// Compute threads of the process; all cores when absent.
    #[serde(default)]
    pub threads: Option<usize>,
}

/// Ways between processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TransportConfig {
    /// Shared memory for the bytes, a local socket for the headers: the same machine.
    #[default]
    Ipc,
    /// TCP with CURVE keys: any machine.
    Tcp,
}

/// How the run behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Steps that sources and frozen nodes may be ahead of the optimiser.
    pub prefetch: u64,
    /// Restarts within `restart_window` seconds before the run gives up.
    pub max_restarts: u32,
    /// Seconds that restarts are counted over.
    pub restart_window: f64,
    /// Folder with key files, as `playhouse keys` makes them, for agents started elsewhere.
    pub keys: Option<PathBuf>,
    /// Seconds without any progress before the node that is waited for is reported as stuck.
    pub deadline: f64,
    /// Device of nodes that name none; the first of the build when absent.
    pub device: Option<String>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            prefetch: 2,
            max_restarts: 3,
            restart_window: 300.0,
            keys: None,
            deadline: 600.0,
            device: None,
        }
    }
}
