//! The AdaLN MLP: removes noise from single vectors, told the step and a condition.
//!
//! Step and condition are embedded and added; the sum sets shift, scale and gate of every residual
//! block (Peebles and Xie 2023, "DiT", arXiv 2212.09748). Modulations and the last layer start at
//! 0, so the network starts by predicting 0.
//! Source: Li et al. 2024, "MAR" (arXiv 2406.11838), section 3.2; recipes §5.4.

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::init::Init;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::layers::norm_ops;
use crate::layout::Layout;

/// Sines and cosines that a step is written in.
pub const FREQUENCIES: usize = 256;

/// Extents of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Channels of the vectors, C.
    pub channels: usize,
    /// Channels of the condition, Z.
    pub condition: usize,
    /// Outputs: C, or 2 C with a learned variance.
    pub outputs: usize,
    /// Channels inside, W.
    pub width: usize,
    /// Residual blocks.
    pub depth: usize,
}

impl Extents {
    /// Floating point operations for one vector.
    pub fn flops(&self) -> u64 {
        let Self { channels, condition, outputs, width, depth } = *self;
        let ends = channels + condition + FREQUENCIES + outputs + 3 * width;
        2 * (width * (ends + 5 * depth * width)) as u64
    }
}

/// A step as cosines, then sines, `[N, 256]` row-major: frequencies fall from 1 to nearly 1/10000.
pub fn timestep_embedding(timesteps: &[usize]) -> Vec<f32> {
    const HALF: usize = FREQUENCIES / 2;
    // Angles are rounded to f32 as in the published code: at t = 999 one ulp is 6e-5.
    let slope = -(10_000f64.ln() as f32);
    let frequency = |k: usize| f64::from(slope * k as f32 / HALF as f32).exp() as f32;
    let frequencies: Vec<f32> = (0..HALF).map(frequency).collect();
    let mut all = vec![0.0; timesteps.len() * FREQUENCIES];
    all.par_chunks_mut(FREQUENCIES).zip(timesteps).for_each(|(row, &timestep)| {
        let (cosines, sines) = row.split_at_mut(HALF);
        for (k, frequency) in frequencies.iter().enumerate() {
            let (sine, cosine) = f64::from(timestep as f32 * frequency).sin_cos();
            (cosines[k], sines[k]) = (cosine as f32, sine as f32);
        }
    });
    all
}

/// Xavier-uniform matrix, bias 0.
fn xavier(inputs: usize, outputs: usize, init: &Init) -> Linear {
    let bound = (6.0 / (inputs + outputs) as f64).sqrt();
    let weight = init.uniform([inputs, outputs], bound);
    init.linear_of(weight, Some(init.constant([outputs], 0.0)))
}

/// Matrix and bias 0.
fn zero(inputs: usize, outputs: usize, init: &Init) -> Linear {
    let (weight, bias) = (init.constant([inputs, outputs], 0.0), init.constant([outputs], 0.0));
    init.linear_of(weight, Some(bias))
}

/// `x (1 + scale) + shift`.
fn modulate(x: Tensor<2>, shift: Tensor<2>, scale: Tensor<2>) -> Tensor<2> {
    x * scale.add_scalar(1.0) + shift
}

/// Two linear layers with a SiLU between them.
#[derive(Module, Debug)]
pub struct SiluMlp {
    /// `[inputs, W]`.
    pub fc1: Linear,
    /// `[W, W]`.
    pub fc2: Linear,
}

impl SiluMlp {
    /// `[N, inputs]`; returns `[N, W]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.fc2.forward(silu(self.fc1.forward(x)))
    }
}

/// A residual block.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// LayerNorm, ε 1e-6.
    pub in_ln: Norm,
    /// The branch.
    pub mlp: SiluMlp,
    /// To shift, scale and gate, `[W, 3 W]`.
    pub modulation: Linear,
}

impl ResidualBlock {
    fn new(width: usize, init: &Init) -> Self {
        Self {
            in_ln: Norm::layer(width, 1e-6, init),
            mlp: SiluMlp { fc1: xavier(width, width, init), fc2: xavier(width, width, init) },
            modulation: zero(width, 3 * width, init),
        }
    }

    /// `x` and `y` (after its SiLU): `[N, W]`.
    fn forward(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let [shift, scale, gate] = parts(self.modulation.forward(y));
        let branch = self.mlp.forward(modulate(self.in_ln.forward(x.clone()), shift, scale));
        x + gate * branch
    }
}

/// The last layer, after a norm without parameters.
#[derive(Module, Debug)]
pub struct FinalLayer {
    /// `[W, outputs]`.
    pub linear: Linear,
    /// To shift and scale, `[W, 2 W]`.
    pub modulation: Linear,
}

impl FinalLayer {
    fn forward(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let [shift, scale] = parts(self.modulation.forward(y));
        let (dtype, width) = (x.dtype(), x.dims()[1]);
        let ones = Tensor::<1>::ones([width], &x.device().inner()).cast(FloatDType::F32);
        let zeros = ones.zeros_like();
        let x = norm_ops::norm(x.cast(FloatDType::F32), ones, Some(zeros), 1e-6).cast(dtype);
        self.linear.forward(modulate(x, shift, scale))
    }
}

/// Equal parts along the channels.
fn parts<const K: usize>(x: Tensor<2>) -> [Tensor<2>; K] {
    let width = x.dims()[1] / K;
    std::array::from_fn(|k| x.clone().slice_dim(1, k * width..(k + 1) * width))
}

/// The network. Field names are those of the published checkpoints, see [`key`].
#[derive(Module, Debug)]
pub struct AdaLnMlp {
    /// Of the step's sines and cosines.
    pub time_embed: SiluMlp,
    /// `[Z, W]`.
    pub cond_embed: Linear,
    /// `[C, W]`.
    pub input_proj: Linear,
    /// The blocks.
    pub res_blocks: Vec<ResidualBlock>,
    /// The end.
    pub final_layer: FinalLayer,
}

impl AdaLnMlp {
    /// Draws the parameters.
    pub fn new(extents: Extents, init: &Init) -> Self {
        let Extents { channels, condition, outputs, width, depth } = extents;
        let time_embed = SiluMlp {
            fc1: init.linear(FREQUENCIES, width, true, 1.0),
            fc2: init.linear(width, width, true, 1.0),
        };
        let (linear, modulation) = (zero(width, outputs, init), zero(width, 2 * width, init));
        Self {
            time_embed,
            cond_embed: xavier(condition, width, init),
            input_proj: xavier(channels, width, init),
            res_blocks: (0..depth).map(|_| ResidualBlock::new(width, init)).collect(),
            final_layer: FinalLayer { linear, modulation },
        }
    }

    /// Embedded steps, `[N, W]`; `[1, W]` when all rows are at one.
    pub fn embed(&self, timesteps: &[usize]) -> Tensor<2> {
        let same = timesteps.windows(2).all(|pair| pair[0] == pair[1]);
        let told = if same { &timesteps[..timesteps.len().min(1)] } else { timesteps };
        let data = TensorData::new(timestep_embedding(told), [told.len(), FREQUENCIES]);
        let like = self.time_embed.fc1.weight.val();
        let written = Tensor::<2>::from_data(data, &like.device().inner());
        self.time_embed.forward(written.cast(like.dtype()))
    }

    /// `x`: `[N, C]`, `condition`: `[N, Z]`, one timestep for each row; returns `[N, outputs]` in
    /// f32: predicted noise, then with a learned variance its place in the range.
    pub fn forward(&self, x: Tensor<2>, timesteps: &[usize], condition: Tensor<2>) -> Tensor<2> {
        let dtype = self.input_proj.weight.val().dtype();
        let condition = self.cond_embed.forward(condition.cast(dtype));
        let y = silu(condition + self.embed(timesteps));
        let mut x = self.input_proj.forward(x.cast(dtype));
        for block in &self.res_blocks {
            x = block.forward(x, y.clone());
        }
        self.final_layer.forward(x, y).cast(FloatDType::F32)
    }

    /// Guided: the first half of the rows of `condition` is conditional, the second is not. Both
    /// are asked about the first half of `x`, and both give the noise
    /// `without + scale (with - without)` (Ho and Salimans 2022, arXiv 2207.12598).
    pub fn guided(
        &self,
        x: Tensor<2>,
        timesteps: &[usize],
        condition: Tensor<2>,
        scale: f64,
    ) -> Tensor<2> {
        let [number, channels] = x.dims();
        let half = x.slice_dim(0, 0..number / 2);
        let output = self.forward(Tensor::cat(vec![half.clone(), half], 0), timesteps, condition);
        let outputs = output.dims()[1];
        let noise = output.clone().slice_dim(1, 0..channels);
        let with = noise.clone().slice_dim(0, 0..number / 2);
        let without = noise.slice_dim(0, number / 2..number);
        let noise = without.clone() + (with - without).mul_scalar(scale);
        let noise = Tensor::cat(vec![noise.clone(), noise], 0);
        if outputs == channels {
            return noise;
        }
        Tensor::cat(vec![noise, output.slice_dim(1, channels..outputs)], 1)
    }
}

/// How the published checkpoints name the parameters.
pub fn layout() -> Layout {
    Layout::new("official").rules(&[
        ("time_embed.fc", "time_embed.mlp.fc"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
        ("modulation", "adaLN_modulation.1"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::parameters;
    use crate::rng::Key;

    fn network(outputs: usize) -> AdaLnMlp {
        let extents = Extents { channels: 3, condition: 4, outputs, width: 8, depth: 2 };
        let network = AdaLnMlp::new(extents, &Init::new(1, "network", &Device::flex()));
        // Nothing stays at 0, so that every path matters.
        parameters::map(network, &mut |parameter, value| {
            let mut draws = vec![0.0; parameter.shape.iter().product()];
            Key::new(2, &parameter.path).rng().normals(&mut draws);
            let data = TensorData::new(draws, parameter.shape.clone());
            value
                .times(0.5)
                .plus(crate::tensors::AnyTensor::from_data(data, &Device::flex()).unwrap())
        })
    }

    fn rows(name: &str, shape: [usize; 2]) -> Tensor<2> {
        let mut draws = vec![0.0; shape[0] * shape[1]];
        Key::new(5, name).rng().normals(&mut draws);
        Tensor::from_data(TensorData::new(draws, shape), &Device::flex())
    }

    fn off(found: Tensor<2>, expected: Tensor<2>) -> f32 {
        (found - expected).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn a_new_network_predicts_no_noise() {
        let extents = Extents { channels: 3, condition: 4, outputs: 6, width: 8, depth: 2 };
        let network = AdaLnMlp::new(extents, &Init::new(1, "network", &Device::flex()));
        let output = network.forward(rows("x", [5, 3]), &[1, 2, 3, 4, 5], rows("z", [5, 4]));
        assert_eq!(output.abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn guidance_of_scale_1_is_no_guidance() {
        for outputs in [3, 6] {
            let network = network(outputs);
            let (x, z, other) = (rows("x", [2, 3]), rows("z", [2, 4]), rows("other", [2, 4]));
            let plain = network.forward(x.clone(), &[7; 2], z.clone());
            let both = |scale| {
                let (x, z) = (vec![x.clone(), x.clone()], vec![z.clone(), other.clone()]);
                let (x, z) = (Tensor::cat(x, 0), Tensor::cat(z, 0));
                network.guided(x, &[7; 4], z, scale).slice_dim(0, 0..2)
            };
            assert!(off(both(1.0), plain.clone()) < 1e-5);
            assert!(off(both(3.0), plain) > 1e-2);
        }
    }

    #[test]
    fn rows_at_one_step_are_embedded_once_and_alike() {
        let network = network(3);
        assert_eq!(network.embed(&[9; 4]).dims(), [1, 8]);
        let (x, z) = (rows("x", [3, 3]), rows("z", [3, 4]));
        let all = network.forward(x.clone(), &[9, 9, 8], z.clone()).slice_dim(0, 0..2);
        let two = network.forward(x.slice_dim(0, 0..2), &[9; 2], z.slice_dim(0, 0..2));
        let (size, off) = (two.clone().abs().max().into_scalar::<f32>(), off(all, two));
        assert!(off < 1e-5 * size, "{off} of {size}");
    }

    #[test]
    fn keys_are_those_of_the_published_checkpoints() {
        let key = |path: &str| layout().slot(path).key;
        assert_eq!(key("net.time_embed.fc1.weight"), "net.time_embed.mlp.0.weight");
        assert_eq!(key("net.res_blocks.1.mlp.fc2.bias"), "net.res_blocks.1.mlp.2.bias");
        let found = key("net.final_layer.modulation.weight");
        assert_eq!(found, "net.final_layer.adaLN_modulation.1.weight");
        assert_eq!(key("net.cond_embed.bias"), "net.cond_embed.bias");
    }
}
