//! Text towers: a transformer over tokens with learned positions, read out as one vector.
//!
//! CLIP's tower is causal and reads its end token; SigLIP's sees all tokens and reads the last one.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::OptionProblem;
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use super::attention::AttentionMask;
use super::block::{self, Block, BlocksConfig, Context};
use super::linear::Linear;
use super::mlp::Activation;
use super::norm::{Norm, NormKind, unit};
use super::size::{check_eps, check_share, side};
use super::tokens;
use crate::init::Init;
use crate::kind::Call;
use crate::tensors::Tensors;

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextSizeOptions {
    /// Tokens of the vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Most tokens of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Channels of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden channels of the MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Channels of the pooled vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled: Option<usize>,
    /// Deviation that matrices start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
}

/// All numbers of a text tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextSize {
    /// Tokens of the vocabulary, V.
    pub vocab: usize,
    /// Most tokens of a text.
    pub context: usize,
    /// Channels of a token, D.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Channels of the pooled vector, P.
    pub pooled: usize,
    /// Deviation that matrices start with.
    pub sigma: f64,
}

impl TextSize {
    /// For laptops.
    pub const TINY: Self = Self {
        vocab: 512,
        context: 32,
        width: 96,
        depth: 4,
        heads: 4,
        hidden: 384,
        pooled: 96,
        sigma: 0.1,
    };

    /// 12 blocks of this width, with heads of 64 channels.
    pub const fn of(vocab: usize, context: usize, width: usize) -> Self {
        let (heads, hidden) = (width / 64, 4 * width);
        Self { vocab, context, width, depth: 12, heads, hidden, pooled: width, sigma: 0.02 }
    }

    /// With the numbers that the options give.
    pub fn with(self, options: &TextSizeOptions) -> Self {
        Self {
            vocab: options.vocab.unwrap_or(self.vocab),
            context: options.context.unwrap_or(self.context),
            width: options.width.unwrap_or(self.width),
            depth: options.depth.unwrap_or(self.depth),
            heads: options.heads.unwrap_or(self.heads),
            hidden: options.hidden.unwrap_or(self.hidden),
            pooled: options.pooled.unwrap_or(self.pooled),
            sigma: options.sigma.unwrap_or(self.sigma),
        }
    }
}

/// Which token is read out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadToken {
    /// The first one with this number.
    End(usize),
    /// The last one, padding or not.
    Last,
}

/// The parts of a text tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TextTowerConfig {
    /// All numbers.
    pub size: TextSize,
    /// ε of the norms.
    pub eps: f64,
    /// Activation of the blocks.
    pub activation: Activation,
    /// Drop path rate of the last block.
    pub drop_path: f64,
    /// Whether no token sees a later one.
    pub causal: bool,
    /// Which token is read out.
    pub read: ReadToken,
    /// Whether the projection has a bias.
    pub projection_bias: bool,
}

/// The tower.
#[derive(Module, Debug)]
pub struct TextTower {
    /// `[V, D]`.
    pub token_embed: Param<Tensor<2>>,
    /// `[context, D]`.
    pub pos_embed: Param<Tensor<2>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the blocks.
    pub norm: Norm,
    /// `[D, P]`.
    pub projection: Linear,
    #[module(skip)]
    config: TextTowerConfig,
}

impl TextTowerConfig {
    /// Makes the tower.
    pub fn init(&self, init: &Init) -> TextTower {
        let TextSize { vocab, context, width, depth, heads, hidden, pooled, sigma } = self.size;
        let init = &init.with_sigma(sigma);
        let blocks = BlocksConfig {
            activation: self.activation,
            norm: NormKind::Layer(self.eps),
            drop_path: self.drop_path,
            ..BlocksConfig::vit(width, depth, heads, hidden)
        };
        TextTower {
            token_embed: init.normal([vocab, width], 0.02),
            pos_embed: init.normal([context, width], 0.02),
            blocks: block::blocks(&blocks, init),
            norm: Norm::layer(width, self.eps, init),
            projection: init.linear(width, pooled, self.projection_bias, 1.0),
            config: self.clone(),
        }
    }

    /// Ports.
    pub fn ports(&self) -> Ports {
        let TextSize { width, pooled, .. } = self.size;
        Ports::default()
            .stopped("ids", "B L")
            .int()
            .about("token numbers")
            .stopped("mask", "B L")
            .int()
            .optional()
            .about("1 = token, 0 = padding; all are tokens when absent")
            .output("tokens", format!("B L {width}"))
            .about("after the last block and its norm")
            .output("features", format!("B {width}"))
            .about("the token that is read out")
            .output("pooled", format!("B {pooled}"))
            .tag("norm", "l2")
            .about("projected, unit vectors")
    }

    /// Problems of the numbers.
    pub fn problems(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = &self.size;
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: String| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        for (name, value, most) in [
            ("vocab", size.vocab, 1 << 24),
            ("context", size.context, 1 << 20),
            ("width", size.width, 1 << 16),
            ("depth", size.depth, 1 << 10),
            ("heads", size.heads, 1 << 12),
            ("hidden", size.hidden, 1 << 20),
            ("pooled", size.pooled, 1 << 16),
        ] {
            if !(1..=most).contains(&value) {
                let message = format!("`{name}` is {value}, not from 1 to {most}");
                refuse(&format!("size.{name}"), message, format!("give 1 to {most}"));
            }
        }
        if !(size.sigma > 0.0 && size.sigma <= 10.0) {
            let message = format!("`sigma` is {}, not above 0 and up to 10", size.sigma);
            refuse("size.sigma", message, "0.02 is usual".to_owned());
        }
        if size.heads > 0 && !size.width.is_multiple_of(size.heads) {
            let message = format!("{} heads do not divide a width of {}", size.heads, size.width);
            refuse("size.heads", message, "choose a divisor of the width".to_owned());
        }
        let length = side(dims, "L");
        if length > size.context {
            let message = format!("texts of {length} tokens, but positions for {}", size.context);
            refuse("size.context", message, "shorten the texts, or raise it".to_owned());
        }
        if let ReadToken::End(end) = self.read
            && end >= size.vocab
        {
            let message = format!("token {end} is not in a vocabulary of {}", size.vocab);
            refuse("end", message, "give the end token of the tokenizer".to_owned());
        }
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_eps("eps", self.eps));
        problems
    }

    /// Floating point operations for a batch.
    pub fn flops(&self, dims: &Dims) -> u64 {
        let [d, n] = [self.size.width as u64, side(dims, "L") as u64];
        let block = 2 * n * (4 * d * d + 2 * d * self.size.hidden as u64) + 4 * n * n * d;
        side(dims, "B") as u64 * self.size.depth as u64 * block
    }
}

impl TextTower {
    /// Tokens of the first block for `ids`, `[B, L]`: `[B, L, D]`.
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let width = self.pos_embed.dims()[1];
        let x = self.token_embed.val().select(0, ids.reshape([batch * length]));
        let positions = self.pos_embed.val().slice_dim(0, 0..length);
        x.reshape([batch, length, width]) + positions.unsqueeze::<3>()
    }

    /// Which token sees which, in texts of `length` tokens; `present`, `[B, L]`, is 0 for padding.
    pub fn mask(&self, length: usize, present: Option<&Tensor<2, Int>>) -> AttentionMask {
        let all = match self.config.causal {
            true => AttentionMask::causal(length),
            false => AttentionMask::default(),
        };
        match present {
            Some(present) => all.and_keys(present),
            None => all,
        }
    }

    /// All outputs for `ids` and, where given, `mask`.
    pub fn read(&self, mut inputs: Tensors, call: &Call) -> Result<Tensors, NodeError> {
        let ids: Tensor<2, Int> = inputs.take("ids")?;
        let present: Option<Tensor<2, Int>> = inputs.take_if("mask")?;
        let [batch, length] = ids.dims();
        let places = self.places(&ids)?;
        let mask = self.mask(length, present.as_ref());
        let context = Context { mask, ..Context::training(call) };
        let (_, x) = block::run(&self.blocks, self.embed(ids.clone()), &[], &context, call);
        let x = self.norm.forward(x);
        let places = TensorData::new(places, [batch, 1]);
        let places = Tensor::<2, Int>::from_data(places, &ids.device());
        let features: Tensor<2> = tokens::gather(x.clone(), places).squeeze_dim(1);
        let pooled = unit(self.projection.forward(features.clone()));
        Ok(Tensors::of("tokens", x).with("features", features).with("pooled", pooled))
    }

    /// Place of the token that is read out of each text. Refuses numbers outside the vocabulary: the
    /// backend would panic on them.
    fn places(&self, ids: &Tensor<2, Int>) -> Result<Vec<i64>, NodeError> {
        let length = ids.dims()[1];
        let data: Vec<i64> = ids.to_data().iter::<i64>().collect();
        let vocab = self.config.size.vocab;
        let fail = |reason: String| NodeError::Data { what: "port `ids`".to_owned(), reason };
        if let Some(id) = data.iter().find(|id| !(0..vocab as i64).contains(id)) {
            let way = "set `size.vocab` to the tokenizer's";
            return Err(fail(format!("token {id} is not in a vocabulary of {vocab}; {way}")));
        }
        let one = |(sample, text): (usize, &[i64])| match self.config.read {
            ReadToken::Last => Ok(length as i64 - 1),
            ReadToken::End(end) => {
                let place = text.iter().position(|id| *id == end as i64);
                let way = "end texts with it, or set `end`";
                let missing = || fail(format!("text {sample} has no end token {end}; {way}"));
                place.map(|place| place as i64).ok_or_else(missing)
            }
        };
        data.chunks(length.max(1)).enumerate().map(one).collect()
    }
}

/// Number of parameters of a tower.
#[cfg(test)]
pub(crate) fn counted(config: &TextTowerConfig) -> u64 {
    crate::parameters::count(&config.init(&Init::new(0, "count", &burn::tensor::Device::flex())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;
    use burn::tensor::Device;
    use schemas::node::At;

    fn read(read: ReadToken, causal: bool, ids: [[i64; 4]; 2]) -> Result<Tensors, NodeError> {
        let config = TextTowerConfig {
            size: TextSize { vocab: 8, ..TextSize::TINY },
            eps: 1e-5,
            activation: Activation::Gelu,
            drop_path: 0.0,
            causal,
            read,
            projection_bias: false,
        };
        let tower = config.init(&Init::new(1, "text", &Device::flex()));
        let ids = Tensor::<2, Int>::from_data(ids, &Device::flex());
        tower.read(Tensors::of("ids", ids), &Call::new(Key::new(1, "call"), At::default()))
    }

    #[test]
    fn what_follows_the_end_token_of_a_causal_tower_has_no_effect() {
        let pooled = |ids| {
            let mut outputs = read(ReadToken::End(7), true, ids).expect("outputs");
            outputs.take::<Tensor<2>>("pooled").expect("a port")
        };
        let both = pooled([[1, 2, 7, 0], [1, 2, 7, 5]]);
        let [first, second] = [0, 1].map(|i| both.clone().slice_dim(0, i..i + 1).into_data());
        assert_eq!(first, second);
    }

    #[test]
    fn tokens_that_are_not_there_are_named() {
        let error = read(ReadToken::End(7), true, [[1, 2, 3, 4], [1, 7, 0, 0]]).unwrap_err();
        assert!(error.to_string().contains("text 0 has no end token 7"), "{error}");
        let error = read(ReadToken::Last, false, [[1, 2, 3, 4], [1, 9, 0, 0]]).unwrap_err();
        assert!(error.to_string().contains("token 9 is not in a vocabulary of 8"), "{error}");
    }
}
