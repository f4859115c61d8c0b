//! After a failure: back to the last checkpoint, or the end with the first cause.

use std::path::PathBuf;

use schemas::checkpoint::Manifest;

use super::gates::Gates;
use super::{Loading, Outcome, Phase, Supervisor};
use crate::checkpointer::NONE_LEFT;
use crate::hosts::HostError;
use crate::message::Order;
use crate::observer::Happening;
use crate::step::StepState;

impl Supervisor {
    /// Begins at the newest checkpoint, or at step 0. Everyone is made anew.
    pub(super) fn begin(&mut self) {
        self.generation += 1;
        self.charge.checkpointer.abandon();
        self.steps.clear();
        self.dirty.clear();
        (self.owed, self.asked) = (false, false);
        let newest = self.charge.checkpointer.newest().cloned();
        let (step, bytes) = newest.as_ref().map_or((0, 0), |(_, m)| (m.step, m.metrics_bytes));
        self.step = step;
        if let Err(error) = self.charge.record.cut(bytes) {
            return self.give_up(error.to_string());
        }
        let first = self.charge.only.filter(|_| newest.is_none());
        let Some(stage) = first.or_else(|| self.charge.graph.stage_of(step)) else {
            return self.end(Outcome::Done);
        };
        if newest.is_some() && step >= self.end_step() {
            return self.end(Outcome::Done);
        }
        let gathered = self.charge.hosts.gather(self.generation);
        self.progress = self.charge.clock.now();
        match gathered {
            Ok(()) if newest.as_ref().is_none_or(|(_, m)| m.step == self.first_step(stage)) => {
                self.begin_stage(stage);
            }
            Ok(()) => self.go_on_in(stage, step, newest),
            // No step has begun, so there is nothing to finish.
            Err(HostError::Interrupted) => self.hear(Outcome::Interrupted { step }),
            // Nobody has started it; another attempt would not either.
            Err(error @ HostError::Missing { .. }) => self.give_up(error.to_string()),
            Err(error @ HostError::Absent { .. }) => self.recover(error.to_string()),
        }
    }

    fn first_step(&self, stage: usize) -> u64 {
        self.charge.graph.stages[stage].first_step
    }

    /// Goes on in the middle of a stage, with all that its nodes had.
    fn go_on_in(&mut self, stage: usize, step: u64, newest: Option<(PathBuf, Manifest)>) {
        let plan = &self.charge.graph.stages[stage];
        self.gates = match Gates::again(&plan.until, &plan.name, self.charge.record.path()) {
            Ok(gates) => gates,
            Err(error) => return self.give_up(error),
        };
        let own = |name: &String| plan.nodes.get(name).is_some_and(|node| node.same.is_none());
        let parts = newest.into_iter().flat_map(|(folder, manifest)| {
            manifest.parts.into_iter().map(move |part| (folder.clone(), part))
        });
        let load = parts.filter(|(_, (node, _))| own(node));
        let load =
            load.map(|(folder, (node, part))| Loading { node, folder, part, takeover: None });
        let load = load.collect();
        self.cast(stage, step, load);
    }

    /// Ends the run at once.
    pub(super) fn give_up(&mut self, cause: String) {
        if !self.over() {
            self.hear(Outcome::Failed { cause });
        }
    }

    /// A failure: goes back to the last checkpoint, unless failures come too fast.
    pub(super) fn recover(&mut self, cause: String) {
        if self.over() {
            return;
        }
        // A node that cannot reach another fails because of what happened to the other's host.
        let cause = self.charge.hosts.lost().unwrap_or(cause);
        if let Phase::Ending(outcome @ (Outcome::Interrupted { .. } | Outcome::Failed { .. })) =
            &self.phase
        {
            tracing::warn!(%cause, "the last checkpoint could not be made");
            return self.hear(outcome.clone());
        }
        let run = &self.charge.graph.experiment.run;
        let (limit, window) = (run.max_restarts as usize, run.restart_window);
        let now = self.charge.clock.now();
        self.failures.push_back((now, cause.clone()));
        while self.failures.front().is_some_and(|(then, _)| now.since(*then) > window) {
            self.failures.pop_front();
        }
        if self.failures.len() > limit {
            let first = self.failures.front().map_or(&cause, |(_, cause)| cause);
            let times = if limit == 1 { "restart" } else { "restarts" };
            return self.give_up(format!("{first} (after {limit} {times} in {window} s)"));
        }
        let restart = self.failures.len();
        tracing::warn!(%cause, restart, "going back to the last checkpoint");
        self.begin();
        self.tell(Happening::Rewound { step: self.step, cause });
    }

    /// The newest checkpoint is damaged: the one before it, if there is one.
    pub(super) fn step_back(&mut self, error: &str) {
        if self.charge.checkpointer.step_back() {
            tracing::warn!(%error, "a checkpoint is damaged; going back to the one before it");
            self.begin();
            let cause = error.to_owned();
            self.tell(Happening::Rewound { step: self.step, cause });
        } else {
            self.give_up(format!("{error}; {NONE_LEFT}"));
        }
    }

    /// Looks for nodes and hosts that died, and for a run that stands still.
    pub(super) fn look_after(&mut self) {
        if self.over() {
            return self.hear_no_longer();
        }
        if let Some(cause) = self.charge.hosts.lost() {
            return self.recover(cause);
        }
        let deadline = self.charge.graph.experiment.run.deadline;
        if self.charge.clock.now().since(self.progress) > deadline {
            let late = self.late();
            // A node that hangs does not take another role: it is dropped and made again.
            for node in &late {
                self.command(node, Order::Stop);
            }
            let names: Vec<String> = late.iter().map(|n| format!("`{n}`")).collect();
            let names = names.join(", ");
            self.recover(format!("no progress for {deadline} s; waiting for {names}"));
        }
    }

    /// Whom the run waits for.
    fn late(&self) -> Vec<String> {
        match &self.phase {
            Phase::Casting { waiting, .. } | Phase::Loading { waiting } => {
                waiting.iter().cloned().collect()
            }
            Phase::Ending(_) | Phase::Turning => self.charge.checkpointer.waiting(),
            _ => {
                let empty = StepState::default();
                let state = self.steps.get(&self.step).unwrap_or(&empty);
                state.missing(&self.cast, self.plan().accumulate)
            }
        }
    }
}
