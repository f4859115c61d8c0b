//! InfoNCE: each vector must find its partner among all of the batch, in both directions.
//!
//! | port     | dims  | what                                                                |
//! |----------|-------|---------------------------------------------------------------------|
//! | `left`   | `B D` | one side, for example pictures                                      |
//! | `right`  | `B D` | the other side, for example texts; row i belongs to row i           |
//! | `ids`    | `B`   | optional: rows of equal numbers belong together as well             |
//! | `scores` | `B B` | similarities divided by the temperature, `left` by `right`          |
//! | `loss`   | `1`   | mean of both directions, in nats                                    |
//!
//! `S = l r^T / τ` with unit vectors; the loss is half of `-Σ P log softmax(S)`, mean over rows, plus the
//! same of S transposed. P is the unit matrix, or 1 where ids are equal with rows divided by their sum.
//! The temperature τ is learned in one of two forms. Where the value is outside its bounds, the bound
//! is used and the gradient still moves the value. Measures `accuracy`, the share of `left` whose best
//! partner is right, and `temperature`.
//! Source: van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021, "CLIP" (arXiv 2103.00020);
//! InternVideo2 (arXiv 2403.15377), recipes §2.6.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Int, Tensor, activation};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::norm::unit;
use crate::layers::size::side;
use crate::layout::Layout;
use crate::published;
use crate::tensors::Tensors;

/// The number that is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parametrisation {
    /// `ln(1 / τ)`, in files `logit_scale` (CLIP).
    #[default]
    LogitScale,
    /// τ, in files `temp` (InternVideo2).
    Temp,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The number that is learned.
    pub temperature: Parametrisation,
    /// τ at the start.
    pub start: f64,
    /// Smallest τ; 0.01 with `logit_scale` and 0.001 with `temp` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest τ; none with `logit_scale` and 0.5 with `temp` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        let temperature = Parametrisation::default();
        Self { temperature, start: 0.07, min: None, max: None }
    }
}

impl Config {
    /// Smallest and largest τ.
    fn bounds(&self) -> [f64; 2] {
        let [min, max] = match self.temperature {
            Parametrisation::LogitScale => [0.01, 1e6],
            Parametrisation::Temp => [0.001, 0.5],
        };
        [self.min.unwrap_or(min), self.max.unwrap_or(max)]
    }
}

/// The learned temperature, in one of its forms.
#[derive(Module, Debug)]
pub struct InfoNce {
    /// `ln(1 / τ)`, `[1]`.
    pub logit_scale: Option<Param<Tensor<1>>>,
    /// τ, `[1]`.
    pub temp: Option<Param<Tensor<1>>>,
    min: f64,
    max: f64,
}

/// What the forward pass gives is bounded, what the backward pass gives is not.
fn bounded(x: Tensor<1>, [min, max]: [f64; 2]) -> Tensor<1> {
    let within = x.clone().detach().clamp(min, max);
    x.clone() + (within - x.detach())
}

impl InfoNce {
    /// `1 / τ`, `[1]`.
    pub fn factor(&self) -> Tensor<1> {
        match (&self.logit_scale, &self.temp) {
            (Some(scale), _) => {
                let bounds = [-self.max.ln(), -self.min.ln()];
                bounded(scale.val().cast(FloatDType::F32), bounds).exp()
            }
            (None, Some(temp)) => {
                bounded(temp.val().cast(FloatDType::F32), [self.min, self.max]).recip()
            }
            (None, None) => unreachable!("one form of the temperature is there"),
        }
    }

    /// Similarities of `[B, D]` and `[C, D]` divided by the temperature, `[B, C]`.
    pub fn scores(&self, left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
        let [left, right] = [left, right].map(|x| unit(x.cast(FloatDType::F32)));
        left.matmul(right.transpose()) * self.factor().unsqueeze::<2>()
    }
}

/// The loss `[1]` of scores `[B, B]` and positives, `[B, B]`, whose rows and columns sum to 1.
pub fn symmetric(scores: Tensor<2>, positives: Tensor<2>) -> Tensor<1> {
    let rows = scores.dims()[0] as f64;
    let one = |scores, positives: Tensor<2>| {
        let log_p = activation::log_softmax(scores, 1);
        (log_p * positives).sum_dim(1).sum().div_scalar(-rows)
    };
    let forth = one(scores.clone(), positives.clone());
    (forth + one(scores.transpose(), positives)).mul_scalar(0.5)
}

/// Which rows belong together, `[B, B]`, rows divided by their sum. Without ids each row belongs to
/// itself.
pub fn positives(ids: Option<Tensor<1, Int>>, scores: &Tensor<2>) -> Tensor<2> {
    let rows = scores.dims()[0];
    let device = scores.device().inner();
    let ids = match ids {
        Some(ids) => ids.inner(),
        None => Tensor::arange(0..rows as i64, &device),
    };
    let across = ids.clone().reshape([1, rows]).expand([rows, rows]);
    let same = ids.reshape([rows, 1]).expand([rows, rows]).equal(across);
    let same = same.float().cast(FloatDType::F32);
    same.clone() / same.sum_dim(1)
}

impl Kind for Config {
    type Module = InfoNce;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("left", "B D")
            .about("one side")
            .input("right", "B D")
            .about("the other side, in the same order")
            .stopped("ids", "B")
            .int()
            .optional()
            .about("rows of equal numbers belong together")
            .plain("scores", "B B")
            .about("similarities divided by the temperature")
            .loss("loss")
            .about("mean of both directions, in nats")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let [min, max] = self.bounds();
        // Beyond these bounds scores leave f32.
        if !(min >= 1e-6 && min <= max && max <= 1e6) {
            let message = format!("temperatures from {min} to {max}");
            let hint = "write 1e-6 <= `min` <= `max` <= 1e6, for example 0.01 and 0.5";
            problems.push(OptionProblem::new("min", message, hint));
        } else if !(min..=max).contains(&self.start) {
            let message = format!("`start` is {}, not from {min} to {max}", self.start);
            problems.push(OptionProblem::new("start", message, "0.07 is usual"));
        }
        if side(dims, "B") == 1 {
            let message = "one pair has nothing to be told apart from";
            problems.push(OptionProblem::new("", message, "use batches of 2 or more"));
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> InfoNce {
        let [min, max] = self.bounds();
        let value = |value: f64| Some(init.constant([1], value as f32));
        let (logit_scale, temp) = match self.temperature {
            Parametrisation::LogitScale => (value(-self.start.ln()), None),
            Parametrisation::Temp => (None, value(self.start)),
        };
        InfoNce { logit_scale, temp, min, max }
    }

    fn forward(
        &self,
        module: &InfoNce,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let scores = module.scores(inputs.take("left")?, inputs.take("right")?);
        let positives = positives(inputs.take_if("ids")?, &scores);
        let seen = scores.clone().inner();
        let best = seen.clone().argmax(1);
        let right = positives.clone().gather(1, best).greater_elem(0.0).float();
        let loss = symmetric(scores, positives);
        let temperature = module.factor().inner().recip();
        let outputs = Tensors::of("loss", loss).with("scores", seen);
        Ok(outputs.measure("accuracy", right.mean()).measure("temperature", temperature))
    }

    fn published(config: &Value) -> Option<Published> {
        let form = if published::is_whole(config, "clip", "CLIPModel") {
            Parametrisation::LogitScale
        } else {
            published::stage2_widths(config)?;
            Parametrisation::Temp
        };
        Some(Published { options: json!({ "temperature": form }), dims: Dims::new() })
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![Layout::new("official")]
    }
}

/// Kind `losses/info_nce`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("info_nce.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn made(config: &Config) -> InfoNce {
        config.init(&Dims::new(), &Init::new(1, "loss", &Device::flex().autodiff()))
    }

    #[test]
    fn both_forms_start_at_the_same_temperature() {
        let temp = Config { temperature: Parametrisation::Temp, ..Config::default() };
        for config in [Config::default(), temp] {
            let factor = made(&config).factor().into_scalar::<f32>();
            assert!((factor - 1.0 / 0.07).abs() < 1e-4, "{factor}");
        }
    }

    #[test]
    fn a_temperature_out_of_bounds_counts_as_the_bound_and_can_come_back() {
        let device = Device::flex().autodiff();
        let scale = Tensor::<1>::from_data([5.6], &device).require_grad();
        let loss = made(&Config::default());
        let factor = bounded(scale.clone(), [-loss.max.ln(), -loss.min.ln()]).exp();
        assert!((factor.clone().into_scalar::<f32>() - 100.0).abs() < 1e-2);
        let all = factor.sum().backward();
        let gradient = scale.grad(&all).expect("a gradient").into_scalar::<f32>();
        assert!((gradient - 100.0).abs() < 1e-2, "{gradient}");
    }

    #[test]
    fn equal_ids_share_the_target() {
        let device = Device::flex();
        let scores = Tensor::<2>::from_data([[2.0, 1.0, 0.0]; 3], &device);
        let ids = Tensor::<1, Int>::from_data([5, 5, 9], &device);
        let target = positives(Some(ids), &scores);
        let values: Vec<f32> = target.to_data().iter::<f32>().collect();
        assert_eq!(values, [0.5, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 1.0]);
        let z = (2f64.exp() + 1f64.exp() + 1.0).ln();
        let forth = (2.0 * (z - 1.5) + z) / 3.0;
        let back = 3f64.ln(); // columns are constant
        let loss = f64::from(symmetric(scores.clone(), target).into_scalar::<f32>());
        assert!((loss - 0.5 * (forth + back)).abs() < 1e-5, "{loss}");
        let alone = positives(None, &scores);
        assert_eq!(alone.sum().into_scalar::<f32>(), 3.0);
    }
}
