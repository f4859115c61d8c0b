//! The stack of ModernBERT: global and local attention take turns, positions turn queries and keys.
//!
//! Any run of its layers is a stack too. Layers keep their numbers, which say which of them are global.
//! Source: Warner et al. 2024, "ModernBERT" (arXiv 2412.13663).

pub mod network;
pub mod size;

use burn::tensor::{Device, Int, Tensor};
use schemas::entry::OptionProblem;

use super::attention::{AttentionConfig, AttentionMask, Biases};
use super::block::{self, Block, BlocksConfig, Context};
use super::mlp::Activation;
use super::norm::NormKind;
use super::rope::{Rope, frequencies};
use super::spans::Spans;
use crate::init::Init;
use crate::kind::Call;
use crate::layout::Layout;
use size::Biased;

/// Numbers of a stack, or of a run of its layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stack {
    /// Channels of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden channels of the gated units.
    pub hidden: usize,
    /// Number of the first layer.
    pub first: usize,
    /// Number of layers.
    pub count: usize,
    /// Every so many layers, from layer 0 on, one is global.
    pub global_every: usize,
    /// Tokens that a local layer sees on each side.
    pub near: usize,
    /// Bases of the rotary angles of global and of local layers.
    pub theta: [f64; 2],
    /// Added to the variance in norms.
    pub eps: f64,
    /// Which parts have biases.
    pub biases: Biased,
    /// Drop path rate of the last layer.
    pub drop_path: f64,
}

impl Stack {
    /// ModernBERT's window, bases and order of layers, all layers.
    pub const fn new(depth: usize, width: usize, heads: usize, hidden: usize) -> Self {
        Self {
            width,
            heads,
            hidden,
            first: 0,
            count: depth,
            global_every: 3,
            near: 64,
            theta: [160_000.0, 10_000.0],
            eps: 1e-5,
            biases: Biased::PUBLISHED,
            drop_path: 0.0,
        }
    }

    /// Norm of the layers, and of what follows them: LayerNorm.
    pub const fn norm(&self) -> NormKind {
        match self.biases.norm {
            true => NormKind::Layer(self.eps),
            false => NormKind::LayerWithoutBias(self.eps),
        }
    }

    /// Draws the layers.
    pub fn blocks(&self, init: &Init) -> Vec<Block> {
        let biases = if self.biases.attention { Biases::ALL } else { Biases::NONE };
        let attention = AttentionConfig { biases, ..AttentionConfig::new(self.width, self.heads) };
        let depth = self.first + self.count;
        let config = BlocksConfig {
            attention,
            gated: true,
            gate_biases: self.biases.mlp,
            activation: Activation::Gelu,
            norm: self.norm(),
            drop_path: self.drop_path,
            ..BlocksConfig::vit(self.width, depth, self.heads, self.hidden)
        };
        // Parameters are made when they are first read: those of earlier layers never are.
        let mut blocks = block::blocks(&config, init);
        if let Some(first) = blocks.first_mut() {
            first.norm1 = None; // the embeddings end with a norm
        }
        blocks.drain(..self.first);
        blocks
    }

    /// Whether the layer at this place of the run is global.
    pub fn is_global(&self, place: usize) -> bool {
        (self.first + place).is_multiple_of(self.global_every)
    }

    /// Rotary positions of so many tokens, in global and in local layers.
    pub fn ropes(&self, tokens: usize, device: &Device) -> [Rope; 2] {
        let turn = |theta| frequencies(self.width / self.heads, theta, None);
        self.theta.map(|theta| Rope::line(&[(0..tokens).collect()], &turn(theta), device))
    }

    /// What global and local layers are told of texts `[B, N, D]`, of which only tokens count where
    /// `present`, `[B, N]`, is not 0.
    pub fn contexts(&self, x: &Tensor<3>, present: Option<&Tensor<2, Int>>) -> [Context; 2] {
        let tokens = x.dims()[1];
        let [global, local] = self.ropes(tokens, &x.device());
        let near = Spans::all(tokens, tokens).near(self.near, self.near);
        let of = |mask: AttentionMask, rope| {
            let mask = match present {
                Some(present) => mask.and_keys(present),
                None => mask,
            };
            Context { mask, rope: Some(rope), ..Context::default() }
        };
        [of(AttentionMask::default(), global), of(AttentionMask::of(near), local)]
    }

    /// Runs the layers over `[B, N, D]`; returns the residual stream after each of them.
    pub fn run(
        &self,
        blocks: &[Block],
        x: Tensor<3>,
        present: Option<&Tensor<2, Int>>,
        call: &Call,
    ) -> Vec<Tensor<3>> {
        let contexts = self.contexts(&x, present);
        let mut x = x;
        let step = |(place, block): (usize, &Block)| {
            let context = &contexts[usize::from(!self.is_global(place))];
            let number = (self.first + place) as u64;
            let key = call.training.then(|| call.key.with_number(number));
            let context = Context { key, ..context.clone() };
            x = match &call.segments {
                Some(segments) => segments.run(block, x.clone(), context),
                None => block.forward(x.clone(), &context),
            };
            x.clone()
        };
        blocks.iter().enumerate().map(step).collect()
    }

    /// Problems of the numbers.
    pub fn check(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        for (name, value, most) in [
            ("size.width", self.width, 1 << 16),
            ("size.heads", self.heads, 1 << 12),
            ("size.hidden", self.hidden, 1 << 20),
            ("count", self.count, 1 << 10),
            ("global_every", self.global_every, 1 << 10),
        ] {
            if !(1..=most).contains(&value) {
                let message = format!("`{name}` is {value}, but must be from 1 to {most}");
                refuse(name, message, "leave it out for the preset's");
            }
        }
        if self.first > 1 << 10 {
            let message = format!("`first` is {}, more layers than any model has", self.first);
            refuse("first", message, "layers count from 0");
        }
        if self.heads > 0 && !self.width.is_multiple_of(2 * self.heads) {
            let message =
                format!("{} heads of a width of {} are not of even width", self.heads, self.width);
            refuse("size.heads", message, "pairs of channels turn: choose fewer heads");
        }
        for theta in self.theta {
            if !(theta >= 1.0 && theta.is_finite()) {
                let message = format!("`theta` holds {theta}, but must be at least 1");
                refuse("theta", message, "160000 and 10000 are published");
            }
        }
        problems
    }

    /// Rules of the published layout for the layers of a run, whose numbers in the file begin with
    /// `number` after the text `layers`.
    pub fn layout(&self, layout: Layout, layers: &str, number: usize) -> Layout {
        let renumber = |layout: Layout, place: usize| {
            layout.rule(&format!("^blocks.{place}."), &format!("{layers}{}.", number + place))
        };
        (0..self.count.min(1 << 10)).fold(layout, renumber).rules(&[
            (".attn.q.weight", ".attn.Wqkv.weight[0/3]"),
            (".attn.k.weight", ".attn.Wqkv.weight[1/3]"),
            (".attn.v.weight", ".attn.Wqkv.weight[2/3]"),
            (".attn.q.bias", ".attn.Wqkv.bias[0/3]"),
            (".attn.k.bias", ".attn.Wqkv.bias[1/3]"),
            (".attn.v.bias", ".attn.Wqkv.bias[2/3]"),
            (".attn.proj.", ".attn.Wo."),
            (".mlp.fc1.weight", ".mlp.Wi.weight[0/2]"),
            (".mlp.gate.weight", ".mlp.Wi.weight[1/2]"),
            (".mlp.fc1.bias", ".mlp.Wi.bias[0/2]"),
            (".mlp.gate.bias", ".mlp.Wi.bias[1/2]"),
            (".mlp.fc2.", ".mlp.Wo."),
            (".norm1.", ".attn_norm."),
            (".norm2.", ".mlp_norm."),
        ])
    }

    /// Floating point operations for one sequence of so many tokens.
    pub fn flops(&self, tokens: usize) -> u64 {
        let [d, hidden, n] = [self.width as u64, self.hidden as u64, tokens as u64];
        let near = n.min(2 * self.near as u64 + 1);
        let one = |place: usize| {
            let seen = if self.is_global(place) { n } else { near };
            2 * n * (4 * d * d + 3 * d * hidden) + 4 * n * seen * d
        };
        (0..self.count).map(one).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;
    use burn::tensor::Distribution;
    use schemas::node::At;

    #[test]
    fn a_run_of_layers_is_that_part_of_the_whole() {
        let device = Device::flex();
        let whole = Stack { near: 2, ..Stack::new(5, 16, 2, 24) };
        let part = Stack { first: 2, count: 2, ..whole };
        let init = || Init::new(1, "stack", &device);
        let (all, some) = (whole.blocks(&init()), part.blocks(&init()));
        assert!(all[0].norm1.is_none() && all[1].norm1.is_some() && some[0].norm1.is_some());
        let x = Tensor::<3>::random([2, 9, 16], Distribution::Normal(0.0, 1.0), &device);
        let call = Call::new(Key::new(0, "run"), At::default());
        let states = whole.run(&all, x, None, &call);
        let again = part.run(&some, states[1].clone(), None, &call);
        let off = (again[1].clone() - states[3].clone()).abs().max().into_scalar::<f32>();
        assert!(off < 1e-6, "{off}");
    }

    #[test]
    fn tokens_far_away_reach_global_layers_alone() {
        let device = Device::flex();
        let call = Call::new(Key::new(0, "run"), At::default());
        for (first, reaches) in [(1, false), (3, true)] {
            let stack = Stack { near: 1, first, count: 1, ..Stack::new(1, 16, 2, 24) };
            let blocks = stack.blocks(&Init::new(1, "stack", &device));
            let x = Tensor::<3>::random([1, 6, 16], Distribution::Normal(0.0, 1.0), &device);
            let other =
                x.clone().slice_assign([0..1, 5..6, 0..16], Tensor::ones([1, 1, 16], &device));
            let start = |x| stack.run(&blocks, x, None, &call)[0].clone().slice_dim(1, 0..4);
            let off = (start(x) - start(other)).abs().max().into_scalar::<f32>();
            assert_eq!(off > 1e-6, reaches, "{off}");
        }
    }

    #[test]
    fn odd_heads_are_refused() {
        assert_eq!(Stack::new(2, 18, 2, 8).check()[0].option, "size.heads");
        assert_eq!(Stack::new(2, 16, 2, 8).check(), []);
    }
}
