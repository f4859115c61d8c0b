//! Image towers: a transformer that reads each frame of a clip as a picture.
//!
//! CLIP, SigLIP and InternViT differ in a few parts of one network: whether there is a class token, how
//! pixels become tokens, which norms stand before and after the blocks, what is read out at the end.
//! [`TowerConfig`] names the parts.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use serde::{Deserialize, Serialize};

use super::attention::AttentionMask;
use super::block::{self, Block, BlocksConfig, Context};
use super::learned_table::Stretch;
use super::linear::Linear;
use super::norm::{Norm, NormKind, unit};
use super::patch_embed::{PatchEmbed, patches};
use super::pool::ProbePool;
use super::size::Size;
use crate::init::Init;
use crate::kind::Call;
use crate::tensors::Tensors;
use crate::video::transform::Normalisation;

/// How the pixels that arrive are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// With ImageNet's mean and deviation, as the clips of a student; the tower goes over to its own.
    #[default]
    Imagenet,
    /// As the network was trained.
    Own,
}

/// What a tower reads out as the vector of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout {
    /// The class token.
    Class,
    /// Attention pooling with a learned query.
    Probe,
}

/// What the norm after the blocks is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostNorm {
    /// There is none.
    None,
    /// All tokens.
    Tokens,
    /// The vector that is read out.
    Vector,
}

/// What becomes of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patches {
    /// A convolution, with or without a bias.
    Convolution {
        /// Whether it has a bias.
        bias: bool,
    },
    /// A matrix on its numbers, row by row and colours fastest (NaFlex).
    Matrix,
}

/// The parts of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// All numbers.
    pub size: Size,
    /// The stack.
    pub blocks: BlocksConfig,
    /// What becomes of a patch.
    pub patches: Patches,
    /// Whether pixels that fill no patch are dropped; otherwise they are an error.
    pub drops_rest: bool,
    /// Colours that the network was trained with.
    pub colours: Normalisation,
    /// Colours that arrive.
    pub input: Input,
    /// Side of the grid of the position table; that of the video when absent.
    pub table_side: Option<usize>,
    /// How the table is stretched to another grid.
    pub stretch: Stretch,
    /// Whether a norm comes before the blocks.
    pub embed_norm: bool,
    /// The norm after the blocks.
    pub post_norm: PostNorm,
    /// What is read out; there is a class token with [`Readout::Class`].
    pub readout: Readout,
    /// Whether the vector goes through a matrix, to `size.pooled` channels.
    pub projected: bool,
    /// Number of tapped blocks.
    pub taps: usize,
    /// Distance between tapped blocks.
    pub tap_interval: f64,
    /// Whether taps hold what enters a block, instead of what leaves it.
    pub tap_inputs: bool,
    /// Whether frames are averaged as unit vectors, and the mean is left as it is.
    pub mean_of_units: bool,
}

/// The tower.
#[derive(Module, Debug)]
pub struct ImageTower {
    /// Convolution to tokens, one frame deep.
    pub patch_embed: Option<PatchEmbed>,
    /// Matrix to tokens, `[3 p p, D]`.
    pub flat_embed: Option<Linear>,
    /// `[1, 1, D]`.
    pub cls_token: Option<Param<Tensor<3>>>,
    /// `[1, N or 1 + N, D]`, the same for every frame.
    pub pos_embed: Param<Tensor<3>>,
    /// Before the blocks.
    pub embed_norm: Option<Norm>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the blocks.
    pub post_norm: Option<Norm>,
    /// Attention pooling.
    pub pool: Option<ProbePool>,
    /// `[D, P]`.
    pub projection: Option<Linear>,
    /// Grid of the table.
    grid: [usize; 2],
    #[module(skip)]
    config: TowerConfig,
}

/// What a tower finds in pictures.
#[derive(Debug, Clone)]
pub struct Found {
    /// Tapped residual stream, `[B, N, D]` each.
    pub layers: Vec<Tensor<3>>,
    /// Last hidden state, `[B, N, D]`.
    pub tokens: Tensor<3>,
    /// The vector of each picture, `[B, D]`.
    pub features: Tensor<2>,
    /// The same after the projection, `[B, P]`.
    pub projected: Tensor<2>,
    /// Attention of what is read out to each patch, mean over heads, `[B, A]`.
    pub attention: Tensor<2>,
}

impl TowerConfig {
    /// Tokens before the patches.
    pub fn front(&self) -> usize {
        usize::from(self.readout == Readout::Class)
    }

    /// Channels of the vector.
    pub fn pooled(&self) -> usize {
        if self.projected { self.size.pooled } else { self.size.width }
    }

    /// ε of all norms.
    pub fn eps(&self) -> f64 {
        match self.blocks.norm {
            NormKind::Rms(eps) | NormKind::Layer(eps) | NormKind::LayerWithoutBias(eps) => eps,
        }
    }

    /// Makes the tower.
    pub fn init(&self, dims: &Dims, init: &Init) -> ImageTower {
        let size = self.size;
        let init = &init.with_sigma(size.sigma);
        let width = size.width;
        let [_, rows, columns] = size.cut(dims);
        let grid = self.table_side.map_or([rows, columns], |side| [side, side]);
        let make = match self.patches {
            Patches::Convolution { bias: false } => PatchEmbed::without_bias,
            _ => PatchEmbed::new,
        };
        let convolution = self.patches != Patches::Matrix;
        let eps = self.eps();
        let norm = || Norm::layer(width, eps, init);
        let sides = [width, size.heads, size.hidden];
        let pool = || ProbePool::new(sides, self.blocks.activation, eps, init);
        let flat = || init.linear(size.voxels(), width, true, 1.0);
        let class = self.front() == 1;
        ImageTower {
            patch_embed: convolution.then(|| make(width, 1, size.patch, init)),
            flat_embed: (!convolution).then(flat),
            cls_token: class.then(|| init.normal([1, 1, width], 0.02)),
            pos_embed: init.normal([1, self.front() + grid[0] * grid[1], width], 0.02),
            embed_norm: self.embed_norm.then(norm),
            blocks: block::blocks(&self.blocks, init),
            post_norm: (self.post_norm != PostNorm::None).then(norm),
            pool: (self.readout == Readout::Probe).then(pool),
            projection: self.projected.then(|| init.linear(width, size.pooled, false, 1.0)),
            grid,
            config: self.clone(),
        }
    }
}

impl ImageTower {
    /// Pictures of a clip `[B, 3, T, H, W]` in the colours of the network, `[B T, 3, 1, H, W]`, without
    /// what fills no patch.
    pub fn pictures(&self, video: Tensor<5>) -> Tensor<5> {
        let [batch, channels, frames, height, width] = video.dims();
        let p = self.config.size.patch;
        let [height, width] = [height / p * p, width / p * p];
        let video = video.slice_dim(3, 0..height).slice_dim(4, 0..width).swap_dims(1, 2);
        let pictures = video.reshape([batch * frames, channels, 1, height, width]);
        let (from, to) = (Normalisation::IMAGENET, self.config.colours);
        if self.config.input == Input::Own || from == to {
            return pictures;
        }
        let device = pictures.device().inner();
        let along = |of: &dyn Fn(usize) -> f32| {
            let data = TensorData::new([0, 1, 2].map(of).to_vec(), [1, 3, 1, 1, 1]);
            Tensor::<5>::from_data(data, &device).cast(pictures.dtype())
        };
        let factor = along(&|c| from.std[c] / to.std[c]);
        let offset = along(&|c| (from.mean[c] - to.mean[c]) / to.std[c]);
        pictures * factor + offset
    }

    /// Tokens of pictures `[B, 3, 1, H, W]` with positions, before the first norm: `[B, N, D]`.
    pub fn embed(&self, pictures: Tensor<5>) -> Tensor<3> {
        let p = self.config.size.patch;
        let [_, _, _, height, width] = pictures.dims();
        let x = match (&self.patch_embed, &self.flat_embed) {
            (Some(convolution), _) => convolution.forward(pictures),
            (None, flat) => {
                let cut = patches(pictures, [1, p, p]).swap_dims(2, 3);
                let [batch, tokens, pixels, channels] = cut.dims();
                let cut = cut.reshape([batch, tokens, pixels * channels]);
                flat.as_ref().map_or_else(|| cut.clone(), |flat| flat.forward(cut.clone()))
            }
        };
        let front = self.config.front();
        let rows = self.pos_embed.dims()[1];
        let table = self.pos_embed.val();
        let places = table.clone().slice_dim(1, front..rows);
        let places = self.config.stretch.grid(places, self.grid, [height / p, width / p]);
        let x = x + places;
        let Some(class) = &self.cls_token else { return x };
        let [batch, _, width] = x.dims();
        let class = class.val() + table.slice_dim(1, 0..1);
        Tensor::cat(vec![class.expand([batch, 1, width]), x], 1)
    }

    /// Tokens of cut patches `[B, M, 3 p p]`, padded, of pictures with these grids of patches.
    pub fn embed_packed(&self, patches: Tensor<3>, grids: &[[usize; 2]]) -> Tensor<3> {
        let tokens = patches.dims()[1];
        let x = match &self.flat_embed {
            Some(flat) => flat.forward(patches),
            None => patches,
        };
        x + self.config.stretch.grids(self.pos_embed.val(), self.grid, grids, tokens)
    }

    /// Tokens that enter the first block.
    pub fn enter(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.embed_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// What is found in pictures, from their tokens `[B, N, D]`. `present`, `[B, N]`, is 0 for
    /// padding.
    pub fn look(&self, x: Tensor<3>, present: Option<&Tensor<2, Int>>, call: &Call) -> Found {
        let x = self.enter(x);
        let [batch, rows, width] = x.dims();
        let mask = |queries| match present {
            Some(present) => AttentionMask::of_keys(present, queries),
            None => AttentionMask::default(),
        };
        // Level 0 is what enters the first block, level i + 1 what leaves block i.
        let config = &self.config;
        let depth = self.blocks.len();
        let shift = usize::from(!config.tap_inputs);
        let taps = block::taps(depth, config.taps, config.tap_interval);
        let levels: Vec<usize> = taps.into_iter().map(|tap| tap + shift).collect();
        let mut kept: Vec<usize> = levels.iter().copied().chain([depth - 1]).collect();
        kept.sort_unstable();
        kept.dedup();
        let after: Vec<usize> = kept.iter().filter_map(|level| level.checked_sub(1)).collect();
        let context = Context { mask: mask(rows), ..Context::training(call) };
        let (found, last) = block::run(&self.blocks, x.clone(), &after, &context, call);
        let at = |level: usize| match after.iter().position(|block| block + 1 == level) {
            Some(place) => found[place].clone(),
            None => x.clone(),
        };
        let norm = |place| self.post_norm.as_ref().filter(|_| config.post_norm == place);
        let tokens = norm(PostNorm::Tokens).map_or(last.clone(), |norm| norm.forward(last));
        let (features, map) = match &self.pool {
            Some(pool) => pool.with_map(tokens.clone(), &mask(1)),
            None => {
                let class = tokens.clone().slice_dim(1, 0..1).reshape([batch, width]);
                let map = self.blocks.last().map(|block| block.map_of_first(at(depth - 1), 1));
                (class, map.unwrap_or_else(|| Tensor::zeros([batch, 1, 1, rows], &x.device())))
            }
        };
        let front = config.front();
        let map: Tensor<4> = map.detach().mean_dim(1).slice_dim(3, front..rows);
        let features =
            norm(PostNorm::Vector).map_or(features.clone(), |norm| norm.forward(features));
        let projected = match &self.projection {
            Some(projection) => projection.forward(features.clone()),
            None => features.clone(),
        };
        let attention = map.reshape([batch, rows - front]);
        let layers = levels.into_iter().map(at).collect();
        Found { layers, tokens, features, projected, attention }
    }

    /// All outputs for a clip `[B, 3, T, H, W]`.
    pub fn watch(&self, video: Tensor<5>, call: &Call) -> Tensors {
        let [batch, _, frames, _, _] = video.dims();
        let found = self.look(self.embed(self.pictures(video)), None, call);
        self.outputs(found, [batch, frames])
    }

    /// What was found in `frames` pictures of each sample, by port.
    pub fn outputs(&self, found: Found, [batch, frames]: [usize; 2]) -> Tensors {
        let front = self.config.front();
        let together = |x: Tensor<3>| unfold(x, frames, front);
        let mean = |x: Tensor<2>| -> Tensor<2> {
            let width = x.dims()[1];
            x.reshape([batch, frames, width]).mean_dim(1).squeeze_dim(1)
        };
        let pooled = match self.config.mean_of_units {
            true => mean(unit(found.projected)),
            false => unit(mean(found.projected)),
        };
        let layers = found.layers.into_iter().map(|layer| unit(together(layer)));
        let layers: Tensor<4> = Tensor::stack(layers.collect::<Vec<_>>(), 0);
        let places = found.attention.dims()[1];
        Tensors::of("layers", layers)
            .with("tokens", together(found.tokens))
            .with("features", mean(found.features))
            .with("pooled", pooled)
            .with("attention", found.attention.reshape([batch, frames, places]))
    }
}

/// Frames side by side: `[B T, front + A, D]` to `[B, front + T A, D]`; the `front` class tokens, none
/// or one, are averaged over frames.
pub fn unfold(x: Tensor<3>, frames: usize, front: usize) -> Tensor<3> {
    let [folded, rows, width] = x.dims();
    let batch = folded / frames;
    if front == 0 {
        return x.reshape([batch, frames * rows, width]);
    }
    let x = x.reshape([batch, frames, rows, width]);
    let class = x.clone().slice_dim(2, 0..1).mean_dim(1).squeeze_dim(1);
    let patches = x.slice_dim(2, 1..rows);
    let patches = patches.reshape([batch, frames * (rows - 1), width]);
    Tensor::cat(vec![class, patches], 1)
}

/// Number of parameters of a tower with a table of its own size.
#[cfg(test)]
pub(crate) fn counted(config: &TowerConfig) -> u64 {
    let init = Init::new(0, "count", &burn::tensor::Device::flex());
    crate::parameters::count(&config.init(&Dims::new(), &init))
}
