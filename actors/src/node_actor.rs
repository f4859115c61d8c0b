//! One vertex at work: wait for all ports of a microbatch, compute, pass on.
//!
//! Frames are joined by (stage, step, microbatch) and worked on in that order, whatever the order
//! of arrival, so that sums have one order on every placement. A node that trains, follows
//! another's weights or only judges waits for the end of each step; frozen nodes run ahead as far
//! as credits reach.

#[cfg(test)]
mod tests;
mod trouble;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix::{Actor, ActorContext, Context, Handler};
use crossbeam_channel::Sender;
use schemas::checkpoint::{self, PartFile};
use schemas::frame::{Frame, Frames};
use schemas::graph::End;
use schemas::handoff::Takeover;
use schemas::node::{At, Gradients, Node, NodeError, NodeSpec, Update};
use trouble::{Trouble, guarded};

use crate::checkpointer::Job;
use crate::edge::Directory;
use crate::message::{
    Assignment, Command, Consumer, Event, Generation, Load, Order, Parcel, Pass, What,
};
use crate::step::next;

/// Makes nodes from their specs.
pub type Factory = Arc<dyn Fn(&NodeSpec) -> Result<Box<dyn Node>, NodeError> + Send + Sync>;

/// Takes events to the supervisor.
pub type Reporter = Arc<dyn Fn(Event) + Send + Sync>;

/// What the nodes of one process share.
#[derive(Clone)]
pub struct Workplace {
    /// Makes nodes.
    pub factory: Factory,
    /// Ways to other nodes.
    pub directory: Directory,
    /// Way to the supervisor.
    pub report: Reporter,
    /// Writes parts of checkpoints beside the work.
    pub writer: Sender<Job>,
}

/// The actor around one node.
pub struct NodeActor {
    name: String,
    workplace: Workplace,
    generation: Generation,
    node: Option<Box<dyn Node>>,
    role: Option<Assignment>,
    /// Input frames that wait for their companions.
    inputs: BTreeMap<At, Frames>,
    /// Gradients that wait for their companions, by (output port, consumer).
    gradients: BTreeMap<At, BTreeMap<(String, End), Frame>>,
    /// Microbatches that sources may make.
    granted: BTreeMap<At, ()>,
    /// Next microbatch of the forward and of the backward pass.
    forward: At,
    backward: At,
    /// First step that may not begin yet, for synchronous nodes.
    gate: u64,
    /// Weights to follow, by the step they belong to.
    weights: BTreeMap<u64, Frames>,
    /// Gradients from nodes on these weights, by step and node.
    shared: BTreeMap<u64, BTreeMap<String, Frames>>,
    /// The last step whose gradients are reported as complete.
    summed: Option<u64>,
    /// The last step whose weights may be taken.
    follows: Option<u64>,
    /// The copy of another node's parameters that the first step waits for is not there yet.
    waits_for_copy: bool,
    failed: bool,
}

impl NodeActor {
    /// An actor that waits for its role.
    pub fn new(name: &str, workplace: Workplace) -> Self {
        Self {
            name: name.to_owned(),
            workplace,
            generation: 0,
            node: None,
            role: None,
            inputs: BTreeMap::new(),
            gradients: BTreeMap::new(),
            granted: BTreeMap::new(),
            forward: At::default(),
            backward: At::default(),
            gate: 0,
            weights: BTreeMap::new(),
            shared: BTreeMap::new(),
            summed: None,
            follows: None,
            waits_for_copy: false,
            failed: false,
        }
    }

    fn report(&self, what: What) {
        (self.workplace.report)(Event {
            generation: self.generation,
            node: self.name.clone(),
            what,
        });
    }

    fn fail(&mut self, trouble: &Trouble) {
        self.failed = true;
        let error = trouble.to_string();
        self.report(match trouble {
            Trouble::Damaged(_) => What::Damaged { error },
            _ => What::Failed { error, final_: trouble.is_final() },
        });
    }

    /// Takes a role: makes the node, unless it is there as the role wants it. What it begins with is loaded next.
    fn assume(&mut self, role: Assignment) -> Result<(), Trouble> {
        let same = self.role.as_ref().is_some_and(|old| old.spec == role.spec);
        let keeps = same && role.spec.optimizer.is_none() && !role.fresh;
        if !keeps || self.node.is_none() {
            self.node = None;
            let factory = self.workplace.factory.clone();
            self.node = Some(guarded(|| factory(&role.spec))?);
        }
        if let Some(node) = &mut self.node {
            node.rewind();
        }
        let start = At { stage: role.stage, step: role.step, microbatch: 0 };
        self.forward = role.turn_from(start, &role.works);
        self.backward = role.turn_from(start, &role.backs);
        self.gate = role.step;
        self.inputs.clear();
        self.gradients.clear();
        self.granted.clear();
        self.weights.clear();
        self.shared.clear();
        (self.follows, self.failed, self.summed) = (None, false, None);
        self.waits_for_copy = role.copies;
        self.role = Some(role);
        self.report(What::Ready);
        Ok(())
    }

    fn load(
        &mut self,
        folder: &Path,
        part: &PartFile,
        takeover: Option<&Takeover>,
    ) -> Result<(), Trouble> {
        let part = checkpoint::read_part(folder, part)?;
        if let Some(node) = &mut self.node {
            guarded(|| match takeover {
                Some(takeover) => node.take_over(&part, takeover),
                None => node.load(&part),
            })?;
        }
        self.report(What::Loaded);
        Ok(())
    }

    /// Does all work that is ready; backward first, which gives memory back.
    fn work(&mut self) -> Result<(), Trouble> {
        while self.step_backward()?
            || self.step_forward()?
            || self.step_follow()?
            || self.step_sum()?
        {}
        Ok(())
    }

    /// One forward pass, if its inputs are there and it may begin.
    fn step_forward(&mut self) -> Result<bool, Trouble> {
        let Some(role) = &self.role else { return Ok(false) };
        let at = self.forward;
        if (role.synchronous && at.step > self.gate) || self.waits_for_copy {
            return Ok(false);
        }
        let inputs = if role.source {
            match self.granted.remove(&at) {
                Some(()) => Frames::new(),
                None => return Ok(false),
            }
        } else {
            let have = self.inputs.get(&at).map_or(0, BTreeMap::len);
            if have < role.spec.wired.len() || role.spec.wired.is_empty() {
                return Ok(false);
            }
            self.inputs.remove(&at).unwrap_or_default()
        };
        self.forward = role.turn_from(next(at, role.accumulate), &role.works);
        let Some(node) = &mut self.node else { return Ok(false) };
        let forwarded = guarded(|| node.forward(at, inputs))?;
        for notice in forwarded.notices {
            self.report(What::Noticed(notice));
        }
        let role = self.role.as_ref().expect("checked above");
        let mut measures = forwarded.measures;
        let mut losses = Vec::new();
        for (port, weight) in role.losses_at(at.step) {
            if let Some(frame) = forwarded.frames.get(port) {
                let value = frame.to_f32().first().copied().unwrap_or(f32::NAN);
                measures.insert(port.to_owned(), f64::from(value));
                losses.push((port.to_owned(), (weight / f64::from(role.accumulate)) as f32));
            }
        }
        self.report(What::Measured { at, measures });
        self.pass_on(at, forwarded.frames)?;
        if self.role.as_ref().is_some_and(|role| role.timetable.holds(&role.backs, at.step)) {
            let waiting = self.gradients.entry(at).or_default();
            for (port, weight) in losses {
                let own = End::new(&self.name, &port);
                waiting.insert((port, own), Frame::f32([1], [weight]));
            }
        }
        Ok(true)
    }

    fn pass_on(&self, at: At, mut frames: Frames) -> Result<(), Trouble> {
        let Some(role) = &self.role else { return Ok(()) };
        for (port, consumers) in &role.outputs {
            let works = |consumer: &&Consumer| role.timetable.holds(&consumer.works, at.step);
            let mut consumers = consumers.iter().filter(works).peekable();
            if consumers.peek().is_none() {
                continue;
            }
            let Some(frame) = frames.remove(port) else {
                return Err(NodeError::MissingInput { port: port.clone() }.into());
            };
            for consumer in consumers {
                let load = Load::Frame { at, pass: Pass::Forward, frame: frame.clone() };
                self.send(port, consumer.to.clone(), load)?;
            }
        }
        Ok(())
    }

    fn send(&self, port: &str, to: End, load: Load) -> Result<(), Trouble> {
        let port = End::new(&self.name, port);
        let parcel = Parcel { generation: self.generation, to, from: port.clone(), load };
        self.workplace.directory.send(parcel).map_err(|error| Trouble::Edge { port, error })
    }

    /// One backward pass, if all gradients of its outputs are there.
    fn step_backward(&mut self) -> Result<bool, Trouble> {
        let Some(role) = &self.role else { return Ok(false) };
        let at = self.backward;
        if role.backs.is_never() || at >= self.forward {
            return Ok(false);
        }
        let backs = |consumer: &&Consumer| role.timetable.holds(&consumer.backs, at.step);
        let consumers = role.outputs.values().flatten().filter(backs).count();
        let have = self.gradients.get(&at).map_or(0, BTreeMap::len);
        if have < consumers + role.losses_at(at.step).count() {
            return Ok(false);
        }
        let arrived = self.gradients.remove(&at).unwrap_or_default();
        let gradients: Gradients =
            arrived.into_iter().map(|((port, _), frame)| (port, frame)).collect();
        self.backward = role.turn_from(next(at, role.accumulate), &role.backs);
        let Some(node) = &mut self.node else { return Ok(false) };
        let mut upstream = guarded(|| node.backward(at, gradients))?;
        for (port, producer) in &role.gradients {
            let Some(frame) = upstream.remove(port) else {
                return Err(NodeError::MissingInput { port: port.clone() }.into());
            };
            let load = Load::Frame { at, pass: Pass::Backward, frame };
            self.send(port, producer.clone(), load)?;
        }
        if self.backward.step > at.step {
            self.hand_in(at.step)?;
        }
        Ok(true)
    }

    fn apply(&mut self, update: &Update) -> Result<(), Trouble> {
        let Some(node) = &mut self.node else { return Ok(()) };
        let measures = guarded(|| node.update(update))?;
        self.report(What::Updated { step: update.step, measures });
        let Some(role) = &self.role else { return Ok(()) };
        self.share(update.step + 1, &role.followers)?;
        if role.follows.is_none() {
            self.gate = update.step + 1;
        }
        self.work()
    }

    fn save(&mut self, folder: PathBuf, step: u64) {
        let Some(node) = &self.node else { return };
        let job = Job {
            generation: self.generation,
            node: self.name.clone(),
            folder,
            step,
            part: node.save(),
            report: self.workplace.report.clone(),
        };
        if self.workplace.writer.send(job).is_err() {
            let reason = "the checkpoint writer is gone".to_owned();
            self.fail(&Trouble::Node(NodeError::State { reason }));
        }
    }

    fn obey(&mut self, command: Command, context: &mut Context<Self>) -> Result<(), Trouble> {
        match command.order {
            Order::Assume(role) => self.assume(*role),
            Order::Load { folder, part, takeover } => {
                self.load(&folder, &part, takeover.as_deref())
            }
            Order::Share => {
                let Some(role) = &self.role else { return Ok(()) };
                self.share(role.step, &role.copied_by)
            }
            Order::Grant(at) => {
                self.granted.insert(at, ());
                self.work()
            }
            Order::Apply(update) => self.apply(&update),
            Order::Follow(step) => {
                self.follows = Some(step);
                self.work()
            }
            Order::Advance(step) => {
                self.gate = self.gate.max(step + 1);
                self.work()
            }
            Order::Save { folder, step } => {
                self.save(folder, step);
                Ok(())
            }
            Order::Stop => {
                context.stop();
                Ok(())
            }
        }
    }

    fn take(&mut self, parcel: Parcel) -> Result<(), Trouble> {
        let stage = self.role.as_ref().map_or(0, |role| role.stage);
        match parcel.load {
            // A stage that ended early leaves frames on their way.
            Load::Frame { at, .. } if at.stage != stage => Ok(()),
            Load::Frame { at, pass: Pass::Forward, frame } => {
                self.inputs.entry(at).or_default().insert(parcel.to.port, frame);
                self.work()
            }
            Load::Frame { at, pass: Pass::Backward, frame } => {
                let waiting = self.gradients.entry(at).or_default();
                waiting.insert((parcel.to.port, parcel.from), frame);
                self.work()
            }
            Load::Weights { step, frames } => {
                self.weights.insert(step, frames);
                self.work()
            }
            Load::Gradients { step, frames } => {
                self.shared.entry(step).or_default().insert(parcel.from.node, frames);
                self.work()
            }
        }
    }
}

impl Actor for NodeActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

/// Messages that fit into a node's mailbox; far above what credits allow.
const MAILBOX: usize = 4096;

impl Handler<Command> for NodeActor {
    type Result = ();

    fn handle(&mut self, command: Command, context: &mut Context<Self>) {
        if command.generation < self.generation {
            return;
        }
        if command.generation > self.generation {
            // Nothing of before may get into a new generation: not even of a node that works only
            // in a later stage and was there already.
            (self.node, self.role, self.failed) = (None, None, false);
        }
        self.generation = command.generation;
        if self.failed && !matches!(command.order, Order::Assume(_) | Order::Stop) {
            return;
        }
        if let Err(error) = self.obey(command, context) {
            self.fail(&error);
        }
    }
}

impl Handler<Parcel> for NodeActor {
    type Result = ();

    fn handle(&mut self, parcel: Parcel, _: &mut Context<Self>) {
        if parcel.generation != self.generation || self.failed {
            return;
        }
        if let Err(error) = self.take(parcel) {
            self.fail(&error);
        }
    }
}
