//! Between two steps: checkpoints, the next stage, the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::checkpoint::{Manifest, PartFile};
use schemas::graph::End;
use schemas::handoff::Takeover;

use super::gates::Gates;
use super::{Loading, Outcome, Phase, SELF, Supervisor};
use crate::assign;
use crate::message::Order;
use crate::observer::Happening;
use crate::record::Row;
use crate::step::StepState;

/// Seconds that observers may take to hear of the end.
const HEARING: f64 = 10.0;

impl Supervisor {
    /// The numbers of a step, in one order.
    pub(super) fn rows(&self, step: u64, state: &StepState) -> Vec<Row> {
        let plan = self.plan();
        let row = |node: &str, metric: &str, value: f64| Row {
            stage: plan.name.clone(),
            step,
            node: node.to_owned(),
            metric: metric.to_owned(),
            value,
        };
        let numbers = state.numbers();
        let weighted = |(node, metric, value): &(String, String, f64)| {
            Some(plan.weight(&End::new(node, metric), step)? * value)
        };
        let total: f64 = numbers.iter().filter_map(weighted).sum();
        let mut rows: Vec<Row> = numbers.iter().map(|(n, m, v)| row(n, m, *v)).collect();
        if let (Some(norm), Some(optimizer)) = (state.norm(&self.cast.trained), &plan.optimizer) {
            rows.push(row(SELF, "gradient_norm", norm));
            rows.push(row(SELF, "lr", optimizer.lr_at(step - plan.first_step, plan.steps)));
        }
        rows.push(row(SELF, "loss", total));
        rows
    }

    /// The step behind the last one.
    pub(super) fn end_step(&self) -> u64 {
        match self.charge.only {
            Some(stage) => {
                let plan = &self.charge.graph.stages[stage];
                plan.first_step + plan.steps
            }
            None => self.charge.graph.steps(),
        }
    }

    /// After a step: a checkpoint when one is due, then the next step, stage or the end.
    pub(super) fn go_on(&mut self) {
        let plan = self.plan();
        let stage_over = self.step >= plan.first_step + plan.steps;
        let run_over = self.step >= self.end_step();
        let due = self.owed || self.step.is_multiple_of(self.charge.policy.every.max(1));
        let interrupt = self.interrupt.take();
        if let Some(cause) = interrupt.clone().filter(|reason| !reason.is_empty()) {
            return self.end(Outcome::Failed { cause });
        }
        if due || stage_over || interrupt.is_some() {
            self.save();
        }
        if self.over() {
            return;
        }
        if run_over {
            return self.end(Outcome::Done);
        }
        if interrupt.is_some() {
            return self.end(Outcome::Interrupted { step: self.step });
        }
        if stage_over {
            self.phase = Phase::Turning;
            return self.turn();
        }
        // Only now, so that the checkpoint has their state at this boundary.
        let over = self.step - 1;
        for node in self.cast.told.clone() {
            self.command(&node, Order::Advance(over));
        }
        self.cast = self.company.cast(self.step);
        self.grant();
        self.update_if_ready();
        self.end_step_if_complete();
    }

    /// The next stage, once the checkpoint that it begins with is written.
    fn turn(&mut self) {
        if !matches!(self.phase, Phase::Turning) || self.charge.checkpointer.busy() {
            return;
        }
        match self.interrupt.take() {
            Some(cause) if !cause.is_empty() => return self.end(Outcome::Failed { cause }),
            Some(_) => return self.end(Outcome::Interrupted { step: self.step }),
            None => {}
        }
        if self.charge.checkpointer.newest().is_none_or(|(_, m)| m.step != self.step) {
            return self.save(); // one was still being written when the stage ended
        }
        self.begin_stage(self.stage + 1);
    }

    /// Begins a stage with the state at its beginning.
    pub(super) fn begin_stage(&mut self, stage: usize) {
        let step = self.charge.graph.stages[stage].first_step;
        self.gates = Gates::default();
        match self.takings(stage) {
            Ok(load) => self.cast(stage, step, load),
            Err(why) => self.give_up(why),
        }
    }

    /// What the nodes of a stage begin with. The state is that of the stage before, except for nodes of an
    /// earlier stage that `from` goes back to.
    fn takings(&mut self, stage: usize) -> Result<Vec<Loading>, String> {
        let graph = self.charge.graph.clone();
        let plan = &graph.stages[stage];
        let newest = self.charge.checkpointer.newest().cloned();
        let Some((folder, manifest)) = newest else { return Ok(Vec::new()) };
        // Everything is as that checkpoint has it.
        self.dirty.clear();
        let mut parts: BTreeMap<String, (PathBuf, PartFile)> = BTreeMap::new();
        let of = |folder: &Path, manifest: Manifest| {
            let folder = folder.to_owned();
            manifest.parts.into_iter().map(move |(node, part)| (node, (folder.clone(), part)))
        };
        parts.extend(of(&folder, manifest));
        if let Some(from) = plan.from.filter(|from| from + 1 != stage) {
            let before = &graph.stages[from];
            let end = before.first_step + before.steps;
            let Some((folder, manifest)) = self.charge.checkpointer.at(end) else {
                return Err(format!(
                    "the checkpoint at the end of stage `{}`, step {end}, is not there any more",
                    before.name
                ));
            };
            parts.extend(of(&folder, manifest));
        }
        let mut load = Vec::new();
        for (name, node) in plan.nodes.iter().filter(|(_, node)| node.same.is_none()) {
            let takeover = &node.takeover;
            let plain = Takeover { moments: takeover.moments, ..Takeover::default() };
            let own = parts.get(name).is_none_or(|(from, _)| *from == folder);
            if *takeover != plain || !own {
                self.dirty.insert(name.clone());
            }
            let part = parts.get(takeover.of.as_deref().unwrap_or(name));
            let Some((folder, part)) = part.filter(|_| !takeover.is_fresh()) else { continue };
            load.push(Loading {
                node: name.clone(),
                folder: folder.clone(),
                part: part.clone(),
                takeover: Some(takeover.clone()),
            });
        }
        Ok(load)
    }

    /// Begins a checkpoint at this boundary; steps go on while it is written.
    fn save(&mut self) {
        self.owed = self.charge.checkpointer.busy();
        if self.owed {
            return; // the one before is not written yet; the next boundary will do
        }
        let bytes = match self.charge.record.sync() {
            Ok(bytes) => bytes,
            Err(error) => return self.give_up(error.to_string()),
        };
        let step = self.step;
        let next = self.charge.graph.stage_of(step).unwrap_or(self.stage);
        let stage = self.charge.graph.stages[next].name.clone();
        let dirty = self.dirty.clone();
        match self.charge.checkpointer.begin((&stage, step), bytes, &dirty) {
            Ok(folder) => {
                for node in &dirty {
                    self.command(node, Order::Save { folder: folder.clone(), step });
                }
                let roles = assign::roles(&self.charge.graph, self.stage, step);
                self.dirty = assign::changing(&roles);
                match self.charge.checkpointer.commit_if_complete() {
                    Ok(Some(_)) => self.saved(step),
                    Ok(None) => {}
                    Err(error) => self.give_up(error.to_string()),
                }
            }
            Err(error) => self.give_up(error.to_string()),
        }
    }

    pub(super) fn part_is_written(&mut self, node: &str, step: u64, part: PartFile) {
        match self.charge.checkpointer.take(node, step, part) {
            Ok(Some(_)) => self.saved(step),
            Ok(None) => {}
            Err(error) => self.give_up(error.to_string()),
        }
    }

    fn saved(&mut self, step: u64) {
        self.tell(Happening::Saved { step });
        self.finish_if_written();
        self.turn();
    }

    /// Ends once the last checkpoint is on disk.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if self.over() {
            return;
        }
        self.phase = Phase::Ending(outcome);
        self.finish_if_written();
    }

    fn finish_if_written(&mut self) {
        let Phase::Ending(outcome) = &self.phase else { return };
        if self.charge.checkpointer.busy() {
            return;
        }
        // An end that skipped its checkpoint because one was still being written makes it now.
        let newest = self.charge.checkpointer.newest().map(|(_, m)| m.step);
        let failed = matches!(outcome, Outcome::Failed { .. });
        if !failed && newest != Some(self.step) && !self.asked {
            self.asked = true;
            return self.save();
        }
        let outcome = outcome.clone();
        self.hear(outcome);
    }

    /// Lets observers finish; one that finds the last step bad may still say so.
    pub(super) fn hear(&mut self, outcome: Outcome) {
        let since = self.charge.clock.now();
        self.phase = Phase::Hearing { outcome, since };
        self.tell(Happening::Ended);
    }

    /// Does not wait for observers for ever.
    pub(super) fn hear_no_longer(&mut self) {
        if let Phase::Hearing { since, .. } = self.phase
            && self.charge.clock.now().since(since) > HEARING
        {
            tracing::warn!("an observer did not finish within {HEARING} s");
            self.close();
        }
    }

    /// The end: everyone is dismissed.
    pub(super) fn close(&mut self) {
        let Phase::Hearing { outcome, .. } = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        if let Err(error) = self.charge.record.sync() {
            tracing::error!(%error, "the last numbers are not on disk");
        }
        self.charge.checkpointer.abandon(); // on a full disk its room is needed
        self.charge.hosts.dismiss();
        if self.charge.outcome.send(outcome).is_err() {
            tracing::error!("nobody waits for the end of the run");
        }
    }

    /// A wish to stop; with a reason, the run has failed.
    pub(super) fn on_interrupt(&mut self, reason: String) {
        match &mut self.phase {
            Phase::Ending(outcome) | Phase::Hearing { outcome, .. } => {
                if !reason.is_empty() && !matches!(outcome, Outcome::Failed { .. }) {
                    *outcome = Outcome::Failed { cause: reason };
                }
            }
            Phase::Casting { .. } | Phase::Loading { .. }
                if reason.is_empty() && !self.charge.checkpointer.busy() =>
            {
                let step = self.charge.checkpointer.newest().map_or(0, |(_, m)| m.step);
                self.hear(Outcome::Interrupted { step });
            }
            Phase::Over => {}
            _ => {
                // The first reason counts; a reason counts more than a person's wish.
                if self.interrupt.as_ref().is_none_or(String::is_empty) {
                    self.interrupt = Some(reason);
                }
            }
        }
    }
}
