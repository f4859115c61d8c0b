//! Filterbank: logarithmic mel energies of a waveform, as Kaldi computes them.
//!
//! | port       | dims    | what                                                          |
//! |------------|---------|---------------------------------------------------------------|
//! | `waveform` | `B S`   | mono, 16 kHz, -1..1                                           |
//! | `fbank`    | `B F M` | F rows of M filters, less the mean, over twice the deviation  |
//!
//! Frames of 25 ms every 10 ms; removal of the mean, pre-emphasis 0.97, Povey window, power
//! spectrum, triangles from 20 Hz to 8 kHz, natural logarithm. Rows after the end of the sound are 0;
//! what is longer than the rows is cut. Gradients flow to the waveform.
//! Source: Kaldi's `compute-fbank-feats`; Chen et al. 2022, "BEATs" (arXiv 2212.09058); recipes §2.7.

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::mel::{self, FRAME};
use crate::layers::size::side;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Filters; BEATs was trained with 128, InternVideo2 gives it 64.
    pub bins: usize,
    /// Rows; 992 are the patches of ten seconds, 998 all of it.
    pub rows: usize,
    /// Mean of the energies.
    pub mean: f64,
    /// Deviation of the energies.
    pub deviation: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bins: 128, rows: 992, mean: 15.41663, deviation: 6.55582 }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Fbank {
    bins: usize,
    rows: usize,
    mean: f64,
    deviation: f64,
}

impl Fbank {
    /// `[B, S]`; returns `[B, rows, bins]`.
    pub fn forward(&self, waveform: Tensor<2>) -> Tensor<3> {
        let bank = mel::filterbank(waveform, self.bins);
        let bank = bank.sub_scalar(self.mean).div_scalar(2.0 * self.deviation);
        let [batch, rows, bins] = bank.dims();
        if rows >= self.rows {
            return bank.slice_dim(1, 0..self.rows);
        }
        let rest = Tensor::zeros([batch, self.rows - rows, bins], &bank.device().inner());
        Tensor::cat(vec![bank, rest], 1)
    }
}

impl Kind for Config {
    type Module = Fbank;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("waveform", "B S")
            .about("mono, 16 kHz, -1..1")
            .output("fbank", format!("B {} {}", self.rows, self.bins))
            .about("normalised logarithmic mel energies")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        for (name, value, most) in [("bins", self.bins, 256), ("rows", self.rows, 1 << 20)] {
            if !(1..=most).contains(&value) {
                let message = format!("`{name}` is {value}, not from 1 to {most}");
                problems.push(OptionProblem::new(name, message, "leave it out for the usual"));
            }
        }
        if !(self.deviation > 0.0 && self.deviation.is_finite()) {
            let message = format!("`deviation` is {}, not above 0", self.deviation);
            problems.push(OptionProblem::new("deviation", message, "6.55582 is usual"));
        }
        let samples = side(dims, "S");
        if samples > 0 && samples < FRAME {
            let message = format!("{samples} samples are less than a frame of {FRAME}");
            problems.push(OptionProblem::new("", message, "give at least 25 ms of sound"));
        }
        problems
    }

    fn init(&self, _: &Dims, _: &Init) -> Fbank {
        let Self { bins, rows, mean, deviation } = *self;
        Fbank { bins, rows, mean, deviation }
    }

    fn forward(&self, module: &Fbank, mut inputs: Tensors, _: &Call) -> Result<Tensors, NodeError> {
        Ok(Tensors::of("fbank", module.forward(inputs.take("waveform")?)))
    }
}

/// Kind `audio/fbank`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("fbank.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_short_sound_ends_in_zeros_and_a_long_one_is_cut() {
        let make = |rows| {
            let config = Config { bins: 4, rows, ..Config::default() };
            config.init(&Dims::new(), &Init::new(1, "fbank", &Device::flex()))
        };
        let sound = Tensor::<2>::ones([1, 720], &Device::flex());
        let long = make(5).forward(sound.clone());
        assert_eq!(long.dims(), [1, 5, 4]);
        assert_eq!(long.clone().slice_dim(1, 3..5).abs().max().into_scalar::<f32>(), 0.0);
        assert_eq!(make(2).forward(sound).into_data(), long.slice_dim(1, 0..2).into_data());
    }
}
