//! Diffusion decoder: draws vectors given their conditions, with a network trained by the loss.
//!
//! | port            | dims    | what                                                        |
//! |-----------------|---------|-------------------------------------------------------------|
//! | `condition`     | `B M Z` | what is known of each vector                                |
//! | `unconditional` | `B M Z` | with `guidance`: the condition that says nothing            |
//! | `sample`        | `B M C` | one vector for each condition; no gradient                  |
//!
//! Each vector begins as noise and goes back along the chain of `losses/diffusion`, or along some
//! of its steps. Network, chain, scale and keys of weights files are the loss's: what it exported
//! is this node's `weights`. Draws are a function of seed, node, stage, step, microbatch, sample.
//! Source: Li et al. 2024, "MAR" (arXiv 2406.11838), section 3.2 (temperature); Ho and Salimans
//! 2022 (arXiv 2207.12598, guidance); Song et al. 2021, "DDIM" (arXiv 2010.02502); recipes §5.4.

use burn::module::Module;
use burn::tensor::{FloatDType, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::diffusion::denoiser::{Denoiser, DenoiserConfig, Preset, SizeOptions};
use crate::layers::diffusion::draws;
use crate::layers::diffusion::network::layout;
use crate::layers::diffusion::process::{Process, Sampler, Variance};
use crate::layers::diffusion::schedule::{Respacing, Schedule};
use crate::layers::size::side;
use crate::layout::Layout;
use crate::rng::Key;
use crate::tensors::Tensors;

/// How samples are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Steps that are taken: a number, numbers for equal sections of the chain, or `ddim50`.
    pub steps: Respacing,
    /// Factor on the noise of the steps; not with `eta`.
    pub temperature: f64,
    /// Takes DDIM steps, with this share of the posterior's noise: 0 is deterministic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Whether each predicted x_0 is kept in -1..1.
    pub clamp: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        let steps = Respacing::Count(100);
        Self { steps, temperature: 1.0, eta: None, guidance: 1.0, clamp: false }
    }
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of a vector.
    pub channels: usize,
    /// Network to start from.
    #[serde(default)]
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    #[serde(default)]
    pub size: SizeOptions,
    /// Noise of the chain.
    #[serde(default)]
    pub schedule: Schedule,
    /// Length of the whole chain, as in training.
    #[serde(default = "thousand")]
    pub steps: usize,
    /// Variance of a step back.
    #[serde(default)]
    pub variance: Variance,
    /// What samples are divided by: the loss's `scale`.
    #[serde(default = "one")]
    pub scale: f64,
    /// How samples are drawn.
    #[serde(default)]
    pub sampling: Sampling,
}

fn thousand() -> usize {
    1000
}

fn one() -> f64 {
    1.0
}

impl Config {
    fn denoiser(&self) -> DenoiserConfig {
        let Self { preset, size, schedule, steps, variance, .. } = self.clone();
        DenoiserConfig { preset, size, schedule, steps, variance }
    }

    fn guidance(&self) -> Option<f64> {
        (self.sampling.guidance != 1.0).then_some(self.sampling.guidance)
    }

    /// How a step back is taken, and whether x_0 is clamped.
    pub fn how(&self) -> (Sampler, bool) {
        let Sampling { temperature, eta, clamp, .. } = self.sampling;
        (eta.map_or(Sampler::Ancestral { temperature }, |eta| Sampler::Ddim { eta }), clamp)
    }
}

impl Sampling {
    fn check(&self, chain: usize) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(format!("sampling.{option}"), message, hint));
        };
        if let Err(error) = self.steps.kept(chain) {
            refuse("steps", error.to_string(), "");
        }
        for (name, value) in [("temperature", self.temperature), ("guidance", self.guidance)] {
            if !(value >= 0.0 && value.is_finite()) {
                refuse(name, format!("`{name}` is {value}, not a number from 0"), "1 is neutral");
            }
        }
        match self.eta {
            Some(eta) if !(0.0..=1.0).contains(&eta) => {
                refuse("eta", format!("`eta` is {eta}, not from 0 to 1"), "0 adds no noise");
            }
            Some(_) if self.temperature != 1.0 => {
                let message = "DDIM steps have no temperature".to_owned();
                refuse("temperature", message, "leave it out, or leave `eta` out");
            }
            _ => {}
        }
        problems
    }
}

impl Kind for Config {
    type Module = Denoiser;

    fn ports(&self, _: &[String]) -> Ports {
        let ports =
            Ports::default().stopped("condition", "B M Z").about("what is known of each vector");
        let ports = match self.guidance() {
            Some(_) => {
                ports.stopped("unconditional", "B M Z").about("the condition that says nothing")
            }
            None => ports,
        };
        ports
            .plain("sample", format!("B M {}", self.channels))
            .about("one vector for each condition")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.denoiser().check();
        if !(1..=1 << 20).contains(&self.channels) {
            let message = format!("`channels` is {}, not from 1 to 2^20", self.channels);
            problems.push(OptionProblem::new("channels", message, "give the target's of the loss"));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            let message = format!("`scale` is {}, not a number above 0", self.scale);
            problems.push(OptionProblem::new("scale", message, "give the loss's"));
        }
        problems.extend(self.sampling.check(self.steps));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> Denoiser {
        let config = self.denoiser();
        let chain = (self.schedule, self.steps);
        let process = Process::respaced(chain, self.variance, &self.sampling.steps);
        let process = process.expect("the check refuses other respacings");
        Denoiser::new(config.extents(self.channels, side(dims, "Z")), process, init)
    }

    fn forward(
        &self,
        module: &Denoiser,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let condition: Tensor<3> = inputs.take("condition")?;
        let [batch, vectors, inside] = condition.dims();
        let number = batch * vectors;
        let rows = |x: Tensor<3>| x.inner().reshape([number, inside]);
        let device = condition.device().inner();
        let draw = |key: &dyn Fn(Key) -> Key| {
            let keys = (0..batch as u64).map(|sample| key(call.key.with_number(sample)));
            let keys: Vec<Key> = keys.collect();
            draws::noise(&keys, vectors, self.channels, &device)
        };
        let guidance = self.guidance();
        // With guidance both halves begin and go on with the same noise.
        let both = |x: Tensor<2>| match guidance {
            Some(_) => Tensor::cat(vec![x.clone(), x], 0),
            None => x,
        };
        let condition = match guidance {
            Some(_) => {
                let without = inputs.take("unconditional")?;
                Tensor::cat(vec![rows(condition), rows(without)], 0)
            }
            None => rows(condition),
        };
        let start = both(draw(&|key| key.with("start")));
        let noise = |step: usize| both(draw(&|key| key.with("step").with_number(step as u64)));
        let module = module.valid();
        let last = module.sample(self.how(), (start, condition), guidance, noise).last();
        let sample = last.expect("a chain has a step").slice_dim(0, 0..number);
        let sample = sample.cast(FloatDType::F32).div_scalar(self.scale);
        Ok(Tensors::of("sample", sample.reshape([batch, vectors, self.channels])))
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![layout()]
    }

    fn layer(&self, _: &str) -> usize {
        self.layers() + 1
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let steps = self.sampling.steps.kept(self.steps).map_or(0, |kept| kept.len());
        let asked = if self.guidance().is_some() { 2 } else { 1 };
        let vectors = asked * side(dims, "B") * side(dims, "M") * steps;
        vectors as u64 * self.denoiser().extents(self.channels, side(dims, "Z")).flops()
    }
}

/// Kind `models/diffusion_decoder`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("diffusion_decoder.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use schemas::node::At;
    use serde_json::{Value, json};

    use crate::parameters;
    use crate::tensors::AnyTensor;

    fn config(sampling: Value) -> Config {
        let size = json!({ "width": 8, "depth": 1 });
        let options = json!({ "channels": 3, "size": size, "sampling": sampling });
        let config: Config = serde_json::from_value(options).unwrap();
        assert_eq!(config.check(&Dims::default()), []);
        config
    }

    fn draw<const R: usize>(name: &str, shape: [usize; R]) -> Tensor<R> {
        let mut values = vec![0.0; shape.iter().product()];
        Key::new(4, name).rng().normals(&mut values);
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// Samples of a network that is not new, drawn under the key of a step.
    fn sample(config: &Config, samples: usize, step: u64) -> Vec<f32> {
        let dims = Dims::from([("Z".to_owned(), 4)]);
        let module = config.init(&dims, &Init::new(1, "decoder", &Device::flex()));
        let module = parameters::map(module, &mut |parameter, value| {
            let shape: [usize; 2] = [1, parameter.shape.iter().product()];
            let drawn: Tensor<2> = draw(&parameter.path, shape).mul_scalar(0.1);
            let data = TensorData::new(
                drawn.into_data().try_to_vec::<f32>().unwrap(),
                parameter.shape.clone(),
            );
            value.plus(AnyTensor::from_data(data, &Device::flex()).unwrap())
        });
        let condition: Tensor<3> = draw("condition", [2, 5, 4]).slice_dim(0, 0..samples);
        let mut inputs = Tensors::of("condition", condition);
        if config.guidance().is_some() {
            let other: Tensor<3> = draw("other", [2, 5, 4]).slice_dim(0, 0..samples);
            inputs = inputs.with("unconditional", other);
        }
        let call = Call::new(Key::new(7, "decoder").with_number(step), At::default());
        let sample: Tensor<3> =
            config.forward(&module, inputs, &call).unwrap().take("sample").unwrap();
        assert_eq!(sample.dims(), [samples, 5, 3]);
        sample.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn the_key_alone_decides_the_draws_and_samples_do_not_meet() {
        for sampling in [json!({ "steps": 4 }), json!({ "steps": "ddim4", "eta": 0.5 })] {
            let config = config(sampling);
            let first = sample(&config, 2, 0);
            assert_eq!(first, sample(&config, 2, 0));
            assert_ne!(first, sample(&config, 2, 1));
            let alone = sample(&config, 1, 0);
            let off = |(a, b): (&f32, &f32)| (a - b).abs() / a.abs().max(1.0);
            let worst = first.iter().zip(&alone).map(off).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst}");
        }
    }

    #[test]
    fn guidance_changes_samples_and_scale_1_needs_no_port() {
        let plain = config(json!({ "steps": 3 }));
        assert!(plain.ports(&[]).find_input("unconditional").is_none());
        let guided = config(json!({ "steps": 3, "guidance": 2.0 }));
        assert!(guided.ports(&[]).find_input("unconditional").is_some_and(|port| !port.optional));
        assert_ne!(sample(&plain, 2, 0), sample(&guided, 2, 0));
    }

    #[test]
    fn sampling_that_cannot_be_is_refused() {
        let refused = |sampling: Value| {
            let options = json!({ "channels": 3, "sampling": sampling });
            let config: Config = serde_json::from_value(options).unwrap();
            let problems = config.check(&Dims::default());
            problems.into_iter().map(|problem| problem.option).collect::<Vec<_>>()
        };
        assert_eq!(refused(json!({ "steps": 1001 })), ["sampling.steps"]);
        assert_eq!(refused(json!({ "steps": "ddim999" })), ["sampling.steps"]);
        assert_eq!(refused(json!({ "eta": 0.0, "temperature": 0.9 })), ["sampling.temperature"]);
        assert_eq!(refused(json!({ "eta": 2.0 })), ["sampling.eta"]);
        assert!(refused(json!({ "steps": [10, 20], "guidance": 3.0 })).is_empty());
    }
}
