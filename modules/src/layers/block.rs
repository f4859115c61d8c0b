//! The transformer block that all networks share.

use burn::{module::Module, tensor::Tensor};

use super::attention::{Attention, AttentionConfig, AttentionMask, Biases, Cache, Look};
use super::drop_path::{self, drop_path};
use super::dropout_ops::dropout;
use super::mlp::{Activation, Mlp};
use super::norm::{LayerScale, Norm, NormKind};
use super::rope::Rope;
use crate::init::Init;
use crate::kind::Call;
use crate::rng::Key;

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norms {
    /// At the start of a branch: `x + f(norm(x))`.
    Before,
    /// After the sum: `norm(a x + f(x))`, with a factor a of the residual stream: 1 in BERT, more in
    /// DeepNorm (Wang et al. 2022, arXiv 2203.00555).
    After(f64),
}

/// What a stack of blocks looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct BlocksConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Attention of each block.
    pub attention: AttentionConfig,
    /// Hidden width of the MLP.
    pub hidden: usize,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Whether the MLP is a gated unit.
    pub gated: bool,
    /// Whether a gated unit has biases.
    pub gate_biases: bool,
    /// Norms of the branches.
    pub norm: NormKind,
    /// Where they stand.
    pub norms: Norms,
    /// Start of the layer scale; no layer scale when 0.
    pub layer_scale: f64,
    /// Drop path rate of the last block.
    pub drop_path: f64,
    /// Dropout of attention maps and at the end of each branch.
    pub dropout: f64,
    /// Cross-attention to a memory in every so many blocks; none when 0.
    pub cross_every: usize,
    /// First block with cross-attention.
    pub cross_from: usize,
    /// Channels of the memory.
    pub memory: usize,
    /// Whether the first tokens have an MLP of their own (Q-Former).
    pub two_mlps: bool,
}

impl BlocksConfig {
    /// Pre-norm blocks with LayerNorm of ε 1e-6, exact GELU and all biases.
    pub fn vit(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        Self {
            depth,
            attention: AttentionConfig::new(width, heads),
            hidden,
            activation: Activation::Gelu,
            gated: false,
            gate_biases: false,
            norm: NormKind::Layer(1e-6),
            norms: Norms::Before,
            layer_scale: 0.0,
            drop_path: 0.0,
            dropout: 0.0,
            cross_every: 0,
            cross_from: 0,
            memory: 0,
            two_mlps: false,
        }
    }

    /// The same, on request without biases of queries, keys and values.
    pub fn qkv_bias(self, there: bool) -> Self {
        let biases = if there { self.attention.biases } else { Biases::OUTPUT };
        Self { attention: AttentionConfig { biases, ..self.attention }, ..self }
    }

    /// Blocks of VideoMAE: no bias of the keys.
    pub fn videomae(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        let mut config = Self::vit(width, depth, heads, hidden);
        config.attention.biases = Biases::WITHOUT_KEYS;
        config
    }

    /// Blocks of InternVideo2: RMSNorm, norms on q and k, no biases of queries, keys and values.
    pub fn internvideo2(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        let mut config = Self::vit(width, depth, heads, hidden);
        config.attention.biases = Biases::OUTPUT;
        config.attention.qk_norm = Some(1e-6);
        config.activation = Activation::GeluTanh;
        config.norm = NormKind::Rms(1e-6);
        config.layer_scale = 1e-5;
        config
    }

    /// Blocks of BERT: LayerNorm of ε 1e-12 after the sums.
    pub fn bert(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        Self {
            norm: NormKind::Layer(1e-12),
            norms: Norms::After(1.0),
            ..Self::vit(width, depth, heads, hidden)
        }
    }
}

/// Other tokens that a block attends to.
#[derive(Debug, Clone)]
pub struct Memory {
    /// `[B, M, E]`.
    pub tokens: Tensor<3>,
    /// Who sees whom.
    pub mask: AttentionMask,
}

/// What a block is given beside its tokens.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Which tokens a token sees.
    pub mask: AttentionMask,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// For cross-attention.
    pub memory: Option<Memory>,
    /// First tokens that attend to the memory and have an MLP of their own, in blocks with two.
    pub first: usize,
    /// Draws of dropout and drop path; nothing is dropped when absent.
    pub key: Option<Key>,
}

impl Context {
    /// With the draws of a training pass, and none of another.
    pub fn training(call: &Call) -> Self {
        Self { key: call.training.then(|| call.key.clone()), ..Self::default() }
    }
}

/// Keys and values that a block keeps while a text is generated.
#[derive(Debug, Clone, Default)]
pub struct BlockCache {
    /// Of earlier tokens.
    pub tokens: Cache,
}

/// Cross-attention with its norm.
#[derive(Module, Debug)]
pub struct Cross {
    /// Before the attention, or after the sum.
    pub norm: Norm,
    /// From tokens to the memory.
    pub attn: Attention,
}

/// An MLP with its norm, for the first tokens.
#[derive(Module, Debug)]
pub struct Second {
    /// Before the MLP, or after the sum.
    pub norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

/// Attention, cross-attention where there is any, MLP: each a branch of the residual stream.
#[derive(Module, Debug)]
pub struct Block {
    /// Of the attention; the first block of ModernBERT has none.
    pub norm1: Option<Norm>,
    /// Attention.
    pub attn: Attention,
    /// Layer scale of the attention branch.
    pub ls1: Option<LayerScale>,
    /// Attention to a memory.
    pub cross: Option<Cross>,
    /// Of the MLP.
    pub norm2: Norm,
    /// MLP.
    pub mlp: Mlp,
    /// Layer scale of the MLP branch.
    pub ls2: Option<LayerScale>,
    /// MLP of the first tokens.
    pub second: Option<Second>,
    #[module(skip)]
    norms: Norms,
    rate: f64,
    dropout: f64,
}

impl Block {
    fn new(config: &BlocksConfig, number: usize, rate: f64, init: &Init) -> Self {
        let width = config.attention.width;
        // A norm after each sum keeps the stream in bounds, so that branches may start whole.
        let before = config.norms == Norms::Before;
        let shrink = if before { (2.0 * (number + 1) as f64).sqrt() } else { 1.0 };
        let norm = || Norm::new(config.norm, width, init);
        let scale = || {
            let on = config.layer_scale > 0.0;
            on.then(|| LayerScale::new(width, config.layer_scale, init))
        };
        let mlp = || {
            let (sizes, activation) = ([width, config.hidden, width], config.activation);
            if config.gated {
                Mlp::gated(sizes, config.gate_biases, activation, shrink, init)
            } else {
                Mlp::new(sizes, activation, shrink, init)
            }
        };
        let later = number.checked_sub(config.cross_from);
        let every = config.cross_every;
        let crosses = every > 0 && later.is_some_and(|later| later.is_multiple_of(every));
        let own = AttentionConfig { dropout: config.dropout, ..config.attention };
        let to_memory = AttentionConfig { memory: config.memory, ..own };
        let cross = || Cross { norm: norm(), attn: Attention::new(&to_memory, 1.0, init) };
        Self {
            norm1: Some(norm()),
            attn: Attention::new(&own, shrink, init),
            ls1: scale(),
            cross: crosses.then(cross),
            norm2: norm(),
            mlp: mlp(),
            ls2: scale(),
            second: config.two_mlps.then(|| Second { norm: norm(), mlp: mlp() }),
            norms: config.norms,
            rate,
            dropout: config.dropout,
        }
    }

    /// `[B, N, D]`; returns the residual stream after the block.
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        self.step(x, context, None)
    }

    /// The same behind the tokens of a cache.
    pub fn step(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut BlockCache>,
    ) -> Tensor<3> {
        let key = context.key.as_ref().map(|key| key.with("attn"));
        let look = Look { cache: cache.map(|cache| &mut cache.tokens), ..look(context, &key) };
        let scale = self.ls1.as_ref();
        let x = self.branch(x, self.norm1.as_ref(), scale, &key, |x| self.attn.forward(x, look));
        let x = match (&self.cross, &context.memory) {
            (Some(cross), Some(memory)) => self.to_memory(x, cross, memory, context),
            _ => x,
        };
        let key = context.key.as_ref().map(|key| key.with("mlp"));
        let feed = |x: Tensor<3>, norm: &Norm, mlp: &Mlp| {
            let of = |x| mlp.draw(x, key.as_ref());
            self.branch(x, Some(norm), self.ls2.as_ref(), &key, of)
        };
        match &self.second {
            None => feed(x, &self.norm2, &self.mlp),
            Some(second) => self.parts(
                x,
                context.first,
                |first| feed(first, &second.norm, &second.mlp),
                |rest| feed(rest, &self.norm2, &self.mlp),
            ),
        }
    }

    fn to_memory(
        &self,
        x: Tensor<3>,
        cross: &Cross,
        memory: &Memory,
        context: &Context,
    ) -> Tensor<3> {
        let key = context.key.as_ref().map(|key| key.with("cross"));
        let ask = |x| {
            let look = Look { mask: Some(&memory.mask), key: key.as_ref(), ..Look::default() };
            cross.attn.ask(x, memory.tokens.clone(), memory.tokens.clone(), look)
        };
        let branch = |x| self.branch(x, Some(&cross.norm), None, &key, ask);
        // Where the first tokens have an MLP of their own, they alone ask.
        let asking = if self.second.is_some() { context.first } else { x.dims()[1] };
        self.parts(x, asking, branch, |rest| rest)
    }

    /// The first `count` tokens through one function, the rest through another.
    fn parts(
        &self,
        x: Tensor<3>,
        count: usize,
        first: impl FnOnce(Tensor<3>) -> Tensor<3>,
        rest: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let all = x.dims()[1];
        match count {
            0 => rest(x),
            count if count >= all => first(x),
            _ => {
                let parts = (x.clone().slice_dim(1, 0..count), x.slice_dim(1, count..all));
                Tensor::cat(vec![first(parts.0), rest(parts.1)], 1)
            }
        }
    }

    pub(super) fn entering(&self, x: Tensor<3>, norm: Option<&Norm>) -> Tensor<3> {
        match norm {
            Some(norm) if self.norms == Norms::Before => norm.forward(x),
            _ => x,
        }
    }

    pub(super) fn branch(
        &self,
        x: Tensor<3>,
        norm: Option<&Norm>,
        scale: Option<&LayerScale>,
        key: &Option<Key>,
        of: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let branch = of(self.entering(x.clone(), norm));
        let branch = match scale {
            Some(scale) => scale.forward(branch),
            None => branch,
        };
        let branch = dropout(branch, self.dropout, key.as_ref());
        let branch = drop_path(branch, self.rate, key.as_ref());
        match (self.norms, norm) {
            (Norms::After(1.0), Some(norm)) => norm.forward(x + branch),
            (Norms::After(factor), Some(norm)) => norm.forward(x.mul_scalar(factor) + branch),
            _ => x + branch,
        }
    }
}

pub(super) fn look<'a>(context: &'a Context, key: &'a Option<Key>) -> Look<'a> {
    let (rope, mask) = (context.rope.as_ref(), Some(&context.mask));
    Look { rope, mask, key: key.as_ref(), cache: None }
}

/// Blocks with drop path rates that rise in a line.
pub fn blocks(config: &BlocksConfig, init: &Init) -> Vec<Block> {
    let rates = drop_path::rates(config.drop_path, config.depth);
    rates.into_iter().enumerate().map(|(i, rate)| Block::new(config, i, rate, init)).collect()
}

/// Runs all blocks; returns the residual stream after each block listed in `taps` (ascending) and
/// after the last block.
pub fn run(
    blocks: &[Block],
    x: Tensor<3>,
    taps: &[usize],
    context: &Context,
    call: &Call,
) -> (Vec<Tensor<3>>, Tensor<3>) {
    let mut tapped = Vec::with_capacity(taps.len());
    let mut x = x;
    for (number, block) in blocks.iter().enumerate() {
        let key = context.key.as_ref().map(|key| key.with_number(number as u64));
        let context = Context { key, ..context.clone() };
        x = match &call.segments {
            Some(segments) => segments.run(block, x, context),
            None => block.forward(x, &context),
        };
        if taps.contains(&number) {
            tapped.push(x.clone());
        }
    }
    (tapped, x)
}

/// Numbers of the last `count` blocks, `interval` apart, ascending: `L - 1 - floor(i interval)`.
pub fn taps(depth: usize, count: usize, interval: f64) -> Vec<usize> {
    let back = |i: usize| (i as f64 * interval).floor() as usize;
    (0..count).rev().filter_map(|i| (depth - 1).checked_sub(back(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_those_of_the_recipe() {
        assert_eq!(taps(48, 6, 1.0), [42, 43, 44, 45, 46, 47]);
        assert_eq!(taps(40, 6, 3.34), [23, 26, 29, 33, 36, 39]);
        assert_eq!(taps(3, 2, 2.0), [0, 2]);
    }
}
