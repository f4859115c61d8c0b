//! Every message of the platform, on one page.
//!
//! Parcels go from node to node and carry frames. Commands go from the supervisor to a node,
//! events from a node to the supervisor. All of them carry a generation: after a failure the
//! supervisor begins a new one, and what is left of the old one is ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;

use actix::Message;
use schemas::checkpoint::PartFile;
use schemas::frame::{Frame, Frames};
use schemas::graph::End;
use schemas::handoff::Takeover;
use schemas::node::{At, Measures, NodeSpec, Notice, Update};
use schemas::stage::LossWeight;
use schemas::timetable::{Timetable, When};
use serde::{Deserialize, Serialize};

/// Counts the fresh starts of a run.
pub type Generation = u32;

/// Which way a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// A value, to an input port.
    Forward,
    /// A gradient, back to an output port.
    Backward,
}

/// What travels from node to node.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Parcel {
    /// Generation of the sender.
    pub generation: Generation,
    /// Where it goes: an input port in a forward pass, an output port in a backward pass.
    pub to: End,
    /// Where it comes from.
    pub from: End,
    /// What it carries.
    pub load: Load,
}

/// What a parcel carries.
#[derive(Debug, Clone)]
pub enum Load {
    /// A frame of one microbatch.
    Frame {
        /// Which work.
        at: At,
        /// Which way.
        pass: Pass,
        /// The tensor.
        frame: Frame,
    },
    /// Parameters of a node.
    Weights {
        /// The step that begins with them.
        step: u64,
        /// Parameters by name.
        frames: Frames,
    },
    /// Gradients of a node's parameters, for the node whose weights they are.
    Gradients {
        /// The step that they belong to.
        step: u64,
        /// Gradients by name.
        frames: Frames,
    },
}

/// A node's role in a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Everything that makes the node.
    pub spec: NodeSpec,
    /// Number of the stage.
    pub stage: u32,
    /// The next step.
    pub step: u64,
    /// Microbatches per step.
    pub accumulate: u32,
    /// Consumers of each output port.
    pub outputs: BTreeMap<String, Vec<Consumer>>,
    /// Producer of each input port that a gradient goes back to.
    pub gradients: BTreeMap<String, End>,
    /// Weight of each loss port in this stage.
    pub losses: BTreeMap<String, LossWeight>,
    /// Steps of the stage.
    pub steps: u64,
    /// Where the stage begins and what it draws.
    pub timetable: Timetable,
    /// The steps that the node works in.
    pub works: When,
    /// The steps that it has a backward pass in.
    pub backs: When,
    /// The node whose weights these are, when they are not its own.
    pub same: Option<String>,
    /// Nodes on these weights, and the steps that gradients come from them in.
    pub vertices: BTreeMap<String, When>,
    /// Whose parameters the node follows.
    pub follows: Option<String>,
    /// Nodes that follow this node's parameters.
    pub followers: Vec<String>,
    /// Whether the node waits for parameters of another node before its first step.
    pub copies: bool,
    /// Nodes that wait for this node's parameters before their first step.
    pub copied_by: Vec<String>,
    /// Whether the node makes frames from nothing.
    pub source: bool,
    /// Whether the node waits for the end of each step before it begins the next one.
    pub synchronous: bool,
    /// Whether the node starts from fresh parameters.
    pub fresh: bool,
}

impl Assignment {
    /// Whether the node's own parameters change.
    pub fn trains(&self) -> bool {
        self.spec.optimizer.is_some() && self.same.is_none()
    }

    /// The steps that change them.
    pub fn updates(&self) -> When {
        let mut when = self.backs.clone();
        self.vertices.values().for_each(|backs| when.join(backs));
        when
    }

    /// Ports of the losses that count in a step, with their weights.
    pub fn losses_at(&self, step: u64) -> impl Iterator<Item = (&str, f64)> {
        let counts = move |loss: &LossWeight| self.timetable.holds(&loss.when(self.steps), step);
        let place = step.saturating_sub(self.timetable.first_step);
        let losses = self.losses.iter().filter(move |(_, loss)| counts(loss));
        losses.map(move |(port, loss)| (port.as_str(), loss.at(place, self.steps)))
    }

    /// The first of some steps at or after one, or the end of the stage.
    pub fn turn_from(&self, at: At, when: &When) -> At {
        let end = self.timetable.first_step + self.steps;
        let mut step = at.step;
        while step < end && !self.timetable.holds(when, step) {
            step += 1;
        }
        if step == at.step { at } else { At { step, microbatch: 0, ..at } }
    }
}

/// One consumer of an output port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Consumer {
    /// Its input port.
    pub to: End,
    /// The steps that it works in.
    pub works: When,
    /// The steps that a gradient comes back in.
    pub backs: When,
}

/// What the supervisor tells a node.
#[derive(Debug, Clone, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
pub struct Command {
    /// Generation of the supervisor.
    pub generation: Generation,
    /// The node.
    pub node: String,
    /// What to do.
    pub order: Order,
}

/// Orders of the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Take this role; make the node if it is not there. Answer: `Ready`.
    Assume(Box<Assignment>),
    /// Take the state from a part of a checkpoint. Answer: `Loaded`.
    Load {
        /// Folder of the checkpoint.
        folder: PathBuf,
        /// The part.
        part: PartFile,
        /// What is taken of it, at the beginning of a stage; all of it when absent.
        takeover: Option<Box<Takeover>>,
    },
    /// Send the parameters to the nodes that wait for them before their first step.
    Share,
    /// Make the frames of one microbatch. For sources.
    Grant(At),
    /// Apply the gradients of the step. Answer: `Updated`.
    Apply(Update),
    /// Take the weights of the step when they arrive. They come from another process than orders
    /// do, and could overtake the order to write the state before. Answer: `Followed`.
    Follow(u64),
    /// The step is over; the next one may begin.
    Advance(u64),
    /// Write the state at this boundary into a folder. Answer: `Saved`.
    Save {
        /// Folder of the checkpoint before it is committed.
        folder: PathBuf,
        /// Number of the checkpoint.
        step: u64,
    },
    /// Stop; the actor is dropped even if it no longer answers, and made again when needed.
    Stop,
}

/// What a node tells the supervisor.
#[derive(Debug, Clone, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
pub struct Event {
    /// Generation of the node.
    pub generation: Generation,
    /// The node.
    pub node: String,
    /// What happened.
    pub what: What,
}

/// What can happen to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum What {
    /// It took its role.
    Ready,
    /// It took its state.
    Loaded,
    /// A forward pass gave numbers.
    Measured {
        /// Which work.
        at: At,
        /// Numbers by name.
        measures: Measures,
    },
    /// People should know something.
    Noticed(Notice),
    /// All gradients of a step are there.
    BackwardDone {
        /// The step.
        step: u64,
        /// Sum of their squares.
        squared_norm: f64,
    },
    /// The gradients of a step are applied.
    Updated {
        /// The step.
        step: u64,
        /// Numbers by name.
        measures: Measures,
    },
    /// It took the parameters that it follows.
    Followed {
        /// The step that they belong to.
        step: u64,
    },
    /// Its part of a checkpoint is written.
    Saved {
        /// Number of the checkpoint.
        step: u64,
        /// The file.
        part: PartFile,
    },
    /// Its part of a checkpoint cannot be read back.
    Damaged {
        /// Which file, and what differs.
        error: String,
    },
    /// It could not do its work.
    Failed {
        /// Why.
        error: String,
        /// Whether trying again cannot help: options, weights files, absent data.
        final_: bool,
    },
}
