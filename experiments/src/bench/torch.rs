//! PyTorch's side of `bench step`: a Python process that computes the same stage.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};
use modules::layers::size::Size;
use modules::models::{internvideo2, internvl_clip, videomae_v2};
use schemas::entry::find;
use schemas::graph::{StageGraph, StageNode};
use schemas::node::NodeSpec;
use schemas::stage::LossWeight;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::openmp::{PASSIVE, WAIT};
use crate::plain;

const SCRIPT: &str = include_str!("step.py");

/// What the script answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<String>,
    parameters: BTreeMap<String, u64>,
    torch: String,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

/// The process, ended when dropped.
pub(crate) struct Torch {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Version of PyTorch.
    pub(crate) version: String,
}

impl Torch {
    /// Starts `python` and compares its parameters with ours.
    pub(crate) fn start(python: &Path, stage: &StageGraph, steps: u64) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if std::env::var_os(WAIT).is_none() {
            // Else it stands still where other programs use the cores too.
            command.env(WAIT, PASSIVE);
        }
        let named = || format!("cannot start `{}`", python.display());
        let mut child = command.spawn().with_context(named)?;
        let input = child.stdin.take().context("a piped input")?;
        let output = BufReader::new(child.stdout.take().context("a piped output")?);
        let mut torch = Self { child, input, output, version: String::new() };
        let answer = torch.ask(&describe(stage, steps)?).with_context(|| python_of(python))?;
        for (name, node) in &stage.nodes {
            let (ours, theirs) = (parameters(node), answer.parameters.get(name));
            if theirs != Some(&ours) {
                let theirs = theirs.map_or("none".to_owned(), u64::to_string);
                bail!("`{name}` has {ours} parameters here, but {theirs} in PyTorch");
            }
        }
        torch.version = answer.torch;
        Ok(torch)
    }

    /// Seconds of each step of one round, by the wall and of all cores.
    pub(crate) fn round(&mut self) -> anyhow::Result<[Vec<f64>; 2]> {
        let answer = self.ask(&json!("round"))?;
        Ok([answer.wall, answer.cpu])
    }

    fn ask(&mut self, what: &Value) -> anyhow::Result<Answer> {
        // A script that gave up has said why before it stopped reading.
        let _ = writeln!(self.input, "{what}").and_then(|()| self.input.flush());
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read from it")?;
        if line.is_empty() {
            bail!("it ended early; what it wrote is above");
        }
        let answer: Answer = serde_json::from_str(&line).context("cannot read its answer")?;
        match answer.error {
            Some(error) => bail!("{error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python_of(python: &Path) -> String {
    format!("the PyTorch side, `{}`", python.display())
}

/// Threads that a step may use here, and is given there.
pub(crate) fn threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn parameters(node: &StageNode) -> u64 {
    find(modules::REGISTRY, &node.spec.kind).map_or(0, |e| (e.count)(&node.spec).parameters)
}

/// The stage as the script reads it, producers first.
fn describe(stage: &StageGraph, steps: u64) -> anyhow::Result<Value> {
    let Some(optimizer) = &stage.optimizer else {
        bail!("stage `{}` has no optimizer, so there is no step to compare", stage.name);
    };
    let order = plain::order(stage);
    let nodes: Vec<Value> = order.iter().map(|name| node(stage, &stage.nodes[name])).collect();
    let mut losses = BTreeMap::new();
    for (end, weight) in &stage.losses {
        if *weight != LossWeight::constant(weight.weight) {
            bail!(
                "`{end}` does not count alike in every step; the PyTorch side knows constant weights"
            );
        }
        losses.insert(end.to_string(), weight.weight);
    }
    Ok(json!({
        "threads": threads(), "steps": steps, "nodes": nodes, "losses": losses,
        "optimizer": {
            "lr": optimizer.lr, "betas": optimizer.betas, "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay, "clip": optimizer.clip,
        },
    }))
}

fn node(stage: &StageGraph, node: &StageNode) -> Value {
    let spec = &node.spec;
    let edges = stage.edges.iter().filter(|e| e.to.node == spec.name && !e.is_weights());
    let inputs: BTreeMap<_, _> = edges.map(|e| (&e.to.port, e.from.to_string())).collect();
    let outputs: BTreeMap<_, _> = node.outputs.iter().map(|(port, s)| (port, &s.dims)).collect();
    json!({
        "name": spec.name, "kind": spec.kind, "options": spec.options, "dims": spec.dims,
        "size": size(spec), "inputs": inputs, "outputs": outputs, "source": node.source,
        "trains": node.trains(), "backward": spec.backward,
    })
}

/// Numbers of an encoder with those of its preset.
fn size(spec: &NodeSpec) -> Option<Size> {
    fn read<C: DeserializeOwned>(spec: &NodeSpec) -> Option<C> {
        serde_json::from_value(spec.options.clone()).ok()
    }
    match spec.kind.as_str() {
        "models/internvideo2" => Some(read::<internvideo2::Config>(spec)?.size()),
        "models/internvl_clip" => Some(read::<internvl_clip::Config>(spec)?.size()),
        "models/videomae_v2" => Some(read::<videomae_v2::Config>(spec)?.size()),
        _ => None,
    }
}
