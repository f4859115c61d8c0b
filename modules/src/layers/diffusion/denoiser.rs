//! A network with its chain: what the loss trains and the decoder samples with.

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

use super::network::{AdaLnMlp, Extents};
use super::process::{Process, Sampler, Terms, Variance};
use super::schedule::Schedule;
use crate::init::Init;

/// Networks of published models, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// InternVideo-Next: 6 blocks of width 1536.
    InternvideoNext,
    /// MAR's default: 3 blocks of width 1024.
    Mar,
    /// MAR-B: 6 blocks of width 1024.
    MarB,
    /// MAR-L: 8 blocks of width 1280.
    MarL,
    /// MAR-H: 12 blocks of width 1536.
    MarH,
    /// 3 blocks of width 128.
    #[default]
    Tiny,
}

impl Preset {
    /// Width and number of blocks.
    pub const fn size(self) -> (usize, usize) {
        match self {
            Self::InternvideoNext => (1536, 6),
            Self::Mar => (1024, 3),
            Self::MarB => (1024, 6),
            Self::MarL => (1280, 8),
            Self::MarH => (1536, 12),
            Self::Tiny => (128, 3),
        }
    }
}

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SizeOptions {
    /// Channels inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Residual blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
}

/// What a loss and a decoder that shares its weights have in common.
#[derive(Debug, Clone, Copy)]
pub struct DenoiserConfig {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace the preset's.
    pub size: SizeOptions,
    /// Noise of the chain.
    pub schedule: Schedule,
    /// Its length.
    pub steps: usize,
    /// Variance of a step back.
    pub variance: Variance,
}

impl DenoiserConfig {
    /// Extents of the network for vectors of `channels` and conditions of `condition` channels.
    pub fn extents(&self, channels: usize, condition: usize) -> Extents {
        let (width, depth) = self.preset.size();
        let outputs = if self.variance == Variance::Learned { 2 * channels } else { channels };
        let (width, depth) = (self.size.width.unwrap_or(width), self.size.depth.unwrap_or(depth));
        Extents { channels, condition, outputs, width, depth }
    }

    /// The whole chain.
    pub fn process(&self) -> Process {
        Process::new(self.schedule, self.steps, self.variance)
    }

    /// Problems that the options show.
    pub fn check(&self) -> Vec<OptionProblem> {
        let extents = self.extents(1, 1);
        let mut problems = Vec::new();
        let sides =
            [("size.width", extents.width, 1 << 16), ("size.depth", extents.depth, 1 << 10)];
        for (name, value, most) in sides.into_iter().chain([("steps", self.steps, 100_000)]) {
            if !(1..=most).contains(&value) {
                let message = format!("`{name}` is {value}, but must be from 1 to {most}");
                let preset =
                    if name == "steps" { "1000 is usual" } else { "leave it to the preset" };
                problems.push(OptionProblem::new(name, message, preset));
            }
        }
        if self.schedule == Schedule::Linear && (1..=20).contains(&self.steps) {
            let message = format!("a linear schedule of {} steps leaves no signal", self.steps);
            let hint = "give it more than 20, or take `schedule: cosine`";
            problems.push(OptionProblem::new("steps", message, hint));
        }
        problems
    }
}

/// A network and the chain that it walks. Only the network has parameters.
#[derive(Module, Debug)]
pub struct Denoiser {
    /// The network.
    pub net: AdaLnMlp,
    /// The chain.
    #[module(skip)]
    pub process: Process,
}

impl Denoiser {
    /// Draws the parameters.
    pub fn new(extents: Extents, process: Process, init: &Init) -> Self {
        Self { net: AdaLnMlp::new(extents, init), process }
    }

    /// Losses of rows `target` (`[N, C]`) given `condition` (`[N, Z]`), at steps `t` and with this
    /// noise.
    pub fn terms(
        &self,
        target: Tensor<2>,
        condition: Tensor<2>,
        t: &[usize],
        noise: Tensor<2>,
    ) -> Terms {
        let x = self.process.q_sample(target.clone(), t, noise.clone());
        let output = self.net.forward(x.clone(), &self.process.timesteps(t), condition);
        self.process.terms(output, (target, x), t, noise)
    }

    /// Walks from noise `start` (`[N, C]`) to samples given `condition` (`[N, Z]`); gives x after
    /// every step. With `guidance` the second half of the rows is without condition, and the first
    /// half is guided away from it.
    pub fn sample<'a>(
        &'a self,
        how: (Sampler, bool),
        (start, condition): (Tensor<2>, Tensor<2>),
        guidance: Option<f64>,
        noise: impl FnMut(usize) -> Tensor<2> + 'a,
    ) -> impl Iterator<Item = Tensor<2>> + 'a {
        self.sample_from(self.process.steps() - 1, how, (start, condition), guidance, noise)
    }

    /// As [`Denoiser::sample`], from step `first` of the chain.
    pub fn sample_from<'a>(
        &'a self,
        first: usize,
        how: (Sampler, bool),
        (start, condition): (Tensor<2>, Tensor<2>),
        guidance: Option<f64>,
        noise: impl FnMut(usize) -> Tensor<2> + 'a,
    ) -> impl Iterator<Item = Tensor<2>> + 'a {
        let network = move |x: Tensor<2>, told: &[usize]| match guidance {
            Some(scale) => self.net.guided(x, told, condition.clone(), scale),
            None => self.net.forward(x, told, condition.clone()),
        };
        self.process.reverse(how, (start, first), network, noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_chain_needs_more_steps_than_it_has_noise() {
        let config = |schedule, steps| DenoiserConfig {
            preset: Preset::Tiny,
            size: SizeOptions::default(),
            schedule,
            steps,
            variance: Variance::Learned,
        };
        assert_eq!(config(Schedule::Linear, 20).check().len(), 1);
        assert!(config(Schedule::Linear, 21).check().is_empty());
        assert!(config(Schedule::Cosine, 1).check().is_empty());
        assert_eq!(config(Schedule::Cosine, 0).check().len(), 1);
    }
}
