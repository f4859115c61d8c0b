//! Parameters that travel to other nodes and come from them, and gradients of nodes on the same weights.

use std::collections::BTreeMap;

use schemas::graph::{End, WEIGHTS};

use super::NodeActor;
use super::trouble::{Trouble, guarded};
use crate::message::{Load, What};

impl NodeActor {
    /// Sends the parameters that a step begins with to other nodes.
    pub(super) fn share(&self, step: u64, to: &[String]) -> Result<(), Trouble> {
        let Some(node) = self.node.as_ref().filter(|_| !to.is_empty()) else { return Ok(()) };
        let frames = node.weights();
        for name in to {
            let load = Load::Weights { step, frames: frames.clone() };
            self.send(WEIGHTS, End::new(name, WEIGHTS), load)?;
        }
        Ok(())
    }

    /// Takes the weights of another node: those to begin with, or those of the step after the one at the gate,
    /// once the own work of that one is done.
    pub(super) fn step_follow(&mut self) -> Result<bool, Trouble> {
        let step = self.gate;
        if self.waits_for_copy {
            let Some(frames) = self.weights.remove(&step) else { return Ok(false) };
            let Some(node) = &mut self.node else { return Ok(false) };
            guarded(|| node.adopt(frames))?;
            self.waits_for_copy = false;
            return Ok(true);
        }
        if self.forward.step <= step || self.follows < Some(step) {
            return Ok(false);
        }
        let Some(frames) = self.weights.remove(&(step + 1)) else { return Ok(false) };
        let Some(node) = &mut self.node else { return Ok(false) };
        guarded(|| node.follow(frames))?;
        self.gate = step + 1;
        self.report(What::Followed { step });
        Ok(true)
    }

    /// After the last backward pass of a step: gradients go to the node whose weights these are, when it is
    /// another one.
    pub(super) fn hand_in(&mut self, step: u64) -> Result<(), Trouble> {
        let Some(role) = &self.role else { return Ok(()) };
        let (Some(owner), true) = (role.same.clone(), role.spec.optimizer.is_some()) else {
            return Ok(());
        };
        let Some(node) = &mut self.node else { return Ok(()) };
        let frames = guarded(|| Ok(node.take_gradients()))?;
        self.send(WEIGHTS, End::new(&owner, WEIGHTS), Load::Gradients { step, frames })
    }

    /// Reports the norm of the gradients of the step at the gate, once those of all nodes on these weights are
    /// there. They are added in the order of names.
    pub(super) fn step_sum(&mut self) -> Result<bool, Trouble> {
        let Some(role) = self.role.as_ref().filter(|role| role.trains()) else { return Ok(false) };
        let (step, table) = (self.gate, &role.timetable);
        if self.summed == Some(step) || !table.holds(&role.updates(), step) {
            return Ok(false);
        }
        if table.holds(&role.backs, step) && self.backward.step <= step {
            return Ok(false);
        }
        let mut expected = role.vertices.iter().filter(|(_, backs)| table.holds(backs, step));
        let shared = self.shared.get(&step);
        if !expected.all(|(name, _)| shared.is_some_and(|shared| shared.contains_key(name))) {
            return Ok(false);
        }
        let Some(node) = &mut self.node else { return Ok(false) };
        for frames in self.shared.remove(&step).into_iter().flat_map(BTreeMap::into_values) {
            guarded(|| node.add_gradients(frames))?;
        }
        let squared_norm = guarded(|| node.squared_norm())?;
        self.summed = Some(step);
        self.report(What::BackwardDone { step, squared_norm });
        Ok(true)
    }
}
