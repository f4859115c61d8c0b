//! Parameters that travel to other nodes, and come from them.

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
}
