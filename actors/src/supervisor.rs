//! The main loop: stages, credits, updates, checkpoints, restarts.
//!
//! A step: credits to the sources, forward and backward passes among the nodes, then one update
//! under the global norm. A failure begins a new generation: what died is made again, everyone
//! goes back to the last committed checkpoint, and the run goes on with the same numbers. Too
//! many failures within a window end the run with the first cause.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use schemas::checkpoint::Manifest;
use schemas::graph::{Graph, StageGraph};
use schemas::node::{At, Notice, Update};

use crate::assign;
use crate::checkpointer::{Checkpointer, Policy};
use crate::clock::{Clock, Moment};
use crate::hosts::Hosts;
use crate::message::{Assignment, Command, Event, Generation, Order, What};
use crate::observer::{Audience, Happening};
use crate::record::{Record, Row};
use crate::step::StepState;

/// Name that the supervisor's own numbers carry.
const SELF: &str = "supervisor";

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The curriculum is complete.
    Done,
    /// Someone asked to stop; a checkpoint was made.
    Interrupted {
        /// The next step.
        step: u64,
    },
    /// It could not go on.
    Failed {
        /// The first cause.
        cause: String,
    },
}

/// What a supervisor needs.
pub struct Charge {
    /// The checked experiment.
    pub graph: Arc<Graph>,
    /// Where nodes are.
    pub hosts: Hosts,
    /// `metrics.csv`.
    pub record: Record,
    /// Checkpoints.
    pub checkpointer: Checkpointer,
    /// When checkpoints are made.
    pub policy: Policy,
    /// Who watches.
    pub audience: Addr<Audience>,
    /// Where the outcome goes.
    pub outcome: crossbeam_channel::Sender<Outcome>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

enum Phase {
    /// Nodes take their roles.
    Casting { waiting: BTreeSet<String>, load: Option<(PathBuf, Manifest)> },
    /// Nodes take their state.
    Loading { waiting: BTreeSet<String> },
    /// Steps are under way.
    Running,
    /// The last checkpoint is written, then the run ends like this.
    Ending(Outcome),
    /// Nothing more happens.
    Over,
}

/// The actor that runs a curriculum and keeps nodes alive.
pub struct Supervisor {
    charge: Charge,
    generation: Generation,
    phase: Phase,
    stage: usize,
    /// The step under way.
    step: u64,
    /// First step without a credit.
    granted: u64,
    steps: BTreeMap<u64, StepState>,
    trained: BTreeSet<String>,
    /// Nodes that work in this stage; each reports every microbatch.
    active: BTreeSet<String>,
    sources: Vec<String>,
    synchronous: Vec<String>,
    /// Nodes whose state differs from the last checkpoint.
    dirty: BTreeSet<String>,
    failures: VecDeque<Moment>,
    first_cause: Option<String>,
    progress: Moment,
    interrupt: Option<String>,
    asked: bool,
}

/// Begins, or goes on from the newest checkpoint.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Start;

/// Asks the run to stop at the next step boundary.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Interrupt {
    /// Why; empty when a person asked.
    pub reason: String,
}

impl Supervisor {
    /// A supervisor that waits for [`Start`].
    pub fn new(charge: Charge) -> Self {
        let progress = charge.clock.now();
        Self {
            charge,
            generation: 0,
            phase: Phase::Over,
            stage: 0,
            step: 0,
            granted: 0,
            steps: BTreeMap::new(),
            trained: BTreeSet::new(),
            active: BTreeSet::new(),
            sources: Vec::new(),
            synchronous: Vec::new(),
            dirty: BTreeSet::new(),
            failures: VecDeque::new(),
            first_cause: None,
            progress,
            interrupt: None,
            asked: false,
        }
    }

    fn plan(&self) -> &StageGraph {
        &self.charge.graph.stages[self.stage]
    }

    fn command(&mut self, node: &str, order: Order) {
        let generation = self.generation;
        self.charge.hosts.command(Command { generation, node: node.to_owned(), order });
    }

    fn tell(&self, happening: Happening) {
        #[expect(clippy::disallowed_methods, reason = "observers must see every happening")]
        self.charge.audience.do_send(happening);
    }

    /// Begins at the newest checkpoint, or at step 0. Everyone is made anew.
    fn begin(&mut self) {
        self.generation += 1;
        self.charge.checkpointer.abandon();
        self.steps.clear();
        self.dirty.clear();
        self.progress = self.charge.clock.now();
        let newest = self.charge.checkpointer.newest().cloned();
        let (step, bytes) = newest.as_ref().map_or((0, 0), |(_, m)| (m.step, m.metrics_bytes));
        if let Err(error) = self.charge.record.cut(bytes) {
            return self.give_up(format!("metrics.csv cannot be written: {error}"));
        }
        if let Err(error) = self.charge.hosts.gather(self.generation) {
            return self.recover(error.to_string());
        }
        match self.charge.graph.stage_of(step) {
            Some(stage) => self.cast(stage, step, newest, true),
            None => self.end(Outcome::Done),
        }
    }

    /// Gives every node of a stage its role.
    fn cast(
        &mut self,
        stage: usize,
        step: u64,
        load: Option<(PathBuf, Manifest)>,
        anew: bool,
    ) {
        self.stage = stage;
        (self.step, self.granted) = (step, step);
        let graph = self.charge.graph.clone();
        let mut roles = assign::roles(&graph, stage, step);
        self.trained = names(&roles, |r| r.spec.optimizer.is_some()).into_iter().collect();
        self.active = roles.keys().cloned().collect();
        self.sources = names(&roles, |r| r.source);
        self.synchronous = names(&roles, |r| {
            r.synchronous && r.spec.optimizer.is_none() && r.follows.is_none()
        });
        self.dirty.extend(assign::changing(&roles));
        if let Some((_, manifest)) = &load {
            let resting = assign::resting(&graph, stage, step);
            roles.extend(resting.into_iter().filter(|(n, _)| manifest.parts.contains_key(n)));
        }
        let waiting = roles.keys().cloned().collect();
        for (name, mut role) in roles {
            role.fresh |= anew;
            self.command(&name, Order::Assume(Box::new(role)));
        }
        let plan = self.plan();
        self.tell(Happening::StageBegan {
            stage: plan.name.clone(),
            step,
            end: plan.first_step + plan.steps,
            total: graph.steps(),
        });
        self.phase = Phase::Casting { waiting, load };
    }

    /// All nodes have their role: state is loaded, then steps begin.
    fn cast_is_complete(&mut self) {
        let Phase::Casting { load, .. } = &mut self.phase else { return };
        let Some((folder, manifest)) = load.take() else { return self.run() };
        let waiting: BTreeSet<String> = manifest.parts.keys().cloned().collect();
        if waiting.is_empty() {
            return self.run();
        }
        for (node, part) in manifest.parts {
            self.command(&node, Order::Load { folder: folder.clone(), part });
        }
        self.phase = Phase::Loading { waiting };
    }

    fn run(&mut self) {
        self.phase = Phase::Running;
        self.grant();
    }

    /// Credits for as many steps as sources may be ahead.
    fn grant(&mut self) {
        let plan = self.plan();
        let end = plan.first_step + plan.steps;
        let (stage, accumulate) = (self.stage as u32, plan.accumulate);
        let ahead = (self.step + 1 + self.charge.graph.experiment.run.prefetch).min(end);
        while self.granted < ahead {
            let step = self.granted;
            for microbatch in 0..accumulate {
                for source in self.sources.clone() {
                    self.command(&source, Order::Grant(At { stage, step, microbatch }));
                }
            }
            self.granted += 1;
        }
    }

    /// Orders the update once all gradients are there.
    fn update_if_ready(&mut self) {
        let step = self.step;
        let Some(state) = self.steps.get_mut(&step).filter(|state| !state.applied) else { return };
        let Some(norm) = state.norm(&self.trained) else { return };
        state.applied = true;
        let plan = self.plan();
        let Some(optimizer) = plan.optimizer.clone() else { return };
        let lr = optimizer.lr_at(step - plan.first_step, plan.steps);
        let scale = match optimizer.clip {
            Some(clip) => (clip / (norm + 1e-6)).min(1.0),
            None => 1.0,
        };
        let update = Update { step, lr, scale };
        for node in self.trained.clone() {
            self.command(&node, Order::Apply(update.clone()));
        }
    }

    /// Ends the step when everything is there.
    fn end_step_if_complete(&mut self) {
        let (step, accumulate) = (self.step, self.plan().accumulate);
        let complete = self
            .steps
            .get(&step)
            .is_some_and(|s| s.complete(&self.active, &self.trained, accumulate));
        if !complete || !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(state) = self.steps.remove(&step) else { return };
        let rows = self.rows(step, &state);
        if let Err(error) = self.charge.record.write(&rows) {
            return self.give_up(format!("metrics.csv cannot be written: {error}"));
        }
        self.tell(Happening::Stepped { stage: self.plan().name.clone(), step, rows });
        self.step += 1;
        for node in self.synchronous.clone() {
            self.command(&node, Order::Advance(step));
        }
        self.go_on();
    }

    fn rows(&self, step: u64, state: &StepState) -> Vec<Row> {
        let plan = self.plan();
        let row = |node: &str, metric: &str, value: f64| Row {
            stage: plan.name.clone(),
            step,
            node: node.to_owned(),
            metric: metric.to_owned(),
            value,
        };
        let numbers = state.numbers();
        let total: f64 = numbers
            .iter()
            .filter_map(|(node, metric, value)| {
                let end = schemas::graph::End::new(node, metric);
                Some(plan.losses.get(&end)? * value)
            })
            .sum();
        let mut rows: Vec<Row> = numbers.iter().map(|(n, m, v)| row(n, m, *v)).collect();
        if let (Some(norm), Some(optimizer)) = (state.norm(&self.trained), &plan.optimizer) {
            rows.push(row(SELF, "gradient_norm", norm));
            rows.push(row(SELF, "lr", optimizer.lr_at(step - plan.first_step, plan.steps)));
        }
        rows.push(row(SELF, "loss", total));
        rows
    }

    /// After a step: a checkpoint when one is due, then the next step, stage or the end.
    fn go_on(&mut self) {
        let plan = self.plan();
        let stage_over = self.step >= plan.first_step + plan.steps;
        let run_over = self.step >= self.charge.graph.steps();
        let due = self.step.is_multiple_of(self.charge.policy.every.max(1));
        if let Some(reason) = self.interrupt.take() {
            let outcome = if reason.is_empty() {
                Outcome::Interrupted { step: self.step }
            } else {
                Outcome::Failed { cause: reason }
            };
            self.save();
            return self.end(outcome);
        }
        if due || run_over || stage_over {
            self.save();
        }
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if run_over {
            return self.end(Outcome::Done);
        }
        if stage_over {
            return self.cast(self.stage + 1, self.step, None, false);
        }
        self.grant();
        self.update_if_ready();
        self.end_step_if_complete();
    }

    /// Begins a checkpoint at this boundary; steps go on while it is written.
    fn save(&mut self) {
        if self.charge.checkpointer.busy() {
            return; // the one before is not written yet; the next boundary will do
        }
        let bytes = match self.charge.record.sync() {
            Ok(bytes) => bytes,
            Err(error) => return self.give_up(format!("metrics.csv cannot be written: {error}")),
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
                self.commit_if_complete();
            }
            Err(error) => self.give_up(error.to_string()),
        }
    }

    fn commit_if_complete(&mut self) {
        match self.charge.checkpointer.commit_if_complete() {
            Ok(Some((_, manifest))) => {
                let step = manifest.step;
                self.saved(step);
            }
            Ok(None) => {}
            Err(error) => self.give_up(error.to_string()),
        }
    }

    fn saved(&mut self, step: u64) {
        self.tell(Happening::Saved { step });
        self.finish_if_written();
    }

    /// Ends once the last checkpoint is on disk.
    fn end(&mut self, outcome: Outcome) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.phase = Phase::Ending(outcome);
        self.finish_if_written();
    }

    fn finish_if_written(&mut self) {
        if self.charge.checkpointer.busy() {
            return;
        }
        // An end that skipped its checkpoint because one was still being written makes it now.
        let newest = self.charge.checkpointer.newest().map(|(_, m)| m.step);
        let Phase::Ending(outcome) = &self.phase else { return };
        let failed = matches!(outcome, Outcome::Failed { .. });
        if !failed && newest != Some(self.step) && !self.asked {
            self.asked = true;
            return self.save();
        }
        let Phase::Ending(outcome) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        self.close(outcome);
    }

    fn close(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        if let Err(error) = self.charge.record.sync() {
            tracing::error!(%error, "metrics.csv cannot be written");
        }
        self.tell(Happening::Ended);
        self.charge.hosts.dismiss();
        if self.charge.outcome.send(outcome).is_err() {
            tracing::error!("nobody waits for the end of the run");
        }
    }

    /// Ends the run at once.
    fn give_up(&mut self, cause: String) {
        if !matches!(self.phase, Phase::Over) {
            let cause = self.first_cause.take().unwrap_or(cause);
            self.close(Outcome::Failed { cause });
        }
    }

    /// A failure: goes back to the last checkpoint, unless failures come too fast.
    fn recover(&mut self, cause: String) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        let run = &self.charge.graph.experiment.run;
        let (limit, window) = (run.max_restarts as usize, run.restart_window);
        let now = self.charge.clock.now();
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|then| now.since(*then) > window) {
            self.failures.pop_front();
            self.first_cause = None;
        }
        let first = self.first_cause.get_or_insert_with(|| cause.clone()).clone();
        if self.failures.len() > limit {
            return self.give_up(format!("{first} (after {limit} restarts in {window} s)"));
        }
        tracing::warn!(%cause, restart = self.failures.len(), "going back to the last checkpoint");
        self.begin();
        self.tell(Happening::Rewound { step: self.step, cause });
    }

    fn on_event(&mut self, node: String, what: What) {
        self.progress = self.charge.clock.now();
        match what {
            What::Ready => {
                if let Phase::Casting { waiting, .. } = &mut self.phase {
                    waiting.remove(&node);
                    if waiting.is_empty() {
                        self.cast_is_complete();
                    }
                }
            }
            What::Loaded => {
                if let Phase::Loading { waiting } = &mut self.phase {
                    waiting.remove(&node);
                    if waiting.is_empty() {
                        self.run();
                    }
                }
            }
            What::Measured { at, measures } => {
                self.steps.entry(at.step).or_default().measure(&node, at.microbatch, measures);
                self.end_step_if_complete();
            }
            What::Noticed(notice) => self.notice(node, notice),
            What::BackwardDone { step, squared_norm } => {
                self.steps.entry(step).or_default().gradient(&node, squared_norm);
                self.update_if_ready();
            }
            What::Updated { step, measures } => {
                self.steps.entry(step).or_default().update(&node, measures);
                self.end_step_if_complete();
            }
            What::Saved { step, part } => {
                match self.charge.checkpointer.take(&node, step, part) {
                    Ok(Some(_)) => self.saved(step),
                    Ok(None) => {}
                    Err(error) => self.give_up(error.to_string()),
                }
            }
            What::Failed { error, final_: true } => self.give_up(format!("`{node}`: {error}")),
            What::Failed { error, final_: false } => self.recover(format!("`{node}`: {error}")),
        }
    }

    fn notice(&self, node: String, notice: Notice) {
        self.tell(Happening::Noticed { node, notice });
    }

    /// Looks for nodes and hosts that died, and for a run that stands still.
    fn look_after(&mut self) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if let Some(cause) = self.charge.hosts.lost() {
            return self.recover(cause);
        }
        let deadline = self.charge.graph.experiment.run.deadline;
        if self.charge.clock.now().since(self.progress) > deadline {
            let late = self.late();
            self.recover(format!("no progress for {deadline} s; waiting for {late}"));
        }
    }

    /// Whom the run waits for.
    fn late(&self) -> String {
        let names = match &self.phase {
            Phase::Casting { waiting, .. } | Phase::Loading { waiting } => {
                waiting.iter().cloned().collect()
            }
            _ => {
                let state = self.steps.get(&self.step);
                let empty = StepState::default();
                let accumulate = self.plan().accumulate;
                state.unwrap_or(&empty).missing(&self.active, &self.trained, accumulate)
            }
        };
        names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
    }
}

fn names(
    roles: &BTreeMap<String, Assignment>,
    which: impl Fn(&Assignment) -> bool,
) -> Vec<String> {
    roles.iter().filter(|(_, role)| which(role)).map(|(name, _)| name.clone()).collect()
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(Duration::from_millis(200), |supervisor, context| {
            supervisor.look_after();
            if matches!(supervisor.phase, Phase::Over) && supervisor.generation > 0 {
                context.stop();
            }
        });
    }
}

impl Handler<Start> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Start, _: &mut Context<Self>) {
        self.phase = Phase::Running;
        self.begin();
    }
}

impl Handler<Event> for Supervisor {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Context<Self>) {
        if event.generation == self.generation && !matches!(self.phase, Phase::Over) {
            self.on_event(event.node, event.what);
        }
    }
}

impl Handler<Interrupt> for Supervisor {
    type Result = ();

    fn handle(&mut self, interrupt: Interrupt, _: &mut Context<Self>) {
        match self.phase {
            Phase::Running => self.interrupt = Some(interrupt.reason),
            Phase::Over | Phase::Ending(_) => {}
            _ => {
                let step = self.step;
                self.close(Outcome::Interrupted { step });
            }
        }
    }
}
