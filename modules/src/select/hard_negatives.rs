//! Hard negatives: for each sample another one that is like it and is no match, drawn in the step.
//!
//! | port         | dims  | what                                                          |
//! |--------------|-------|---------------------------------------------------------------|
//! | `similarity` | `B B` | scores of pairs, divided by the temperature; rows are clips   |
//! | `vision`     | `B D` | instead: one vector per clip                                  |
//! | `text`       | `B D` | instead: one vector per text                                  |
//! | `ids`        | `B`   | optional: samples with equal ids match                        |
//! | `of_vision`  | `B`   | for each clip the number of a text that is not its own        |
//! | `of_text`    | `B`   | for each text the number of a clip that is not its own        |
//!
//! The weights of a clip's texts are `softmax(similarity + 1e-4)` over its row, and 0 for its matches;
//! those of a text's clips come from its column. Without `similarity` it is the cosine of the two vectors,
//! divided by `temperature`. No gradient flows. The draws depend on the step and the sample alone.
//! Source: Li et al. 2021, "ALBEF" (arXiv 2107.07651), section 3.2; recipes §2.6.

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What cosines are divided by, where `vision` and `text` are given.
    pub temperature: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { temperature: 0.07 }
    }
}

/// Weights of the negatives of each row, `[B, B]` row-major, from similarities of the same shape.
/// Samples with equal ids match; without ids each sample matches itself alone.
pub fn weights(similarity: &[f64], ids: &[i64]) -> Vec<f64> {
    let count = ids.len();
    let row = |(sample, row): (usize, &[f64])| {
        // The constant is in the published code; it changes nothing.
        let top = row.iter().fold(f64::NEG_INFINITY, |top, value| top.max(value + 1e-4));
        let powers: Vec<f64> = row.iter().map(|value| (value + 1e-4 - top).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let one = |(other, power): (usize, f64)| match power / sum {
            _ if ids[other] == ids[sample] => 0.0,
            weight if weight.is_finite() => weight,
            // As published: a similarity that is no number counts a little.
            _ => 0.01,
        };
        let weights: Vec<f64> = powers.into_iter().enumerate().map(one).collect();
        if weights.iter().any(|weight| *weight > 0.0) {
            return weights;
        }
        // Beside a match that is far above them all negatives round to 0: among themselves they do not.
        let other = |(other, value): (usize, &f64)| (ids[other] != ids[sample]).then_some(*value);
        let values: Vec<_> = row.iter().enumerate().map(other).collect();
        let top = values.iter().flatten().fold(f64::NEG_INFINITY, |top, value| top.max(*value));
        values.into_iter().map(|value| value.map_or(0.0, |value| (value - top).exp())).collect()
    };
    similarity.chunks(count.max(1)).enumerate().flat_map(row).collect()
}

/// Rows as columns.
pub fn transposed(square: &[f64], side: usize) -> Vec<f64> {
    (0..side * side).map(|i| square[i % side * side + i / side]).collect()
}

/// For each row of `[B, B]` weights one column, drawn by weight.
pub fn draw(weights: &[f64], count: usize, key: &Key) -> Result<Vec<i64>, NodeError> {
    let one = |(sample, row): (usize, &[f64])| {
        let sum: f64 = row.iter().sum();
        if sum <= 0.0 {
            let what = "port `ids`".to_owned();
            let reason = format!(
                "sample {sample} matches all {count} samples of its batch, so that none can be a \
                 negative; use a larger batch, or data with more ids"
            );
            return Err(NodeError::Data { what, reason });
        }
        let mut left = key.with_number(sample as u64).rng().uniform() * sum;
        let passed = |weight: &f64| {
            left -= weight;
            *weight > 0.0 && left < 0.0
        };
        // Rounding may leave a rest: then the last one that can be drawn is.
        let last = || row.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        Ok(row.iter().position(passed).unwrap_or_else(last) as i64)
    };
    weights.chunks(count.max(1)).enumerate().map(one).collect()
}

impl Config {
    fn similarity(&self, inputs: &Frames) -> Result<(Vec<f64>, usize), NodeError> {
        let wide = |frame: &Frame| frame.to_f32().into_iter().map(f64::from).collect::<Vec<_>>();
        if let Some(similarity) = inputs.get("similarity") {
            let &[rows, columns] = similarity.shape() else { return Err(shape("similarity")) };
            return if rows == columns {
                Ok((wide(similarity), rows))
            } else {
                Err(shape("similarity"))
            };
        }
        let vectors = |port: &str| {
            let missing = || NodeError::MissingInput { port: port.to_owned() };
            let frame = inputs.get(port).ok_or_else(missing)?;
            let &[rows, width] = frame.shape() else { return Err(shape(port)) };
            let unit = |row: &[f64]| {
                let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
                row.iter().map(|v| v / norm).collect::<Vec<_>>()
            };
            let values = wide(frame);
            let rows: Vec<Vec<f64>> = values.chunks(width.max(1)).take(rows).map(unit).collect();
            Ok(rows)
        };
        let (vision, text) = (vectors("vision")?, vectors("text")?);
        let pair = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / self.temperature
        };
        let all = vision.iter().flat_map(|a| text.iter().map(move |b| pair(a, b)));
        Ok((all.collect(), vision.len()))
    }
}

fn shape(port: &str) -> NodeError {
    NodeError::Mismatch {
        port: port.to_owned(),
        found: "another shape".to_owned(),
        expected: "one row and one column per sample".to_owned(),
    }
}

impl Host for Config {
    type State = ();

    fn ports(&self, wired: &[String]) -> Ports {
        let pairs = wired.iter().any(|port| ["vision", "text"].contains(&port.as_str()));
        let ports = if pairs {
            let ports = Ports::default().stopped("vision", "B D").about("one vector per clip");
            ports.stopped("text", "B D").about("one vector per text")
        } else {
            let ports = Ports::default().stopped("similarity", "B B");
            ports.about("scores of pairs, divided by the temperature; rows are clips")
        };
        ports
            .stopped("ids", "B")
            .int()
            .optional()
            .about("samples with equal ids match")
            .plain("of_vision", "B")
            .int()
            .about("for each clip a text that is not its own")
            .plain("of_text", "B")
            .int()
            .about("for each text a clip that is not its own")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        if !(self.temperature > 0.0 && self.temperature <= 100.0) {
            let message =
                format!("`temperature` is {}, not above 0 and up to 100", self.temperature);
            problems.push(OptionProblem::new("temperature", message, "0.07 is usual"));
        }
        if dims.get("B") == Some(&1) {
            let message = "a batch of one sample has no negatives";
            problems.push(OptionProblem::new("", message, "use a batch of at least 2"));
        }
        problems
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<(), NodeError> {
        Ok(())
    }

    fn forward(&self, (): &mut (), inputs: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let (similarity, count) = self.similarity(&inputs)?;
        let ids = match inputs.get("ids") {
            Some(ids) => ids.to_i64(),
            None => (0..count as i64).collect(),
        };
        if ids.len() != count || similarity.len() != count * count {
            return Err(shape("ids"));
        }
        let mut forwarded = Forwarded::default();
        let columns = transposed(&similarity, count);
        for (port, scores) in [("of_vision", similarity), ("of_text", columns)] {
            let chosen = draw(&weights(&scores, &ids), count, &call.key.with(port))?;
            forwarded.frames.insert(port.to_owned(), Frame::i64([count], chosen));
        }
        Ok(forwarded)
    }
}

/// Kind `select/hard_negatives`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("hard_negatives.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::node::At;

    fn run(inputs: Vec<(&str, Frame)>, step: u64) -> Result<Forwarded, NodeError> {
        let inputs = inputs.into_iter().map(|(name, frame)| (name.to_owned(), frame)).collect();
        let call = Call::new(Key::new(step, "negatives"), At::default());
        Config::default().forward(&mut (), inputs, &call)
    }

    #[test]
    fn a_match_far_above_all_negatives_leaves_them_their_order() {
        let similarity = [5000.0, 1.0, 2.0, 0.0, 9000.0, 0.0, 3.0, 1.0, 8000.0];
        let weights = weights(&similarity, &[0, 1, 2]);
        assert_eq!(weights[0], 0.0);
        assert!(weights[2] == 1.0 && (weights[1] - (-1f64).exp()).abs() < 1e-12, "{weights:?}");
        assert!(draw(&weights, 3, &Key::new(1, "draw")).is_ok());
    }

    #[test]
    fn likely_negatives_are_drawn_by_weight_and_matches_never() {
        let scores = [9.0, 0.0, 3f32.ln(), 0.0, 9.0, 0.0, 0.0, 0.0, 9.0];
        let mut counts = [0; 3];
        for step in 0..2000 {
            let inputs = vec![("similarity", Frame::f32([3, 3], scores))];
            let chosen = run(inputs, step).unwrap();
            counts[chosen.frames["of_vision"].to_i64()[0] as usize] += 1;
            let of_text = chosen.frames["of_text"].to_i64();
            assert!(of_text.iter().enumerate().all(|(text, clip)| text as i64 != *clip));
        }
        assert_eq!(counts[0], 0);
        assert!((1420..1580).contains(&counts[2]), "{counts:?}"); // 3/4 of 2000, four deviations
    }

    #[test]
    fn samples_with_equal_ids_are_no_negatives() {
        let vectors = || Frame::f32([3, 2], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let pair = || vec![("vision", vectors()), ("text", vectors())];
        let ids = |ids: [i64; 3]| [pair(), vec![("ids", Frame::i64([3], ids))]].concat();
        for step in 0..50 {
            let chosen = run(ids([7, 7, 8]), step).unwrap().frames["of_vision"].to_i64();
            assert_eq!(chosen[..2], [2, 2]);
        }
        let error = run(ids([7, 7, 7]), 0).unwrap_err().to_string();
        assert!(error.contains("sample 0 matches all 3 samples"), "{error}");
    }
}
