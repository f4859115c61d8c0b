//! Pairwise sigmoid loss: each pair of the batch is judged by itself, as belonging together or not.
//!
//! | port     | dims  | what                                                                |
//! |----------|-------|---------------------------------------------------------------------|
//! | `left`   | `B D` | one side, for example texts                                         |
//! | `right`  | `B D` | the other side, for example pictures; row i belongs to row i        |
//! | `scores` | `B B` | scaled similarities plus bias, `left` by `right`                    |
//! | `loss`   | `1`   | sum over pairs, divided by B, in nats                               |
//!
//! `z = s <l, r> + b` with unit vectors; the loss of a pair is `-log sigmoid(z)`, or `-log sigmoid(-z)`
//! when the two do not belong together. s is learned as its logarithm, b as it is. With `tile` the
//! columns are taken so many at a time, as they arrive from replicas; the sum is the same. Measures
//! `accuracy`, the share of `left` whose best partner is right.
//! Source: Zhai et al. 2023, "SigLIP" (arXiv 2303.15343).

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Int, Tensor, activation};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cross_entropy::accuracy;
use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::norm::unit;
use crate::layout::Layout;
use crate::published::is_whole;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Scale at the start.
    pub scale: f64,
    /// Bias at the start; strongly negative, since most pairs do not belong together.
    pub bias: f64,
    /// Columns at a time; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self { scale: 10.0, bias: -10.0, tile: None }
    }
}

/// The learned scale and bias.
#[derive(Module, Debug)]
pub struct PairwiseSigmoid {
    /// Logarithm of the scale, `[1]`.
    pub logit_scale: Param<Tensor<1>>,
    /// `[1]`.
    pub logit_bias: Param<Tensor<1>>,
}

impl PairwiseSigmoid {
    /// Scores of unit vectors `[B, D]` and `[C, D]`, `[B, C]`.
    pub fn scores(&self, left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
        let [scale, bias] =
            [&self.logit_scale, &self.logit_bias].map(|p| p.val().cast(FloatDType::F32));
        left.matmul(right.transpose()) * scale.exp().unsqueeze::<2>() + bias.unsqueeze::<2>()
    }

    /// The scores and the loss `[1]` of unit vectors `[B, D]`, `tile` columns at a time.
    pub fn forward(
        &self,
        left: Tensor<2>,
        right: Tensor<2>,
        tile: usize,
    ) -> (Tensor<2>, Tensor<1>) {
        let rows = left.dims()[0];
        let mut sum = None;
        let mut seen = Vec::new();
        for first in (0..rows).step_by(tile.max(1)) {
            let end = (first + tile.max(1)).min(rows);
            let scores = self.scores(left.clone(), right.clone().slice_dim(0, first..end));
            let part = judged(scores.clone(), first).sum_dim(1).sum().div_scalar(-(rows as f64));
            sum = Some(match sum {
                Some(sum) => sum + part,
                None => part,
            });
            seen.push(scores.inner());
        }
        let none = || Tensor::zeros([1], &left.device());
        (Tensor::cat(seen, 1), sum.unwrap_or_else(none))
    }
}

/// Logarithms of the probabilities of the right answers, for columns from `first` on.
fn judged(scores: Tensor<2>, first: usize) -> Tensor<2> {
    let [rows, columns] = scores.dims();
    let device = scores.device().inner();
    let line = |from: usize, count: usize| -> Tensor<1, Int> {
        Tensor::arange(from as i64..(from + count) as i64, &device)
    };
    let down = line(0, rows).reshape([rows, 1]).expand([rows, columns]);
    let across = line(first, columns).reshape([1, columns]).expand([rows, columns]);
    let sign = down.equal(across).float().cast(FloatDType::F32).mul_scalar(2.0).sub_scalar(1.0);
    activation::log_sigmoid(scores * sign)
}

impl Kind for Config {
    type Module = PairwiseSigmoid;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("left", "B D")
            .about("one side")
            .input("right", "B D")
            .about("the other side, in the same order")
            .plain("scores", "B B")
            .about("scaled similarities plus bias")
            .loss("loss")
            .about("sum over pairs, divided by the number of rows")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        if !(self.scale > 0.0 && self.scale <= 1e6) {
            let message = format!("`scale` is {}, not above 0 and up to 1e6", self.scale);
            problems.push(OptionProblem::new("scale", message, "10 is the published one"));
        }
        if !(-1e6..=1e6).contains(&self.bias) {
            let message = format!("`bias` is {}, not between -1e6 and 1e6", self.bias);
            problems.push(OptionProblem::new("bias", message, "-10 is the published one"));
        }
        if self.tile == Some(0) {
            let message = "`tile` is 0, but must be at least 1";
            problems.push(OptionProblem::new("tile", message, "leave it out for all columns"));
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> PairwiseSigmoid {
        PairwiseSigmoid {
            logit_scale: init.constant([1], self.scale.ln() as f32),
            logit_bias: init.constant([1], self.bias as f32),
        }
    }

    fn forward(
        &self,
        module: &PairwiseSigmoid,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let sides: [Tensor<2>; 2] = [inputs.take("left")?, inputs.take("right")?];
        let [left, right] = sides.map(|x| unit(x.cast(FloatDType::F32)));
        let rows = left.dims()[0];
        let (scores, loss) = module.forward(left, right, self.tile.unwrap_or(rows));
        let own = Tensor::<1, Int>::arange(0..rows as i64, &scores.device());
        let accuracy = accuracy(scores.clone(), own);
        Ok(Tensors::of("loss", loss).with("scores", scores).measure("accuracy", accuracy))
    }

    fn published(config: &Value) -> Option<Published> {
        let models = [("siglip", "SiglipModel"), ("siglip2", "Siglip2Model")];
        let known = models.into_iter().any(|(model, whole)| is_whole(config, model, whole));
        known.then(|| Published { options: json!({}), dims: Dims::new() })
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![Layout::new("hf")]
    }
}

/// Kind `losses/pairwise_sigmoid`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("pairwise_sigmoid.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn tiles_give_the_loss_and_the_gradients_of_the_whole() {
        let device = Device::flex().autodiff();
        let config = Config { scale: 2.0, bias: -1.0, tile: None };
        let loss = config.init(&Dims::new(), &Init::new(1, "loss", &device));
        let draw = || Tensor::<2>::random([5, 4], Distribution::Normal(0.0, 1.0), &device);
        let sides = [draw().require_grad(), draw().require_grad()];
        let run = |tile: usize| {
            let [left, right] = sides.clone();
            let (scores, loss) = loss.forward(left, right, tile);
            let all = loss.backward();
            let gradients = sides.clone().map(|side| side.grad(&all).expect("a gradient"));
            (scores, loss.inner(), gradients)
        };
        let (scores, whole, gradients) = run(5);
        let values: Vec<f64> = scores.to_data().iter::<f32>().map(f64::from).collect();
        let one = |(i, z): (usize, &f64)| {
            let z = if i % 6 == 0 { *z } else { -z };
            (1.0 + (-z).exp()).ln()
        };
        let by_hand = values.iter().enumerate().map(one).sum::<f64>() / 5.0;
        assert!((f64::from(whole.clone().into_scalar::<f32>()) - by_hand).abs() < 1e-5);
        for tile in [1, 2, 3] {
            let (again, part, others) = run(tile);
            assert!((again - scores.clone()).abs().max().into_scalar::<f32>() < 1e-6);
            assert!((part - whole.clone()).abs().into_scalar::<f32>() < 1e-5);
            for (a, b) in others.into_iter().zip(gradients.clone()) {
                assert!((a - b).abs().max().into_scalar::<f32>() < 1e-5, "tile {tile}");
            }
        }
    }
}
