//! Nearest-neighbour probe: the labels of the most similar features seen before vote.
//!
//! | port       | dims  | what                                          |
//! |------------|-------|-----------------------------------------------|
//! | `features` | `B D` | one vector per clip; the gradient ends here   |
//! | `label`    | `B`   | class number                                  |
//!
//! The bank takes the features of steps below `fill`, the newest `size` of them. Every step first
//! asks the bank of earlier steps and measures `accuracy`, then fills it. Similarity is the
//! cosine c; the k nearest vote with weight `exp(c / temperature)`. A microbatch that runs again
//! takes its own place in the bank. Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Forwarded, NodeError, Part};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Neighbours that vote.
    pub neighbours: usize,
    /// Temperature of the votes.
    pub temperature: f64,
    /// Features kept at most.
    pub size: usize,
    /// Steps that fill the bank; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { neighbours: 10, temperature: 0.07, size: 4096, fill: None }
    }
}

/// A unit vector and its class.
type Example = (Vec<f32>, i64);

/// Examples by the work that they come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bank {
    by_work: BTreeMap<At, Vec<Example>>,
}

impl Bank {
    fn len(&self) -> usize {
        self.by_work.values().map(Vec::len).sum()
    }

    /// Class with the most votes among the examples of earlier steps; none when there are none.
    fn vote(&self, config: &Config, query: &[f32], at: At) -> Option<i64> {
        let start = At { microbatch: 0, ..at };
        let examples = self.by_work.range(..start).flat_map(|(_, examples)| examples);
        let cosine = |v: &[f32]| v.iter().zip(query).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let mut near: Vec<(f64, i64)> = examples.map(|(v, label)| (cosine(v), *label)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut votes: BTreeMap<i64, f64> = BTreeMap::new();
        for (cosine, label) in near.into_iter().take(config.neighbours) {
            *votes.entry(label).or_default() += ((cosine - 1.0) / config.temperature).exp();
        }
        votes.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(label, _)| label)
    }

    fn add(&mut self, at: At, examples: Vec<Example>, size: usize) {
        self.by_work.insert(at, examples);
        while self.len() > size && self.by_work.len() > 1 {
            self.by_work.pop_first();
        }
    }
}

fn unit(values: &[f32]) -> Vec<f32> {
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    values.iter().map(|v| v / norm).collect()
}

impl Host for Config {
    type State = Bank;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .stopped("features", "B D")
            .about("one vector per clip")
            .stopped("label", "B")
            .int()
            .about("class number")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        for (name, value) in [("neighbours", self.neighbours), ("size", self.size)] {
            if value == 0 {
                let message = format!("`{name}` is 0, but must be at least 1");
                problems.push(OptionProblem::new(name, message, "give a number from 1"));
            }
        }
        if self.temperature.is_nan() || self.temperature <= 0.0 {
            let message = format!("`temperature` is {}, but must be above 0", self.temperature);
            problems.push(OptionProblem::new("temperature", message, "write, for example, 0.07"));
        }
        problems
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<Bank, NodeError> {
        Ok(Bank::default())
    }

    fn forward(
        &self,
        bank: &mut Bank,
        inputs: Frames,
        call: &Call,
    ) -> Result<Forwarded, NodeError> {
        let port = |name: &str| {
            let missing = || NodeError::MissingInput { port: name.to_owned() };
            inputs.get(name).ok_or_else(missing)
        };
        let (features, labels) = (port("features")?, port("label")?.to_i64());
        let width = features.shape().last().copied().unwrap_or(1).max(1);
        let vectors = features.to_f32();
        let vectors = vectors.chunks(width).map(unit);
        let examples: Vec<Example> = vectors.zip(labels).collect();
        let votes = examples.iter().map(|(v, label)| Some(bank.vote(self, v, call.at)? == *label));
        let votes: Option<Vec<bool>> = votes.collect();
        let mut forwarded = Forwarded::default();
        if let Some(hits) = votes.filter(|hits| !hits.is_empty()) {
            let right = hits.iter().filter(|hit| **hit).count();
            let accuracy = right as f64 / hits.len() as f64;
            forwarded.measures.insert("accuracy".to_owned(), accuracy);
        }
        if self.fill.is_none_or(|steps| call.at.step < steps) {
            bank.add(call.at, examples, self.size);
        }
        forwarded.measures.insert("bank".to_owned(), bank.len() as f64);
        Ok(forwarded)
    }

    fn save(&self, bank: &Bank) -> Part {
        let (mut places, mut labels, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
        for (at, examples) in &bank.by_work {
            for (vector, label) in examples {
                places.extend([i64::from(at.stage), at.step as i64, i64::from(at.microbatch)]);
                labels.push(*label);
                vectors.extend_from_slice(vector);
            }
        }
        let (count, width) = (labels.len(), vectors.len() / labels.len().max(1));
        let mut part = Part::default();
        part.tensors.insert("bank.place".to_owned(), Frame::i64([count, 3], places));
        part.tensors.insert("bank.label".to_owned(), Frame::i64([count], labels));
        part.tensors.insert("bank.vector".to_owned(), Frame::f32([count, width], vectors));
        part
    }

    fn load(&self, bank: &mut Bank, part: &Part) -> Result<(), NodeError> {
        let tensor = |name: &str| {
            let missing = || NodeError::State { reason: format!("`{name}` is missing") };
            part.tensors.get(name).ok_or_else(missing)
        };
        let places = tensor("bank.place")?.to_i64();
        let labels = tensor("bank.label")?.to_i64();
        let vectors = tensor("bank.vector")?;
        let width = vectors.shape().last().copied().unwrap_or(1).max(1);
        let values = vectors.to_f32();
        bank.by_work.clear();
        let examples = values.chunks(width).map(<[f32]>::to_vec).zip(labels);
        for (place, example) in places.chunks(3).zip(examples) {
            let at =
                At { stage: place[0] as u32, step: place[1] as u64, microbatch: place[2] as u32 };
            bank.by_work.entry(at).or_default().push(example);
        }
        Ok(())
    }
}

/// Kind `probes/knn`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("knn.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    fn step(config: &Config, bank: &mut Bank, step: u64, values: [f32; 4]) -> Forwarded {
        let at = At { step, ..At::default() };
        let call = Call::new(Key::new(0, "knn"), at);
        let features = Frame::f32([2, 2], values);
        let inputs = [("features", features), ("label", Frame::i64([2], [0, 1]))];
        let inputs = inputs.map(|(name, frame)| (name.to_owned(), frame)).into();
        config.forward(bank, inputs, &call).unwrap()
    }

    #[test]
    fn the_bank_of_earlier_steps_votes() {
        let config = Config { neighbours: 1, ..Config::default() };
        let mut bank = Bank::default();
        let first = step(&config, &mut bank, 0, [1.0, 0.0, 0.0, 1.0]);
        assert!(!first.measures.contains_key("accuracy"), "nobody has voted");
        let right = step(&config, &mut bank, 1, [2.0, 0.1, 0.1, 3.0]);
        assert_eq!(right.measures["accuracy"], 1.0);
        let wrong = step(&config, &mut bank, 2, [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(wrong.measures["accuracy"], 0.0);
        let again = step(&config, &mut bank, 2, [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(again.measures, wrong.measures);
    }

    #[test]
    fn the_bank_is_bounded_and_survives_a_restart() {
        let config = Config { size: 4, fill: Some(3), ..Config::default() };
        let mut bank = Bank::default();
        (0..5).for_each(|i| drop(step(&config, &mut bank, i, [i as f32, 1.0, 1.0, 1.0])));
        assert_eq!(bank.len(), 4);
        let mut restored = Bank::default();
        config.load(&mut restored, &config.save(&bank)).unwrap();
        assert_eq!(restored, bank);
    }
}
