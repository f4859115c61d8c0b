//! A training step through actors, beside the same nodes called plainly, and beside PyTorch.
//!
//! The PyTorch side has no data source, so it is compared with plain calls without theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use actors::clock::{Clock as _, Moment, RealClock, busy};
use actors::observer::{Happening, Observer, Verdict};
use anyhow::{Context as _, bail};
use schemas::graph::{Graph, StageGraph};
use serde::Serialize;

use super::torch::{self, Torch};
use crate::compose::{self, Extras};
use crate::plain::Plain;

/// Seconds per step on one side, one number a round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Side {
    /// Whose.
    pub(crate) name: String,
    /// The best round.
    pub(crate) best: f64,
    /// The median round.
    pub(crate) median: f64,
    /// Of all cores together, the best round: it tells little of what else the machine does.
    pub(crate) cpu: f64,
}

/// Time of one side over time of another.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ratio {
    /// Which sides.
    pub(crate) of: String,
    /// Of the best rounds.
    pub(crate) best: f64,
    /// Of the median rounds.
    pub(crate) median: f64,
    /// Of all cores together, the best rounds.
    pub(crate) cpu: f64,
}

/// Seconds by the wall, and of all cores together.
#[derive(Clone, Copy)]
struct Pace {
    wall: f64,
    cpu: f64,
}

impl Pace {
    /// Since the process and its clock started.
    fn now(clock: &RealClock) -> Self {
        Self { wall: clock.now().since(Moment::at(0.0)), cpu: busy() }
    }

    fn since(self, earlier: Self) -> Self {
        Self { wall: self.wall - earlier.wall, cpu: self.cpu - earlier.cpu }
    }
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepBench {
    /// Devices of the nodes that train.
    pub(crate) device: String,
    /// Version of PyTorch, when it took part.
    pub(crate) torch: Option<String>,
    /// Threads that a step may use.
    pub(crate) threads: usize,
    /// What is compared.
    pub(crate) ratios: Vec<Ratio>,
    /// All sides.
    pub(crate) sides: Vec<Side>,
}

/// What to measure.
pub(crate) struct Plan<'a> {
    /// Name of the stage.
    pub(crate) stage: &'a str,
    /// Rounds; sides take turns.
    pub(crate) rounds: usize,
    /// Steps in each round.
    pub(crate) steps: u64,
    /// A Python that has PyTorch.
    pub(crate) python: Option<&'a Path>,
}

/// Sees when steps end.
struct Watch {
    clock: RealClock,
    ends: Arc<Mutex<Vec<Pace>>>,
}

impl Observer for Watch {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        if let Happening::Stepped { .. } = happening {
            let now = Pace::now(&self.clock);
            self.ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(now);
        }
        Verdict::GoOn
    }
}

const ACTORS: &str = "actors";
const PLAIN: &str = "plain calls";
const COMPUTE: &str = "plain, no sources";
const TORCH: &str = "PyTorch, no sources";

/// Measures one stage of a graph.
pub(crate) fn bench(graph: &Graph, plan: &Plan<'_>) -> anyhow::Result<StepBench> {
    let Some(stage) = graph.stages.iter().find(|s| s.name == plan.stage) else {
        bail!("no stage is named `{}`", plan.stage);
    };
    let alone = alone(graph, stage, plan.steps);
    let stage = &alone.stages[0];
    let mut torch = plan.python.map(|p| Torch::start(p, stage, plan.steps)).transpose()?;
    let mut times: BTreeMap<&str, Vec<Pace>> = BTreeMap::new();
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        let [whole, compute] = plainly(stage, plan.steps)?;
        times.entry(PLAIN).or_default().push(whole);
        times.entry(COMPUTE).or_default().push(compute);
        times.entry(ACTORS).or_default().push(through_actors(&alone)?);
        if let Some(torch) = &mut torch {
            let [wall, cpu] = torch.round()?;
            let paces = wall.into_iter().zip(cpu).map(|(wall, cpu)| Pace { wall, cpu });
            times.entry(TORCH).or_default().push(typical(paces.collect()));
        }
    }
    let sides: Vec<Side> = times.iter().map(|(name, paces)| side(name, paces)).collect();
    let pairs = [(ACTORS, PLAIN), (COMPUTE, TORCH), (ACTORS, TORCH)];
    Ok(StepBench {
        device: devices(stage),
        torch: torch.map(|torch| torch.version.clone()),
        threads: torch::threads(),
        ratios: pairs.iter().filter_map(|pair| ratio(&sides, *pair)).collect(),
        sides,
    })
}

fn ratio(sides: &[Side], (first, second): (&str, &str)) -> Option<Ratio> {
    let find = |name: &str| sides.iter().find(|side| side.name == name);
    let (a, b) = (find(first)?, find(second)?);
    let of = format!("{first} / {second}");
    Some(Ratio { of, best: a.best / b.best, median: a.median / b.median, cpu: a.cpu / b.cpu })
}

fn devices(stage: &StageGraph) -> String {
    let trained = stage.nodes.values().filter(|node| node.trains());
    let devices: BTreeSet<_> = trained.map(|node| node.spec.device.as_str()).collect();
    devices.into_iter().collect::<Vec<_>>().join(", ")
}

fn side(name: &str, paces: &[Pace]) -> Side {
    let mut wall: Vec<f64> = paces.iter().map(|pace| pace.wall).collect();
    wall.sort_by(f64::total_cmp);
    let cpu = paces.iter().map(|pace| pace.cpu).fold(f64::INFINITY, f64::min);
    Side { name: name.to_owned(), best: wall[0], median: wall[wall.len() / 2], cpu }
}

/// A graph of that stage alone, from step 0.
fn alone(graph: &Graph, plan: &StageGraph, steps: u64) -> Graph {
    let mut alone = graph.clone();
    alone.stages = vec![StageGraph { first_step: 0, steps, ..plan.clone() }];
    alone.experiment.observers.clear();
    alone.experiment.hosts.clear();
    alone.experiment.place.clear();
    alone
}

/// Seconds of a step, and of what comes after its sources.
fn plainly(stage: &StageGraph, steps: u64) -> anyhow::Result<[Pace; 2]> {
    let mut plain = Plain::new(stage)?;
    let clock = RealClock::start();
    let (mut whole, mut compute) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let start = Pace::now(&clock);
        let read = plain.read(step)?;
        let between = Pace::now(&clock);
        plain.compute(step, read)?;
        let end = Pace::now(&clock);
        whole.push(end.since(start));
        compute.push(end.since(between));
    }
    Ok([typical(whole), typical(compute)])
}

fn through_actors(graph: &Graph) -> anyhow::Result<Pace> {
    let folder = std::env::temp_dir().join(format!("playhouse-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("cannot make a folder for the run")?;
    let ends = Arc::new(Mutex::new(Vec::new()));
    let watch = Watch { clock: RealClock::start(), ends: ends.clone() };
    let extras = Extras { observers: vec![Box::new(watch)], ..Extras::default() };
    let outcome = compose::begin(graph.clone(), &folder, extras)?.wait();
    std::fs::remove_dir_all(&folder).context("cannot remove the folder of the run")?;
    match outcome? {
        actors::supervisor::Outcome::Done => {}
        other => bail!("the run ended early: {other:?}"),
    }
    let ends = ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(typical(ends.windows(2).map(|pair| pair[1].since(pair[0])).collect()))
}

/// Mean step, without the first ones, in which memory and caches warm up.
fn typical(mut paces: Vec<Pace>) -> Pace {
    let warm = (paces.len() / 5).max(1).min(paces.len().saturating_sub(1));
    paces.drain(..warm);
    let mean = |of: fn(&Pace) -> f64| paces.iter().map(of).sum::<f64>() / paces.len().max(1) as f64;
    Pace { wall: mean(|pace| pace.wall), cpu: mean(|pace| pace.cpu) }
}
