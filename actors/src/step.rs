//! What the supervisor knows of a step that is not over.

use std::collections::{BTreeMap, BTreeSet};

use schemas::node::{At, Measures};
use schemas::timetable::{Timetable, When};

use crate::message::Assignment;

/// A node in a stage.
#[derive(Debug)]
pub(crate) struct Member {
    /// The steps that it works in; it measures every microbatch of them.
    pub(crate) works: When,
    /// The steps that change its parameters; never when it does not train.
    pub(crate) updates: When,
    /// The steps after which it takes the parameters of another node.
    pub(crate) follows: When,
    /// Whether it makes frames from nothing.
    pub(crate) source: bool,
    /// Whether it waits for the end of each step.
    pub(crate) synchronous: bool,
}

/// Who takes part in a stage.
#[derive(Debug, Default)]
pub(crate) struct Company {
    /// Where the stage begins and what it draws.
    pub(crate) timetable: Timetable,
    /// Its nodes.
    pub(crate) members: BTreeMap<String, Member>,
    /// Nodes whose parameters others begin with.
    pub(crate) copied: Vec<String>,
}

impl Company {
    /// Of the roles of a stage.
    pub(crate) fn of(timetable: Timetable, roles: &BTreeMap<String, Assignment>) -> Self {
        let updates = |role: &Assignment| match role.trains() {
            true => role.updates(),
            false => When::default(),
        };
        let member = |(name, role): (&String, &Assignment)| {
            let followed = role.follows.as_ref().and_then(|of| roles.get(of));
            let member = Member {
                works: role.works.clone(),
                updates: updates(role),
                follows: followed.map(updates).unwrap_or_default(),
                source: role.source,
                synchronous: role.synchronous,
            };
            (name.clone(), member)
        };
        let copied = roles.iter().filter(|(_, role)| !role.copied_by.is_empty());
        Self {
            timetable,
            members: roles.iter().map(member).collect(),
            copied: copied.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Who takes part in a step.
    pub(crate) fn cast(&self, step: u64) -> Cast {
        let names = |which: &dyn Fn(&Member) -> bool| -> BTreeSet<String> {
            let chosen = self.members.iter().filter(|(_, member)| which(member));
            chosen.map(|(name, _)| name.clone()).collect()
        };
        let holds = |when: &When| self.timetable.holds(when, step);
        Cast {
            active: names(&|m| holds(&m.works)),
            trained: names(&|m| holds(&m.updates)),
            followers: names(&|m| holds(&m.follows)),
            told: names(&|m| m.synchronous && !holds(&m.updates) && !holds(&m.follows)),
        }
    }

    /// Sources that work in a step.
    pub(crate) fn sources(&self, step: u64) -> Vec<String> {
        let works = |m: &Member| m.source && self.timetable.holds(&m.works, step);
        let sources = self.members.iter().filter(|(_, member)| works(member));
        sources.map(|(name, _)| name.clone()).collect()
    }
}

/// Who takes part in a step.
#[derive(Debug, Default)]
pub(crate) struct Cast {
    /// Nodes that work; each measures every microbatch.
    pub(crate) active: BTreeSet<String>,
    /// Nodes whose parameters change.
    pub(crate) trained: BTreeSet<String>,
    /// Nodes that take the parameters of another one.
    pub(crate) followers: BTreeSet<String>,
    /// The others that wait for the end of the step.
    pub(crate) told: BTreeSet<String>,
}

/// Numbers of one step, until all of them are there.
#[derive(Debug, Default)]
pub(crate) struct StepState {
    /// Measures by node and microbatch.
    measured: BTreeMap<String, BTreeMap<u32, Measures>>,
    /// Squared gradient norms by node.
    norms: BTreeMap<String, f64>,
    /// Whether the update was ordered.
    pub(crate) applied: bool,
    /// Nodes that applied it, with what they measured.
    updated: BTreeMap<String, Measures>,
    /// Nodes that took the parameters they follow.
    followed: BTreeSet<String>,
}

impl StepState {
    pub(crate) fn measure(&mut self, node: &str, microbatch: u32, measures: Measures) {
        self.measured.entry(node.to_owned()).or_default().insert(microbatch, measures);
    }

    pub(crate) fn gradient(&mut self, node: &str, squared_norm: f64) {
        self.norms.insert(node.to_owned(), squared_norm);
    }

    pub(crate) fn update(&mut self, node: &str, measures: Measures) {
        self.updated.insert(node.to_owned(), measures);
    }

    pub(crate) fn follow(&mut self, node: &str) {
        self.followed.insert(node.to_owned());
    }

    /// The global norm, once every trained node has its gradients. Summed in name order, so that
    /// it has one value on every placement.
    pub(crate) fn norm(&self, trained: &BTreeSet<String>) -> Option<f64> {
        let all = trained.iter().all(|node| self.norms.contains_key(node));
        (all && !trained.is_empty()).then(|| self.norms.values().sum::<f64>().sqrt())
    }

    /// Microbatches that every node has measured.
    pub(crate) fn measured(&self, crew: &Cast) -> u32 {
        let counts = crew.active.iter().map(|n| self.measured.get(n).map_or(0, BTreeMap::len));
        counts.min().unwrap_or(0) as u32
    }

    /// Whether all nodes have measured, all updates are applied and all followers have followed.
    pub(crate) fn complete(&self, crew: &Cast, accumulate: u32) -> bool {
        self.measured(crew) == accumulate
            && crew.trained.iter().all(|node| self.updated.contains_key(node))
            && crew.followers.iter().all(|node| self.followed.contains(node))
    }

    /// Nodes that something is still missing from.
    pub(crate) fn missing(&self, crew: &Cast, accumulate: u32) -> Vec<String> {
        let measured = |node: &String| self.measured.get(node).map_or(0, BTreeMap::len);
        let late = crew.active.iter().filter(|n| measured(n) < accumulate as usize);
        let idle = crew.trained.iter().filter(|n| {
            if self.applied { !self.updated.contains_key(*n) } else { !self.norms.contains_key(*n) }
        });
        let behind = crew.followers.iter().filter(|n| !self.followed.contains(*n));
        let mut names: BTreeSet<&String> = late.collect();
        names.extend(idle);
        if names.is_empty() {
            names.extend(behind);
        }
        names.into_iter().cloned().collect()
    }

    /// All numbers by node and metric: the mean over microbatches, in their order.
    pub(crate) fn numbers(&self) -> Vec<(String, String, f64)> {
        let mut numbers: BTreeMap<(String, String), f64> = BTreeMap::new();
        for (node, parts) in &self.measured {
            let mut sums: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
            for measures in parts.values() {
                for (metric, value) in measures {
                    let sum = sums.entry(metric).or_default();
                    *sum = (sum.0 + value, sum.1 + 1);
                }
            }
            for (metric, (sum, count)) in sums {
                let mean = if count == 1 { sum } else { sum / f64::from(count) };
                numbers.insert((node.clone(), metric.to_owned()), mean);
            }
        }
        for (node, measures) in &self.updated {
            for (metric, value) in measures {
                numbers.insert((node.clone(), metric.clone()), *value);
            }
        }
        numbers.into_iter().map(|((node, metric), value)| (node, metric, value)).collect()
    }
}

/// The microbatch after this one.
pub(crate) fn next(at: At, accumulate: u32) -> At {
    if at.microbatch + 1 < accumulate {
        At { microbatch: at.microbatch + 1, ..at }
    } else {
        At { step: at.step + 1, microbatch: 0, ..at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_do_not_depend_on_the_order_of_arrival() {
        let measures = |value: f64| Measures::from([("loss".to_owned(), value)]);
        let values = [0.1, 0.2, 0.3];
        let (mut first, mut second) = (StepState::default(), StepState::default());
        for (microbatch, value) in values.iter().enumerate() {
            first.measure("n", microbatch as u32, measures(*value));
        }
        for (microbatch, value) in values.iter().enumerate().rev() {
            second.measure("n", microbatch as u32, measures(*value));
        }
        assert_eq!(first.numbers(), second.numbers());
        for node in ["a", "b", "c"] {
            first.gradient(node, if node == "b" { 1e16 } else { 1.1 });
        }
        for node in ["c", "a", "b"] {
            second.gradient(node, if node == "b" { 1e16 } else { 1.1 });
        }
        let trained = set(&["a", "b", "c"]);
        assert_eq!(first.norm(&trained), second.norm(&trained));
    }

    #[test]
    fn a_step_waits_for_followers_and_names_whom_it_waits_for() {
        let cast = Cast {
            active: set(&["average", "model"]),
            trained: set(&["model"]),
            followers: set(&["average"]),
            ..Cast::default()
        };
        let mut step = StepState::default();
        step.measure("model", 0, Measures::new());
        assert_eq!(step.missing(&cast, 1), ["average", "model"]);
        step.measure("average", 0, Measures::new());
        step.gradient("model", 1.0);
        assert_eq!(step.measured(&cast), 1);
        step.applied = true;
        assert_eq!(step.missing(&cast, 1), ["model"]);
        step.update("model", Measures::new());
        assert!(!step.complete(&cast, 1));
        assert_eq!(step.missing(&cast, 1), ["average"]);
        step.follow("average");
        assert!(step.complete(&cast, 1));
    }
}
