//! The experiment file, field for field.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::nearest;
use crate::node::{Optimizer, Precision};
use crate::yaml::{Located, Tree};

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
    /// Numeric precision: `f32` or `bf16`.
    #[serde(default)]
    pub precision: Precision,
    /// Recompute the forward pass in the backward pass to save memory.
    #[serde(default)]
    pub checkpointing: bool,
    /// Decay of the moving average of the weights that arrive at the `weights` port.
    #[serde(default)]
    pub ema: Option<f64>,
    /// Options of the kind.
    #[serde(flatten)]
    pub options: BTreeMap<String, Value>,
}

/// Keys of a node that are not options of its kind.
pub const NODE_KEYS: [&str; 8] =
    ["kind", "in", "frozen", "weights", "device", "precision", "checkpointing", "ema"];

/// What of a node never trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
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
    /// Nodes that train; none for a stage that only measures.
    #[serde(default)]
    pub train: Vec<String>,
    /// Weight of each loss, by `node.port`. Only what they need runs.
    pub losses: BTreeMap<String, f64>,
    /// How gradients become updates; needed when something trains.
    #[serde(default)]
    pub optimizer: Option<Optimizer>,
    /// Microbatches whose gradients add up to one update.
    #[serde(default = "one")]
    pub accumulate: u32,
    /// What differs in this stage, by dotted path in the graph.
    #[serde(default, rename = "with")]
    pub changes: BTreeMap<String, Value>,
    /// Nodes that start from fresh parameters in this stage.
    #[serde(default)]
    pub fresh: Vec<String>,
}

fn one() -> u32 {
    1
}

/// An observer: a name, or a mapping with `kind` and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
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
    /// Microbatches that sources and frozen nodes may be ahead of the optimiser.
    pub prefetch: u64,
    /// Restarts within `restart_window` seconds before the run gives up.
    pub max_restarts: u32,
    /// Seconds that restarts are counted over.
    pub restart_window: f64,
    /// Folder with key files, as `playhouse keys` makes them, for agents started elsewhere.
    pub keys: Option<PathBuf>,
    /// Seconds without any progress before the node that is waited for is reported as stuck.
    pub deadline: f64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { prefetch: 2, max_restarts: 3, restart_window: 300.0, keys: None, deadline: 600.0 }
    }
}

const TOP_KEYS: [&str; 8] =
    ["question", "seed", "graph", "curriculum", "observers", "hosts", "place", "run"];

impl Experiment {
    /// Reads a merged tree. Everything that cannot be read is reported; the rest comes back.
    pub fn read(tree: &Located, report: &mut Report) -> Self {
        known_keys(tree, "", &TOP_KEYS, "key", report);
        let mut graph = BTreeMap::new();
        match tree.get("graph") {
            Some(nodes) if !nodes.entries().is_empty() => {
                for (name, node) in nodes.entries() {
                    check_name(name, &format!("graph.{name}"), node, report);
                    if let Some(config) = read_node(name, node, report) {
                        graph.insert(name.clone(), config);
                    }
                }
            }
            _ => missing(tree, "graph", "a mapping of nodes", report),
        }
        let curriculum = match tree.get("curriculum") {
            Some(stages) if !stages.items().is_empty() => read_stages(stages, report),
            _ => {
                missing(tree, "curriculum", "a list of stages", report);
                Vec::new()
            }
        };
        let observers = tree.get("observers").map_or(&[][..], Located::items);
        let observers = observers.iter().enumerate();
        let map = |key: &str| tree.get(key).map_or(&[][..], Located::entries).iter();
        Self {
            question: section(tree, "question", report).unwrap_or_default(),
            seed: section(tree, "seed", report).unwrap_or_default(),
            graph,
            curriculum,
            observers: observers
                .filter_map(|(i, o)| typed(o, &format!("observers.{i}"), report))
                .collect(),
            hosts: map("hosts")
                .filter_map(|(name, host)| {
                    let path = format!("hosts.{name}");
                    known_keys(host, &path, &["transport", "listen", "threads"], "key", report);
                    let null = matches!(host.tree, Tree::Null);
                    let host =
                        if null { Some(HostConfig::default()) } else { typed(host, &path, report) };
                    Some((name.clone(), host?))
                })
                .collect(),
            place: map("place")
                .filter_map(|(n, h)| Some((n.clone(), typed(h, &format!("place.{n}"), report)?)))
                .collect(),
            run: section(tree, "run", report).unwrap_or_default(),
        }
    }
}

fn check_name(name: &str, path: &str, at: &Located, report: &mut Report) {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        let message = format!("`{name}` is not a name");
        report.add(
            Diagnostic::new(Code::Value, &at.place, path, message)
                .hint("use up to 64 letters, digits, `_` and `-`"),
        );
    }
}

fn read_node(name: &str, node: &Located, report: &mut Report) -> Option<NodeConfig> {
    let path = format!("graph.{name}");
    if !matches!(node.tree, Tree::Map(_)) {
        let message = format!("node `{name}` is {}, not a mapping", node.what());
        report.add(
            Diagnostic::new(Code::Value, &node.place, path, message)
                .hint("write `{ kind: …, in: { … } }`"),
        );
        return None;
    }
    let kind = node.get("kind");
    let Some(kind) = kind.and_then(Located::text) else {
        let place = kind.map_or(&node.place, |k| &k.place);
        let message = format!("node `{name}` has no `kind`");
        report.add(
            Diagnostic::new(Code::Value, place, path, message)
                .hint("`playhouse list` shows all kinds"),
        );
        return None;
    };
    let mut config = NodeConfig { kind: kind.to_owned(), ..NodeConfig::default() };
    for (key, value) in node.entries() {
        let path = format!("{path}.{key}");
        match key.as_str() {
            "kind" => {}
            "in" => config.inputs = read_inputs(value, &path, report),
            "frozen" => config.frozen = typed(value, &path, report).unwrap_or_default(),
            "weights" => config.weights = typed(value, &path, report),
            "device" => config.device = typed(value, &path, report),
            "precision" => config.precision = typed(value, &path, report).unwrap_or_default(),
            "checkpointing" => {
                config.checkpointing = typed(value, &path, report).unwrap_or_default();
            }
            "ema" => config.ema = typed(value, &path, report),
            _ => {
                config.options.insert(key.clone(), value.to_json());
            }
        }
    }
    Some(config)
}

fn read_inputs(
    value: &Located,
    path: &str,
    report: &mut Report,
) -> BTreeMap<String, Option<String>> {
    let mut inputs = BTreeMap::new();
    if !matches!(value.tree, Tree::Map(_) | Tree::Null) {
        let message = format!("`in` is {}, not a mapping", value.what());
        report.add(
            Diagnostic::new(Code::Value, &value.place, path, message)
                .hint("write `in: { port: node.port }`"),
        );
    }
    for (port, from) in value.entries() {
        match (&from.tree, from.text()) {
            (Tree::Null, _) => {
                inputs.insert(port.clone(), None);
            }
            (_, Some(text)) if text.split('.').filter(|p| !p.is_empty()).count() == 2 => {
                inputs.insert(port.clone(), Some(text.to_owned()));
            }
            _ => {
                let message = format!("input `{port}` is not `node.port`");
                let path = format!("{path}.{port}");
                report.add(
                    Diagnostic::new(Code::Value, &from.place, path, message)
                        .hint("write, for example, `video: clips.video`"),
                );
            }
        }
    }
    inputs
}

fn read_stages(stages: &Located, report: &mut Report) -> Vec<StageConfig> {
    const KEYS: [&str; 8] =
        ["name", "steps", "train", "losses", "optimizer", "accumulate", "with", "fresh"];
    const OPTIMIZER: [&str; 11] = [
        "kind",
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "clip",
        "warmup",
        "warmup_lr",
        "min_lr",
        "schedule",
        "layer_decay",
    ];
    let mut read: Vec<StageConfig> = Vec::new();
    for (index, stage) in stages.items().iter().enumerate() {
        let path = format!("curriculum.{index}");
        known_keys(stage, &path, &KEYS, "key", report);
        if let Some(optimizer) = stage.get("optimizer") {
            known_keys(optimizer, &format!("{path}.optimizer"), &OPTIMIZER, "key", report);
        }
        let clean = without_unknown(stage, &KEYS, &OPTIMIZER);
        let Some(config) = typed::<StageConfig>(&clean, &path, report) else { continue };
        if read.iter().any(|other| other.name == config.name) {
            let message = format!("two stages are named `{}`", config.name);
            let place = stage.place_of("name");
            report.add(Diagnostic::new(Code::Twice, &place, format!("{path}.name"), message));
        }
        read.push(config);
    }
    read
}

fn without_unknown(stage: &Located, keys: &[&str], optimizer: &[&str]) -> Located {
    let mut clean = stage.clone();
    if let Tree::Map(entries) = &mut clean.tree {
        entries.retain(|(key, _)| keys.contains(&key.as_str()));
        for (_, value) in entries.iter_mut().filter(|(key, _)| key == "optimizer") {
            if let Tree::Map(entries) = &mut value.tree {
                entries.retain(|(key, _)| optimizer.contains(&key.as_str()));
            }
        }
    }
    clean
}

/// Reports every key that is not known, with the nearest that is.
pub fn known_keys(at: &Located, path: &str, known: &[&str], what: &str, report: &mut Report) {
    for (key, value) in at.entries() {
        if known.contains(&key.as_str()) {
            continue;
        }
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let hint = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", quoted(known)),
        };
        let message = format!("unknown {what} `{key}`");
        report.add(Diagnostic::new(Code::Unknown, &value.place, full, message).hint(hint));
    }
}

/// Names in backticks, with commas.
pub fn quoted(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn missing(tree: &Located, key: &str, what: &str, report: &mut Report) {
    let place = tree.place_of(key);
    let message = format!("`{key}` is missing or empty; it is {what}");
    report.add(Diagnostic::new(Code::Value, &place, key, message));
}

fn section<T: serde::de::DeserializeOwned>(
    tree: &Located,
    key: &str,
    report: &mut Report,
) -> Option<T> {
    tree.get(key).and_then(|value| typed(value, key, report))
}

/// Reads a value; what does not fit is reported at its own place.
pub fn typed<T: serde::de::DeserializeOwned>(
    value: &Located,
    path: &str,
    report: &mut Report,
) -> Option<T> {
    match serde_path_to_error::deserialize(value.to_json()) {
        Ok(read) => Some(read),
        Err(error) => {
            let inner = error.path().to_string().replace('[', ".").replace(']', "");
            let inner = if inner == "." { "" } else { inner.trim_start_matches('.') };
            let full = if inner.is_empty() { path.to_owned() } else { format!("{path}.{inner}") };
            let place = value.place_of(inner);
            let message = error.inner().to_string();
            report.add(Diagnostic::new(Code::Value, &place, full, message));
            None
        }
    }
}
