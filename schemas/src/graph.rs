//! The checked form of an experiment: what runs in each stage, and between whom.
//!
//! Only a sound graph goes further than [`Graph::check`]; it finds all problems at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::diagnostic::{Diagnostic, Report};
use crate::entry::{OptionProblem, Registry};
use crate::experiment::{Experiment, NodeConfig, StageConfig};
use crate::findings::Findings;
use crate::handoff::{self, Takeover, Waiver};
use crate::node::{NodeSpec, Optimizer, Precision};
use crate::port::{Elements, Ports};
use crate::stage::{GateConfig, LossWeight};
use crate::timetable::{Mixture, Timetable, When};
use crate::yaml::{Located, Tree};
use crate::{checked, flow, layers, same, stages};

/// What the program around the graph offers.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// All kinds.
    pub registry: Registry,
    /// Devices that this build can make; the first is the default.
    pub devices: Vec<&'static str>,
    /// Observers by name.
    pub observers: Vec<&'static str>,
    /// Reads the options of an observer that exists.
    pub observe: fn(&str, &serde_json::Value) -> Result<(), OptionProblem>,
    /// The shape that a rule of the hand-off makes of another, or why it cannot.
    pub rule: fn(&serde_json::Value, &[usize]) -> Result<Vec<usize>, String>,
    /// Folder of the experiment file: relative paths are looked up here after the current folder.
    pub base: PathBuf,
}

impl Surroundings {
    /// A path as written, or inside the experiment's folder when it is only there.
    pub fn locate(&self, path: &Path) -> PathBuf {
        // What follows a `#` names a part of the file.
        let whole = path.to_string_lossy();
        let file = whole.split_once('#').map_or(path, |(file, _)| Path::new(file));
        let there = file.exists() || !self.base.join(file).exists();
        if there { path.to_owned() } else { self.base.join(path) }
    }
}

/// One end of an edge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct End {
    /// Node.
    pub node: String,
    /// Port.
    pub port: String,
}

impl End {
    /// An end.
    pub fn new(node: &str, port: &str) -> Self {
        Self { node: node.to_owned(), port: port.to_owned() }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.node, self.port)
    }
}

/// What travels through a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Class of elements.
    pub elements: Elements,
    /// Extents.
    pub dims: Vec<usize>,
    /// Frames, rows, columns of the token lattice.
    pub lattice: Option<Vec<usize>>,
}

/// An output port connected to an input port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Producer.
    pub from: End,
    /// Consumer.
    pub to: End,
    /// What travels; nothing for weights.
    pub shape: Option<Shape>,
    /// Whether a gradient comes back.
    pub gradient: bool,
}

impl Edge {
    /// Whether parameters travel here after an update, instead of frames in a step.
    pub fn is_weights(&self) -> bool {
        self.from.port == WEIGHTS
    }

    /// Bytes of one frame whose floats have this precision.
    pub fn bytes(&self, precision: Precision) -> u64 {
        let size = |s: &Shape| match s.elements {
            Elements::Float => precision.bytes(),
            Elements::Int => 8,
        };
        self.shape.as_ref().map_or(0, |s| s.dims.iter().product::<usize>() as u64 * size(s))
    }
}

/// Name of the implicit port that parameters travel through.
pub const WEIGHTS: &str = "weights";

/// A node in one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageNode {
    /// Everything that makes it.
    pub spec: NodeSpec,
    /// Its ports.
    pub ports: Ports,
    /// What its outputs give.
    pub outputs: BTreeMap<String, Shape>,
    /// Host it is placed on; none for the supervisor's own process.
    pub host: Option<String>,
    /// Whether it makes frames from nothing.
    pub source: bool,
    /// The node whose weights these are, when they are not its own.
    pub same: Option<String>,
    /// The steps that it works in.
    pub works: When,
    /// The steps that it has a backward pass in.
    pub backs: When,
    /// What it begins this stage with.
    pub takeover: Takeover,
}

impl StageNode {
    /// Whether it takes part in updates.
    pub fn trains(&self) -> bool {
        self.spec.optimizer.is_some() && self.same.is_none()
    }
}

/// One stage, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct StageGraph {
    /// Name.
    pub name: String,
    /// Optimiser updates.
    pub steps: u64,
    /// Step of the run that it begins at.
    pub first_step: u64,
    /// What it draws in each step.
    pub mixture: Option<Mixture>,
    /// What ends it before its last step.
    pub until: Vec<GateConfig>,
    /// Number of the earlier stage whose end it begins with; the one before it when absent.
    pub from: Option<usize>,
    /// Microbatches per update.
    pub accumulate: u32,
    /// How gradients become updates.
    pub optimizer: Option<Optimizer>,
    /// Weight of each loss port.
    pub losses: BTreeMap<End, LossWeight>,
    /// Nodes that work in this stage, by name.
    pub nodes: BTreeMap<String, StageNode>,
    /// Edges between them, by consumer.
    pub edges: Vec<Edge>,
}

impl StageGraph {
    /// Where it begins and what it draws.
    pub fn timetable(&self) -> Timetable {
        Timetable { first_step: self.first_step, mixture: self.mixture.clone() }
    }

    /// The weight of a loss in a step of the run; none when it does not count there.
    pub fn weight(&self, loss: &End, step: u64) -> Option<f64> {
        let weight = self.losses.get(loss)?;
        let counts = self.timetable().holds(&weight.when(self.steps), step);
        counts.then(|| weight.at(step.saturating_sub(self.first_step), self.steps))
    }

    /// Nodes on the weights of another one, and this one itself.
    pub fn vertices<'a>(
        &'a self,
        owner: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a StageNode)> {
        let of = move |(name, node): &(&String, &StageNode)| {
            *name == owner || node.same.as_deref() == Some(owner)
        };
        self.nodes.iter().filter(of).map(|(name, node)| (name.as_str(), node))
    }

    /// The steps that change the parameters of a node that trains.
    pub fn updates(&self, name: &str) -> When {
        let mut when = When::default();
        self.vertices(name).for_each(|(_, node)| when.join(&node.backs));
        when
    }
}

/// A checked experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// As it was read.
    pub experiment: Experiment,
    /// Stages in order.
    pub stages: Vec<StageGraph>,
    /// What begins fresh or is dropped between stages, because the experiment says so.
    pub waivers: Vec<Waiver>,
}

impl Graph {
    /// Checks a merged tree: all problems at once, or a sound graph.
    pub fn check(tree: &Located, around: &Surroundings) -> Result<Self, Vec<Diagnostic>> {
        let mut report = Report::default();
        let whole = same::written_out(tree, &mut report);
        let experiment = Experiment::read(&whole, &mut report);
        stages::check_observers(tree, &experiment, around, &mut report);
        stages::check_hosts(tree, &experiment, &mut report);
        stages::check_run(tree, &experiment, around, &mut report);
        let mut stages = Vec::new();
        let mut first_step = 0;
        let mut findings = Findings::default();
        for (index, config) in experiment.curriculum.iter().enumerate() {
            if !matches!(
                tree.find(&format!("curriculum.{index}")).map(|s| &s.tree),
                Some(Tree::Map(_))
            ) {
                continue;
            }
            let changed = changed(tree, index, config, &mut report);
            // Mistakes of this are the same in every stage, and reported above.
            let changed = same::written_out(&changed, &mut Report::default());
            let mut reread = Report::default();
            let again = Experiment::read(&changed, &mut reread);
            let context = Context { tree: &changed, experiment: &again, index, config, around };
            let mut found = context.newly(reread, &report);
            if let Some(mut stage) = checked::check(&context, &mut found) {
                stage.first_step = first_step;
                first_step += stage.steps;
                stage.settle_sources();
                stages.push(stage);
            }
            findings.add(config, found, &flow::active(&context));
        }
        if experiment.curriculum.is_empty() {
            stages::without_curriculum(tree, &experiment, around, &mut report);
        }
        findings.report(experiment.curriculum.len(), &mut report);
        let waivers = handoff::settle(tree, &experiment, &mut stages, around, &mut report);
        if report.is_empty() {
            Ok(Self { experiment, stages, waivers })
        } else {
            Err(report.into_problems())
        }
    }

    /// The stage and the number of its first step for a step of the run.
    pub fn stage_of(&self, step: u64) -> Option<usize> {
        self.stages.iter().position(|s| step >= s.first_step && step < s.first_step + s.steps)
    }

    /// Host of each node that has one. A vertex is where the node is whose weights it shares, unless `place` says
    /// otherwise.
    pub fn places(&self) -> BTreeMap<String, String> {
        let mut places = self.experiment.place.clone();
        for (name, node) in self.stages.iter().flat_map(|stage| &stage.nodes) {
            if let Some(host) = &node.host {
                places.insert(name.clone(), host.clone());
            }
        }
        places
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|s| s.steps).sum()
    }
}

/// The tree with the `with:` of a stage applied; changes that point at nothing are left out.
fn changed(tree: &Located, index: usize, stage: &StageConfig, report: &mut Report) -> Located {
    let mut changed = tree.clone();
    let with = format!("curriculum.{index}.with");
    let Some(changes) = tree.find(&with) else { return changed };
    debug_assert_eq!(changes.entries().len(), stage.changes.len());
    for (path, value) in changes.entries() {
        let full = format!("graph.{path}");
        match layers::check_path(&changed, &full) {
            Ok(()) => changed.set(&full, value.clone()),
            Err(nothing) => {
                let path = format!("{with}.{path}");
                report.add(nothing.within("graph.").diagnostic(&value.place, path));
            }
        }
    }
    changed
}

impl StageGraph {
    /// Tells sources that do not work in every step which steps they do.
    fn settle_sources(&mut self) {
        let timetable = self.timetable();
        for node in self.nodes.values_mut().filter(|node| node.source) {
            let sometimes = node.works != When::always();
            node.spec.turns = sometimes.then(|| (timetable.clone(), node.works.clone()));
        }
    }
}

/// Connected inputs of a node: port and producer.
pub(crate) fn connected(config: &NodeConfig) -> Vec<(String, End)> {
    let end = |(port, from): (&String, &Option<String>)| {
        let (node, output) = from.as_ref()?.split_once('.')?;
        Some((port.clone(), End::new(node, output)))
    };
    config.inputs.iter().filter_map(end).collect()
}
