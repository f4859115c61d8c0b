//! Diffusion loss: a small network must remove noise from each vector, given its condition.
//!
//! | port        | dims    | what                                                          |
//! |-------------|---------|---------------------------------------------------------------|
//! | `condition` | `B M Z` | what is known of each vector, for example a predictor's tokens |
//! | `target`    | `B M C` | the vectors, of about unit variance or in -1..1               |
//! | `weight`    | `B M`   | optional: how much each vector counts, not negative           |
//! | `loss`      | `1`     | weighted mean over vectors of `mse + vb_weight vb`            |
//!
//! Each vector gets a random step and noise, `repeats` times. `mse` is the error of the predicted
//! noise; `vb`, with `variance: learned`, trains the variance alone: bits per channel of the
//! variational bound. Measures `mse` and `vb`. `models/diffusion_decoder` samples with the weights.
//! Source: Li et al. 2024, "MAR" (arXiv 2406.11838), section 3.2; InternVideo-Next, recipes §5.4;
//! Nichol and Dhariwal 2021, "Improved DDPM" (arXiv 2102.09672), section 3.1.

use burn::tensor::{FloatDType, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::diffusion::denoiser::{Denoiser, DenoiserConfig, Preset, SizeOptions};
use crate::layers::diffusion::draws;
use crate::layers::diffusion::network::layout;
use crate::layers::diffusion::process::{Terms, Variance};
use crate::layers::diffusion::schedule::Schedule;
use crate::layers::norm::standard_along;
use crate::layers::size::side;
use crate::layout::Layout;
use crate::published::{count, dims, says};
use crate::rng::Key;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Network to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    pub size: SizeOptions,
    /// Noise of the chain.
    pub schedule: Schedule,
    /// Length of the chain.
    pub steps: usize,
    /// Variance of a step back; `learned` has a loss of its own.
    pub variance: Variance,
    /// Weight of `vb`.
    pub vb_weight: f64,
    /// Steps and noises drawn for each vector.
    pub repeats: usize,
    /// Whether each target is given mean 0 and deviation 1 over its channels.
    pub normalise: bool,
    /// Factor on targets, after that; the decoder divides by it.
    pub scale: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            schedule: Schedule::default(),
            steps: 1000,
            variance: Variance::default(),
            vb_weight: 1.0,
            repeats: 1,
            normalise: false,
            scale: 1.0,
        }
    }
}

impl Config {
    fn denoiser(&self) -> DenoiserConfig {
        let Self { preset, size, schedule, steps, variance, .. } = self.clone();
        DenoiserConfig { preset, size, schedule, steps, variance }
    }

    /// Targets `[N, C]` as the chain sees them.
    pub fn targets(&self, target: Tensor<2>) -> Tensor<2> {
        let x = target.cast(FloatDType::F32);
        let x = if self.normalise { standard_along(x, 1) } else { x };
        x.mul_scalar(self.scale)
    }

    /// Loss of each vector.
    pub fn each(&self, terms: &Terms) -> Tensor<1> {
        match &terms.vb {
            Some(vb) => terms.mse.clone() + vb.clone().mul_scalar(self.vb_weight),
            None => terms.mse.clone(),
        }
    }
}

/// Mean over vectors, `[N]` each; 0 when none counts.
pub fn mean(values: Tensor<1>, weight: Option<Tensor<1>>) -> Tensor<1> {
    // As one row: a sum over a whole tensor adds its pieces in no fixed order.
    let row = |x: Tensor<1>| x.unsqueeze::<2>();
    let mean = match weight {
        Some(weight) => {
            let all = row(weight.clone()).sum_dim(1).clamp_min(1e-12);
            row(values * weight).sum_dim(1) / all
        }
        None => row(values).mean_dim(1),
    };
    mean.squeeze_dim(1)
}

impl Kind for Config {
    type Module = Denoiser;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("condition", "B M Z")
            .about("what is known of each vector")
            .stopped("target", "B M C")
            .about("vectors, of about unit variance or in -1..1")
            .stopped("weight", "B M")
            .optional()
            .about("how much each vector counts")
            .loss("loss")
            .about("weighted mean of the losses of the vectors")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.denoiser().check();
        if !(1..=1024).contains(&self.repeats) {
            let message = format!("`repeats` is {}, but must be from 1 to 1024", self.repeats);
            problems.push(OptionProblem::new("repeats", message, "1 and 4 are published"));
        }
        if !(self.vb_weight >= 0.0 && self.vb_weight.is_finite()) {
            let message = format!("`vb_weight` is {}, not a number from 0", self.vb_weight);
            problems.push(OptionProblem::new("vb_weight", message, "1 is published"));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            let message = format!("`scale` is {}, not a number above 0", self.scale);
            problems.push(OptionProblem::new("scale", message, "leave it out for 1"));
        }
        if self.normalise && side(dims, "C") == 1 {
            let message = "a vector of one channel has no deviation";
            problems.push(OptionProblem::new("normalise", message, "set it to false"));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> Denoiser {
        let config = self.denoiser();
        let extents = config.extents(side(dims, "C"), side(dims, "Z"));
        Denoiser::new(extents, config.process(), init)
    }

    fn forward(
        &self,
        module: &Denoiser,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let condition: Tensor<3> = inputs.take("condition")?;
        let target: Tensor<3> = inputs.take("target")?;
        let weight: Option<Tensor<2>> = inputs.take_if("weight")?;
        let [batch, vectors, channels] = target.dims();
        let number = batch * vectors;
        let repeat = |x: Tensor<2>| match self.repeats {
            1 => x,
            times => x.repeat_dim(0, times),
        };
        let target = self.targets(target.reshape([number, channels]));
        let (target, inside) = (repeat(target), condition.dims()[2]);
        let condition = repeat(condition.reshape([number, inside]));
        let weight = weight.map(|weight| {
            let weight = repeat(weight.cast(FloatDType::F32).reshape([number, 1]));
            weight.squeeze_dim::<1>(1)
        });
        // Repeats are outermost, then samples, as the rows are.
        let one = |repeat: u64, sample: u64, of: &str| -> Key {
            call.key.with_number(sample).with_number(repeat).with(of)
        };
        let keys = |of: &str| -> Vec<Key> {
            let repeats = 0..self.repeats as u64;
            let samples = |r| (0..batch as u64).map(move |sample| (r, sample));
            repeats.flat_map(samples).map(|(r, sample)| one(r, sample, of)).collect()
        };
        let t = draws::steps(&keys("step"), vectors, self.steps);
        let noise = draws::noise(&keys("noise"), vectors, channels, &target.device().inner());
        let terms = module.terms(target, condition, &t, noise);
        let outputs = Tensors::of("loss", mean(self.each(&terms), weight.clone()));
        let outputs = outputs.measure("mse", mean(terms.mse.inner(), weight.clone()));
        Ok(match terms.vb {
            Some(vb) => outputs.measure("vb", mean(vb.inner(), weight)),
            None => outputs,
        })
    }

    fn published(config: &Value) -> Option<Published> {
        if says(config, "kind", "internvideo_next_stage1") {
            let of = &config["diffusion"];
            let options = json!({
                "size": { "width": count(of, "width")?, "depth": count(of, "depth")? },
                "schedule": of["schedule"],
                "steps": count(of, "steps")?,
                "variance": if of["learn_sigma"] == true { "learned" } else { "small" },
                "repeats": count(of, "batch_mul")?,
            });
            let inside = count(&config["predictor"], "hidden_size")?;
            let sizes = dims([("Z", inside), ("C", count(of, "target_channels")?)]);
            return Some(Published { options, dims: sizes });
        }
        // The demonstration of a chain keeps the sizes of its network in an entry of its own.
        let net = if config["loop"].is_object() { &config["loop"] } else { config };
        let (width, depth) = (count(net, "width")?, count(net, "depth")?);
        let options = json!({ "size": { "width": width, "depth": depth } });
        let (inside, channels) = (count(net, "z_channels")?, count(net, "target_channels")?);
        Some(Published { options, dims: dims([("Z", inside), ("C", channels)]) })
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![layout()]
    }

    fn layer(&self, _: &str) -> usize {
        self.layers() + 1
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let vectors = self.repeats * side(dims, "B") * side(dims, "M");
        let extents = self.denoiser().extents(side(dims, "C"), side(dims, "Z"));
        vectors as u64 * extents.flops()
    }
}

/// Kind `losses/diffusion`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("diffusion.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use schemas::node::At;

    const SIDES: [(&str, usize); 4] = [("B", 2), ("M", 3), ("Z", 4), ("C", 5)];

    fn dims() -> Dims {
        SIDES.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn draw<const R: usize>(name: &str, shape: [usize; R]) -> Tensor<R> {
        let mut values = vec![0.0; shape.iter().product()];
        Key::new(4, name).rng().normals(&mut values);
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn run(config: &Config, microbatch: u32, weight: Option<[[f32; 3]; 2]>) -> Tensors {
        let device = Device::flex();
        let module = config.init(&dims(), &Init::new(1, "loss", &device));
        let inputs = Tensors::of("condition", draw("condition", [2, 3, 4]));
        let mut inputs = inputs.with("target", draw("target", [2, 3, 5]));
        if let Some(weight) = weight {
            inputs = inputs.with("weight", Tensor::<2>::from_data(weight, &device));
        }
        let at = At { microbatch, ..At::default() };
        let key = Key::new(9, "loss").with_number(u64::from(microbatch));
        config.forward(&module, inputs, &Call::new(key, at)).unwrap()
    }

    fn loss(config: &Config, microbatch: u32, weight: Option<[[f32; 3]; 2]>) -> f32 {
        run(config, microbatch, weight).take::<Tensor<1>>("loss").unwrap().into_scalar()
    }

    #[test]
    fn the_key_alone_decides_the_draws() {
        let config = Config::default();
        let first = loss(&config, 0, None).to_bits();
        assert_eq!(first, loss(&config, 0, None).to_bits());
        assert_ne!(first, loss(&config, 1, None).to_bits());
        let twice = Config { repeats: 2, ..Config::default() };
        assert_ne!(first, loss(&twice, 0, None).to_bits());
    }

    #[test]
    fn a_new_network_leaves_all_the_noise() {
        let config = Config { repeats: 64, ..Config::default() };
        let found = run(&config, 0, None).measures;
        let [(mse, value), (vb, _)] = &found[..] else { panic!("two measures: {found:?}") };
        assert_eq!([mse.as_str(), vb.as_str()], ["mse", "vb"]);
        let value = value.clone().into_scalar::<f32>();
        assert!((value - 1.0).abs() < 0.1, "{value}");
        let fixed = Config { variance: Variance::Small, ..Config::default() };
        assert_eq!(run(&fixed, 0, None).measures.len(), 1);
    }

    #[test]
    fn vectors_of_weight_0_do_not_count() {
        let config = Config::default();
        let equal = loss(&config, 0, Some([[0.5; 3]; 2]));
        assert!((equal - loss(&config, 0, None)).abs() < 1e-5 * equal);
        let [first, second] = [[[1.0; 3], [0.0; 3]], [[0.0; 3], [1.0; 3]]];
        let halves = loss(&config, 0, Some(first)) + loss(&config, 0, Some(second));
        assert!((halves - 2.0 * equal).abs() < 1e-4 * halves.abs());
        assert_eq!(loss(&config, 0, Some([[0.0; 3]; 2])), 0.0);
    }

    #[test]
    fn normalised_targets_have_mean_0_and_the_deviation_of_the_scale() {
        let config = Config { normalise: true, scale: 0.5, ..Config::default() };
        let found = config.targets(draw("target", [3, 50]).mul_scalar(7.0).add_scalar(3.0));
        let mean = found.clone().mean_dim(1).abs().max().into_scalar::<f32>();
        let squares = found.square().mean_dim(1).max().into_scalar::<f32>();
        assert!(mean < 1e-5 && (squares - 0.25).abs() < 0.01, "{mean} {squares}");
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let bad = Config {
            repeats: 0,
            vb_weight: f64::NAN,
            scale: 0.0,
            normalise: true,
            steps: 0,
            ..Config::default()
        };
        let dims = Dims::from([("C".to_owned(), 1)]);
        let options: Vec<_> = bad.check(&dims).into_iter().map(|p| p.option).collect();
        assert_eq!(options, ["steps", "repeats", "vb_weight", "scale", "normalise"]);
        assert_eq!(Config::default().check(&dims), []);
    }
}
