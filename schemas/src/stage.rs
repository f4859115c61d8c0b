//! What a stage of the curriculum says beside its name and its steps.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::node::Schedule;
use crate::timetable::{Span, When};

/// A node that trains, with exceptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "takes names of nodes, or one node with exceptions; write, for example, `train: [text, { vision: { except: [patch_embed] } }]`"
)]
pub enum TrainConfig {
    /// All of it.
    Whole(String),
    /// Some of it.
    Part(BTreeMap<String, Portion>),
}

/// Which parameters of a node train. Names are prefixes of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Portion {
    /// Only these; all when absent.
    pub only: Option<Vec<String>>,
    /// Not these.
    pub except: Vec<String>,
}

impl TrainConfig {
    /// The node, or nodes, and what of them trains.
    pub fn nodes(&self) -> Vec<(&str, Portion)> {
        match self {
            Self::Whole(name) => vec![(name, Portion::default())],
            Self::Part(parts) => parts.iter().map(|(n, p)| (n.as_str(), p.clone())).collect(),
        }
    }
}

/// How much a loss counts: a number, or when it counts and how its weight moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "takes a number, or a mapping; write, for example, `align.loss: 1` or `align.loss: { weight: 1, to: 0.5, on: [video] }`"
)]
pub enum LossConfig {
    /// The same weight in every step.
    Weight(f64),
    /// A weight that moves, or that counts in some steps only.
    Full(LossWeight),
}

impl LossConfig {
    /// With all fields.
    pub fn full(&self) -> LossWeight {
        match self {
            Self::Weight(weight) => LossWeight { weight: *weight, ..LossWeight::default() },
            Self::Full(full) => full.clone(),
        }
    }
}

/// How much a loss counts, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossWeight {
    /// Weight once it is full.
    pub weight: f64,
    /// Share of the stage after which the loss begins.
    pub from: f64,
    /// Share of the stage after which it ends. What only this loss needs does no work before and after.
    pub to: f64,
    /// Weight where the loss begins; the full one when absent.
    pub begin: Option<f64>,
    /// Share of the stage after which the weight is full; `to` when absent.
    pub full: Option<f64>,
    /// How the weight moves from `begin` to the full one.
    pub schedule: Schedule,
    /// Media of the stage's mixture that the loss counts for; all when absent.
    pub on: Option<BTreeSet<String>>,
}

impl Default for LossWeight {
    fn default() -> Self {
        Self {
            weight: 1.0,
            from: 0.0,
            to: 1.0,
            begin: None,
            full: None,
            schedule: Schedule::Linear,
            on: None,
        }
    }
}

impl LossWeight {
    /// A weight for all steps.
    pub fn constant(weight: f64) -> Self {
        Self { weight, ..Self::default() }
    }

    fn place(share: f64, steps: u64) -> u64 {
        (share * steps as f64).round() as u64
    }

    /// The steps of a stage of `steps` steps that the loss counts in.
    pub fn when(&self, steps: u64) -> When {
        let whole = self.from <= 0.0 && self.to >= 1.0;
        let (first, end) = if whole {
            (0, u64::MAX)
        } else {
            (Self::place(self.from, steps), Self::place(self.to, steps))
        };
        When(BTreeSet::from([Span { media: self.on.clone(), first, end }]))
    }

    /// The weight at `step` of a stage of `steps` steps, both counted from 0 in the stage.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let Some(begin) = self.begin else { return self.weight };
        let first = Self::place(self.from, steps);
        let full = Self::place(self.full.unwrap_or(self.to), steps);
        let length = full.saturating_sub(first).max(1) as f64;
        let done = (step.saturating_sub(first) as f64 / length).min(1.0);
        let share = match self.schedule {
            Schedule::Constant => f64::from(u8::from(done >= 1.0)),
            Schedule::Linear => done,
            Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done).cos()),
        };
        begin + (self.weight - begin) * share
    }

    /// What is wrong with the numbers: the key, what it is, and what it may be.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let finite = |value: Option<f64>| value.is_none_or(f64::is_finite);
        if !finite(Some(self.weight)) || !finite(self.begin) {
            let key = if finite(Some(self.weight)) { "begin" } else { "weight" };
            return Some((key, format!("`{key}` is not a finite number")));
        }
        let shares = [("from", Some(self.from)), ("to", Some(self.to)), ("full", self.full)];
        for (key, value) in shares {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                return Some((key, format!("`{key}` is {value}, not a share from 0 to 1")));
            }
        }
        if self.to <= self.from {
            return Some(("to", format!("`to` is {}, not after `from`, {}", self.to, self.from)));
        }
        let full = self.full.filter(|full| *full < self.from || *full > self.to);
        full.map(|full| ("full", format!("`full` is {full}, not between `from` and `to`")))
    }
}

/// What ends a stage before its last step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// `node.metric`, or `loss` for the weighted sum.
    pub metric: String,
    /// Opens when the mean is above this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Opens when the mean is below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// Opens when the mean has not become better for so many steps; lower is better for losses, higher for the rest.
    #[serde(default)]
    pub plateau: Option<u64>,
    /// What counts as better, under `plateau`.
    #[serde(default)]
    pub by: f64,
    /// Steps that the mean is taken over.
    #[serde(default = "ten")]
    pub over: u64,
}

fn ten() -> u64 {
    10
}

/// What happens to the optimiser's moments when the stage begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "takes `keep`, `reset`, or names of nodes that keep theirs; write, for example, `moments: [text]`"
)]
pub enum Moments {
    /// Of all nodes.
    All(MomentsOf),
    /// These nodes keep theirs.
    Keep(Vec<String>),
}

/// Of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MomentsOf {
    /// They go on.
    Keep,
    /// They begin again.
    Reset,
}

impl Default for Moments {
    fn default() -> Self {
        Self::All(MomentsOf::Reset)
    }
}

impl Moments {
    /// Whether a node keeps its moments.
    pub fn keeps(&self, node: &str) -> bool {
        match self {
            Self::All(of) => *of == MomentsOf::Keep,
            Self::Keep(names) => names.iter().any(|name| name == node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_moves_and_then_stays() {
        let loss = LossWeight {
            weight: 2.0,
            from: 0.1,
            full: Some(0.5),
            begin: Some(0.0),
            ..LossWeight::default()
        };
        let at = |step| loss.at(step, 100);
        assert_eq!((at(10), at(30), at(50), at(99)), (0.0, 1.0, 2.0, 2.0));
        let cosine = LossWeight { schedule: Schedule::Cosine, ..loss };
        assert!((cosine.at(30, 100) - 1.0).abs() < 1e-12);
        assert_eq!(LossWeight::constant(3.0).at(7, 10), 3.0);
    }

    #[test]
    fn a_loss_counts_within_its_part_of_the_stage() {
        let loss = LossWeight { from: 0.25, to: 0.5, ..LossWeight::default() };
        let span = loss.when(100).0.into_iter().next().unwrap();
        assert_eq!((span.first, span.end), (25, 50));
        assert!(LossWeight::default().when(100) == When::always());
        assert_eq!(LossWeight { to: 0.1, from: 0.2, ..loss }.problem().unwrap().0, "to");
    }
}
