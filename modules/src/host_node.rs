//! Any host kind as a node: no tensors, no gradients.

use schemas::frame::Frames;
use schemas::handoff::Takeover;
use schemas::node::{At, Forwarded, Gradients, Measures, Node, NodeError, NodeSpec, Part, Update};
use schemas::timetable::{Timetable, When};

use crate::kind::{Call, Host, read};
use crate::rng::Key;

/// A node around a [`Host`] kind.
pub struct HostNode<H: Host> {
    kind: H,
    state: H::State,
    key: Key,
    accumulate: u32,
    /// The steps that it works in, when it does not in all of them.
    turns: Option<(Timetable, When)>,
}

/// Number of a step among those that a node works in, counted over the run.
fn turn(turns: Option<&(Timetable, When)>, step: u64) -> u64 {
    let within = |(table, when): &(Timetable, When)| table.first_step + table.turns(when, step);
    turns.map_or(step, within)
}

impl<H: Host> HostNode<H> {
    /// Opens the node.
    pub fn build(spec: &NodeSpec) -> Result<Self, NodeError> {
        let kind: H = read(spec)?;
        let key = Key::new(spec.seed, &spec.name);
        let state = kind.open(&spec.dims, &key)?;
        Ok(Self { kind, state, key, accumulate: spec.accumulate, turns: spec.turns.clone() })
    }
}

impl<H: Host> Node for HostNode<H> {
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError> {
        let new = Call::new(call_key(&self.key, at), at);
        let turn = turn(self.turns.as_ref(), at.step);
        let call = Call { accumulate: self.accumulate, turn, ..new };
        self.kind.forward(&mut self.state, inputs, &call)
    }

    fn backward(&mut self, at: At, _: Gradients) -> Result<Frames, NodeError> {
        Err(NodeError::NoForward { at })
    }

    fn squared_norm(&mut self) -> Result<f64, NodeError> {
        Ok(0.0)
    }

    fn update(&mut self, _: &Update) -> Result<Measures, NodeError> {
        Ok(Measures::new())
    }

    fn weights(&self) -> Frames {
        Frames::new()
    }

    fn adopt(&mut self, _: Frames) -> Result<(), NodeError> {
        Ok(())
    }

    fn follow(&mut self, _: Frames) -> Result<(), NodeError> {
        Ok(())
    }

    fn save(&self) -> Part {
        self.kind.save(&self.state)
    }

    fn load(&mut self, part: &Part) -> Result<(), NodeError> {
        self.kind.load(&mut self.state, part)
    }

    fn take_over(&mut self, part: &Part, _: &Takeover) -> Result<(), NodeError> {
        self.load(part)
    }

    fn rewind(&mut self) {}
}

/// Names the draws of one microbatch.
pub(crate) fn call_key(node: &Key, at: At) -> Key {
    node.with_number(u64::from(at.stage)).with_number(at.step).with_number(u64::from(at.microbatch))
}
