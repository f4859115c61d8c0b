//! The main loop: stages, credits, updates, checkpoints, restarts.
//!
//! A step: credits to the sources, forward and backward passes among the nodes, then one update
//! under the global norm. A failure begins a new generation: what died is made again, everyone
//! goes back to the last committed checkpoint, and the run goes on with the same numbers. Too
//! many failures within a window end the run with the first cause.

mod boundary;
mod gates;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use gates::Gates;
use schemas::checkpoint::PartFile;
use schemas::graph::{Graph, StageGraph};
use schemas::handoff::Takeover;
use schemas::node::{At, Notice, Update};

use crate::assign;
use crate::checkpointer::{Checkpointer, Policy};
use crate::clock::{Clock, Moment};
use crate::hosts::Hosts;
use crate::message::{Command, Event, Generation, Order, What};
use crate::observer::{Audience, Happening};
use crate::record::Record;
use crate::step::{Cast, Company, StepState};

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
    /// A stage to run alone; all of them when absent.
    pub only: Option<usize>,
    /// Who watches.
    pub audience: Addr<Audience>,
    /// Where the outcome goes.
    pub outcome: crossbeam_channel::Sender<Outcome>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

enum Phase {
    /// The checkpoint between two stages is written.
    Turning,
    /// Nodes take their roles.
    Casting { waiting: BTreeSet<String>, load: Vec<Loading> },
    /// Nodes take their state.
    Loading { waiting: BTreeSet<String> },
    /// Steps are under way.
    Running,
    /// The last checkpoint is written, then the run ends like this.
    Ending(Outcome),
    /// Observers hear of the end; one may still object.
    Hearing { outcome: Outcome, since: Moment },
    /// Nothing more happens.
    Over,
}

/// A node that takes state from a part of a checkpoint.
struct Loading {
    node: String,
    folder: PathBuf,
    part: PartFile,
    /// What is taken of it, at the beginning of a stage.
    takeover: Option<Takeover>,
}

/// The actor that runs a curriculum and keeps nodes alive.
pub struct Supervisor {
    charge: Charge,
    generation: Generation,
    phase: Phase,
    stage: usize,
    /// The step under way.
    step: u64,
    /// Microbatches of this stage that sources have a credit for.
    granted: u64,
    steps: BTreeMap<u64, StepState>,
    company: Company,
    /// Who takes part in the step under way.
    cast: Cast,
    /// What may end the stage before its last step.
    gates: Gates,
    /// Nodes whose state differs from the last checkpoint.
    dirty: BTreeSet<String>,
    /// Whether a checkpoint was due while the one before was still being written.
    owed: bool,
    /// Failures within the window, with their causes.
    failures: VecDeque<(Moment, String)>,
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

/// All observers have heard of the end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Heard;

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
            company: Company::default(),
            cast: Cast::default(),
            gates: Gates::default(),
            dirty: BTreeSet::new(),
            owed: false,
            failures: VecDeque::new(),
            progress,
            interrupt: None,
            asked: false,
        }
    }

    fn plan(&self) -> &StageGraph {
        &self.charge.graph.stages[self.stage]
    }

    /// Whether nothing can change the end of the run any more.
    fn over(&self) -> bool {
        matches!(self.phase, Phase::Over | Phase::Hearing { .. })
    }

    fn command(&mut self, node: &str, order: Order) {
        let generation = self.generation;
        self.charge.hosts.command(Command { generation, node: node.to_owned(), order });
    }

    fn tell(&self, happening: Happening) {
        #[expect(clippy::disallowed_methods, reason = "observers must see every happening")]
        self.charge.audience.do_send(happening);
    }

    /// Gives every node of a stage its role.
    fn cast(&mut self, stage: usize, step: u64, load: Vec<Loading>) {
        (self.stage, self.step, self.granted) = (stage, step, 0);
        self.steps.clear();
        let graph = self.charge.graph.clone();
        let roles = assign::roles(&graph, stage, step);
        self.granted = (step - self.plan().first_step) * u64::from(self.plan().accumulate);
        self.company = Company::of(self.plan().timetable(), &roles);
        self.cast = self.company.cast(step);
        self.dirty.extend(assign::changing(&roles));
        let waiting = roles.keys().cloned().collect();
        for (name, role) in roles {
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
        let load = std::mem::take(load);
        let waiting: BTreeSet<String> = load.iter().map(|one| one.node.clone()).collect();
        if waiting.is_empty() {
            return self.run();
        }
        for Loading { node, folder, part, takeover } in load {
            let takeover = takeover.map(Box::new);
            self.command(&node, Order::Load { folder, part, takeover });
        }
        self.phase = Phase::Loading { waiting };
    }

    fn run(&mut self) {
        self.phase = Phase::Running;
        for node in self.company.copied.clone() {
            self.command(&node, Order::Share);
        }
        self.grant();
    }

    /// Credits for as many microbatches as sources may be ahead.
    fn grant(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let plan = self.plan();
        let (stage, first, accumulate) = (self.stage as u32, plan.first_step, plan.accumulate);
        let size = u64::from(accumulate);
        // The last microbatch of a step is over when the step is.
        let measured = self.steps.get(&self.step).map_or(0, |step| step.measured(&self.cast));
        let done = (self.step - first) * size + u64::from(measured.min(accumulate - 1));
        let prefetch = self.charge.graph.experiment.run.prefetch;
        let end = done.saturating_add(prefetch).saturating_add(1).min(plan.steps * size);
        for number in self.granted..end {
            let (step, microbatch) = (first + number / size, (number % size) as u32);
            for source in self.company.sources(step) {
                self.command(&source, Order::Grant(At { stage, step, microbatch }));
            }
        }
        self.granted = self.granted.max(end);
    }

    /// Orders the update once all gradients are there. Not at the end of a run: frames of the next
    /// step are still on their way, and its checkpoint may not be written yet.
    fn update_if_ready(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let step = self.step;
        let Some(state) = self.steps.get_mut(&step).filter(|state| !state.applied) else { return };
        let Some(norm) = state.norm(&self.cast.trained) else { return };
        state.applied = true;
        let plan = self.plan();
        let Some(optimizer) = plan.optimizer.clone() else { return };
        let lr = optimizer.lr_at(step - plan.first_step, plan.steps);
        let scale = match optimizer.clip {
            Some(clip) => (clip / (norm + 1e-6)).min(1.0),
            None => 1.0,
        };
        let update = Update { step, lr, scale };
        for node in self.cast.trained.clone() {
            self.command(&node, Order::Apply(update.clone()));
        }
        for node in self.cast.followers.clone() {
            self.command(&node, Order::Follow(step));
        }
    }

    /// Ends the step when everything is there.
    fn end_step_if_complete(&mut self) {
        let (step, accumulate) = (self.step, self.plan().accumulate);
        let complete =
            self.steps.get(&step).is_some_and(|state| state.complete(&self.cast, accumulate));
        if !complete || !matches!(self.phase, Phase::Running) {
            return;
        }
        let Some(state) = self.steps.remove(&step) else { return };
        let rows = self.rows(step, &state);
        if let Err(error) = self.charge.record.write(&rows) {
            return self.give_up(error.to_string());
        }
        let until = self.plan().until.clone();
        let opened = self.gates.take(&until, &rows);
        self.tell(Happening::Stepped { stage: self.plan().name.clone(), step, rows });
        self.step += 1;
        if let Some(why) = opened {
            let plan = self.plan();
            let (stage, end) = (plan.name.clone(), plan.first_step + plan.steps);
            tracing::info!(%stage, step, why, "the stage ends early");
            // Numbers of steps are those of the plan: the next stage begins where it always does.
            self.step = end;
        }
        self.go_on();
    }

    fn on_event(&mut self, node: String, what: What) {
        self.progress = self.charge.clock.now();
        match what {
            // Work that was on its way when the stage ended early.
            What::Measured { at, .. } if at.stage != self.stage as u32 => {}
            What::Ready => {
                if let Phase::Casting { waiting, .. } = &mut self.phase
                    && waiting.remove(&node)
                    && waiting.is_empty()
                {
                    self.cast_is_complete();
                }
            }
            What::Loaded => {
                if let Phase::Loading { waiting } = &mut self.phase
                    && waiting.remove(&node)
                    && waiting.is_empty()
                {
                    self.run();
                }
            }
            What::Measured { at, measures } => {
                self.steps.entry(at.step).or_default().measure(&node, at.microbatch, measures);
                self.end_step_if_complete();
                self.grant();
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
            What::Followed { step } => {
                self.steps.entry(step).or_default().follow(&node);
                self.end_step_if_complete();
            }
            What::Saved { step, part } => self.part_is_written(&node, step, part),
            What::Damaged { error } => self.step_back(&format!("`{node}`: {error}")),
            What::Failed { error, final_: true } => self.give_up(format!("`{node}`: {error}")),
            What::Failed { error, final_: false } => self.recover(format!("`{node}`: {error}")),
        }
    }

    fn notice(&self, node: String, notice: Notice) {
        self.tell(Happening::Noticed { node, notice });
    }
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
        if event.generation == self.generation && !self.over() {
            self.on_event(event.node, event.what);
        }
    }
}

impl Handler<Interrupt> for Supervisor {
    type Result = ();

    fn handle(&mut self, interrupt: Interrupt, _: &mut Context<Self>) {
        self.on_interrupt(interrupt.reason);
    }
}

impl Handler<Heard> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Heard, _: &mut Context<Self>) {
        self.close();
    }
}
