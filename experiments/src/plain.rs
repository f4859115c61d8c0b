//! A stage by plain calls: the same nodes in one thread, without actors, messages or edges.
//!
//! It is what the actors are measured against, and a short description of what they compute.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use schemas::frame::{Frame, Frames};
use schemas::graph::{End, StageGraph};
use schemas::node::{At, Gradients, Node, Update};

use crate::compose;

/// Frames by the port that gave them.
pub type Outputs = BTreeMap<End, Frame>;

/// The nodes of a stage, ready to step.
pub struct Plain<'a> {
    stage: &'a StageGraph,
    order: Vec<String>,
    nodes: BTreeMap<String, Box<dyn Node>>,
}

impl<'a> Plain<'a> {
    /// Makes all nodes of a stage.
    pub fn new(stage: &'a StageGraph) -> anyhow::Result<Self> {
        let factory = compose::factory();
        let mut nodes = BTreeMap::new();
        for (name, node) in &stage.nodes {
            let made = factory(&node.spec).with_context(|| format!("node `{name}`"))?;
            nodes.insert(name.clone(), made);
        }
        let mut plain = Self { stage, order: order(stage), nodes };
        for edge in stage.edges.iter().filter(|edge| edge.is_weights()) {
            if stage.nodes[&edge.to.node].spec.weights.is_none() {
                let weights = plain.node(&edge.from.node)?.weights();
                plain.node(&edge.to.node)?.adopt(weights)?;
            }
        }
        plain.share()?;
        Ok(plain)
    }

    fn node(&mut self, name: &str) -> anyhow::Result<&mut Box<dyn Node>> {
        self.nodes.get_mut(name).with_context(|| format!("no node `{name}`"))
    }

    /// Gives nodes on the weights of another one what those are now.
    fn share(&mut self) -> anyhow::Result<()> {
        for (name, node) in &self.stage.nodes {
            if let Some(owner) = &node.same {
                let weights = self.node(owner)?.weights();
                self.node(name)?.adopt(weights)?;
            }
        }
        Ok(())
    }

    fn works(&self, name: &str, step: u64) -> bool {
        self.stage.timetable().holds(&self.stage.nodes[name].works, step)
    }

    fn backs(&self, name: &str, step: u64) -> bool {
        self.stage.timetable().holds(&self.stage.nodes[name].backs, step)
    }

    /// One step with one microbatch; gives the losses.
    pub fn step(&mut self, step: u64) -> anyhow::Result<BTreeMap<End, f32>> {
        let read = self.read(step)?;
        self.compute(step, read)
    }

    /// What the sources give for a step.
    pub fn read(&mut self, step: u64) -> anyhow::Result<Outputs> {
        let mut outputs = Outputs::new();
        self.forward(step, true, &mut outputs)?;
        Ok(outputs)
    }

    /// A step on what the sources gave; gives the losses.
    pub fn compute(
        &mut self,
        step: u64,
        mut outputs: Outputs,
    ) -> anyhow::Result<BTreeMap<End, f32>> {
        self.forward(step, false, &mut outputs)?;
        let losses = self.stage.losses.keys();
        let losses = losses.filter(|end| self.stage.weight(end, step).is_some());
        let losses = losses.map(|end| (end.clone(), outputs[end].to_f32()[0])).collect();
        self.backward(at(step))?;
        self.update(step)?;
        Ok(losses)
    }

    /// Runs the sources, or all other nodes.
    fn forward(&mut self, step: u64, sources: bool, outputs: &mut Outputs) -> anyhow::Result<()> {
        for name in self.order.iter().filter(|name| self.stage.nodes[*name].source == sources) {
            if !self.works(name, step) {
                continue;
            }
            let edges = self.stage.edges.iter().filter(|e| e.to.node == *name && !e.is_weights());
            let inputs: Frames =
                edges.map(|e| (e.to.port.clone(), outputs[&e.from].clone())).collect();
            let node = self.nodes.get_mut(name).context("a node of the stage")?;
            for (port, frame) in node.forward(at(step), inputs)?.frames {
                outputs.insert(End::new(name, &port), frame);
            }
        }
        Ok(())
    }

    fn backward(&mut self, at: At) -> anyhow::Result<()> {
        let mut arrived: BTreeMap<&End, BTreeMap<&End, Frame>> = BTreeMap::new();
        for name in self.order.iter().rev() {
            if !self.backs(name, at.step) {
                continue;
            }
            let mut gradients: Gradients = Vec::new();
            for end in self.stage.losses.keys().filter(|end| end.node == *name) {
                if let Some(weight) = self.stage.weight(end, at.step) {
                    gradients.push((end.port.clone(), Frame::f32([1], [weight as f32])));
                }
            }
            for (end, frames) in arrived.iter().filter(|(end, _)| end.node == *name) {
                gradients.extend(frames.values().map(|frame| (end.port.clone(), frame.clone())));
            }
            let node = self.nodes.get_mut(name).context("a node of the stage")?;
            let mut upstream = node.backward(at, gradients)?;
            for edge in self.stage.edges.iter().filter(|e| e.to.node == *name && e.gradient) {
                let frame = upstream.remove(&edge.to.port).context("a wanted gradient")?;
                arrived.entry(&edge.from).or_default().insert(&edge.to, frame);
            }
        }
        Ok(())
    }

    fn update(&mut self, step: u64) -> anyhow::Result<()> {
        let Some(optimizer) = &self.stage.optimizer else { return Ok(()) };
        let table = self.stage.timetable();
        let updates = |name: &String| table.holds(&self.stage.updates(name), step);
        let trained = self.stage.nodes.iter().filter(|(name, node)| node.trains() && updates(name));
        let trained: Vec<&String> = trained.map(|(name, _)| name).collect();
        for name in &trained {
            let vertices = self.stage.vertices(name).filter(|(other, _)| other != name);
            for (vertex, _) in vertices.filter(|(_, node)| table.holds(&node.backs, step)) {
                let gradients = self.nodes.get_mut(vertex).context("a node")?.take_gradients();
                self.nodes.get_mut(*name).context("a node")?.add_gradients(gradients)?;
            }
        }
        let mut squares = 0.0;
        for name in &trained {
            squares += self.nodes.get_mut(*name).context("a node")?.squared_norm()?;
        }
        let scale = optimizer.clip.map_or(1.0, |clip| (clip / (squares.sqrt() + 1e-6)).min(1.0));
        let lr = optimizer.lr_at(step, self.stage.steps);
        for name in trained {
            let node = self.nodes.get_mut(name).context("a node")?;
            node.update(&Update { step, lr, scale })?;
        }
        self.share()?;
        for edge in self.stage.edges.iter().filter(|edge| edge.is_weights()) {
            let from = &edge.from.node;
            if self.stage.nodes[from].trains() && updates(from) {
                let weights = self.node(&edge.from.node)?.weights();
                self.node(&edge.to.node)?.follow(weights)?;
            }
        }
        Ok(())
    }
}

fn at(step: u64) -> At {
    At { stage: 0, step, microbatch: 0 }
}

/// Names of the nodes, producers first.
pub(crate) fn order(stage: &StageGraph) -> Vec<String> {
    let mut done: BTreeSet<&String> = BTreeSet::new();
    let mut order = Vec::new();
    while order.len() < stage.nodes.len() {
        let ready = stage.nodes.keys().find(|name| {
            let mut inputs = stage.edges.iter().filter(|e| e.to.node == **name && !e.is_weights());
            !done.contains(name) && inputs.all(|e| done.contains(&e.from.node))
        });
        let Some(name) = ready else { break };
        done.insert(name);
        order.push(name.clone());
    }
    order
}
