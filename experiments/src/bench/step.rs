//! A training step through actors, beside the same nodes called plainly.

use std::sync::{Arc, Mutex};

use actors::clock::{Clock, RealClock};
use actors::observer::{Happening, Observer, Verdict};
use anyhow::{Context as _, bail};
use schemas::graph::{Graph, StageGraph};
use serde::Serialize;

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
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepBench {
    /// Time through actors over time by plain calls: best round, median round.
    pub(crate) actors_over_plain: [f64; 2],
    /// All sides.
    pub(crate) sides: Vec<Side>,
}

/// Sees when steps end.
struct Watch {
    clock: RealClock,
    ends: Arc<Mutex<Vec<f64>>>,
}

impl Observer for Watch {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        if let Happening::Stepped { .. } = happening {
            let now = self.clock.now().since(actors::clock::Moment::at(0.0));
            self.ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(now);
        }
        Verdict::GoOn
    }
}

/// Measures one stage of a graph, `steps` steps a round, sides taking turns.
pub(crate) fn bench(
    graph: &Graph,
    stage: &str,
    (rounds, steps): (usize, u64),
) -> anyhow::Result<StepBench> {
    let Some(plan) = graph.stages.iter().find(|s| s.name == stage) else {
        bail!("no stage is named `{stage}`");
    };
    let alone = alone(graph, plan, steps);
    let (mut actors, mut plain) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        plain.push(plainly(&alone.stages[0], steps)?);
        actors.push(through_actors(&alone)?);
    }
    let sides = vec![side("actors", &mut actors), side("plain calls", &mut plain)];
    let ratio = |a: &Side, b: &Side| [a.best / b.best, a.median / b.median];
    let actors_over_plain = ratio(&sides[0], &sides[1]);
    Ok(StepBench { actors_over_plain, sides })
}

fn side(name: &str, times: &mut [f64]) -> Side {
    times.sort_by(f64::total_cmp);
    Side { name: name.to_owned(), best: times[0], median: times[times.len() / 2] }
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

fn plainly(stage: &StageGraph, steps: u64) -> anyhow::Result<f64> {
    let mut plain = Plain::new(stage)?;
    let clock = RealClock::start();
    let mut times = Vec::new();
    let mut last = clock.now();
    for step in 0..steps {
        plain.step(step)?;
        let now = clock.now();
        times.push(now.since(last));
        last = now;
    }
    Ok(typical(times))
}

fn through_actors(graph: &Graph) -> anyhow::Result<f64> {
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
    Ok(typical(ends.windows(2).map(|pair| pair[1] - pair[0]).collect()))
}

/// Mean step, without the first ones, in which memory and caches warm up.
fn typical(mut times: Vec<f64>) -> f64 {
    let warm = (times.len() / 5).max(1).min(times.len().saturating_sub(1));
    times.drain(..warm);
    times.iter().sum::<f64>() / times.len().max(1) as f64
}
