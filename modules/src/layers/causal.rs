//! The network of causal language models, and its keys and values while it writes.

use burn::module::{Module, Param};
use burn::tensor::module::{embedding, linear};
use burn::tensor::{Int, Tensor, TensorData};
use schemas::node::NodeError;

use super::attention::AttentionMask;
use super::block::{Block, BlockCache, Context};
use super::linear::Linear;
use super::norm::Norm;
use super::padding::{self, Rows};
use super::rope::Rope;
use super::spans::Spans;
use crate::generate::decoder::{Decoder, Input, Prompt};
use crate::rng::Key;

/// What the blocks are told about positions.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Rotary angles per position.
    pub frequencies: Vec<f64>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Longest text.
    pub context: usize,
    /// Whether the embedding table is the head.
    pub tied: bool,
}

/// The network.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// A row for each word, `[V, D]`.
    pub embed: Param<Tensor<2>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the last block.
    pub norm: Norm,
    /// `[D, V]`; absent where the embedding table is the head, or where there is none.
    pub head: Option<Linear>,
    /// Positions.
    #[module(skip)]
    pub reach: Reach,
}

impl CausalLm {
    /// Rows of the embedding table for words `[B, L]`: `[B, L, D]`.
    pub fn embed(&self, ids: Tensor<2, Int>) -> Result<Tensor<3>, NodeError> {
        padding::check_ids(&ids, self.embed.dims()[0])?;
        Ok(embedding(self.embed.val(), ids))
    }

    /// What the blocks are given for `tokens` words of padded samples, `[B, L]`, all words when there
    /// is no mask.
    pub fn context(&self, tokens: usize, mask: Option<&Tensor<2, Int>>) -> Context {
        let device = self.embed.val().device();
        let positions = match mask {
            Some(mask) => padding::positions(mask),
            None => vec![(0..tokens).collect()],
        };
        let rope = Some(Rope::line(&positions, &self.reach.frequencies, &device));
        let seen = AttentionMask::of(self.seen(tokens, tokens));
        let mask = match mask {
            Some(mask) => seen.and_keys(mask),
            None => seen,
        };
        Context { mask, rope, ..Context::default() }
    }

    /// Keys that the last `queries` of so many words see.
    fn seen(&self, queries: usize, keys: usize) -> Spans {
        let spans = Spans::all(queries, keys).causal();
        match self.reach.window {
            Some(window) if window < keys => spans.near(window - 1, 0),
            _ => spans,
        }
    }

    /// Scores of the next word, `[B, L, V]`, from tokens `[B, L, D]` after the last norm; none without a
    /// head.
    pub fn logits(&self, tokens: Tensor<3>, key: Option<&Key>) -> Option<Tensor<3>> {
        match &self.head {
            Some(head) => Some(head.named(tokens, "head", key)),
            None if self.reach.tied => Some(linear(tokens, self.embed.val().transpose(), None)),
            None => None,
        }
    }

    /// Refuses texts that are longer than the context.
    pub fn check_length(&self, tokens: usize) -> Result<(), NodeError> {
        let context = self.reach.context;
        if tokens <= context {
            return Ok(());
        }
        let reason = format!(
            "a text of {tokens} tokens is longer than the context of {context}; cut it, or raise \
             `size.context`"
        );
        Err(NodeError::Data { what: "port `ids`".to_owned(), reason })
    }
}

/// Keys and values of all blocks, and where each row of the batch begins.
#[derive(Debug, Clone)]
pub struct LmCache {
    blocks: Vec<BlockCache>,
    rows: Rows,
    held: usize,
}

impl Decoder for CausalLm {
    type Cache = LmCache;

    fn context(&self) -> usize {
        self.reach.context
    }

    fn prefill(&self, prompt: &Prompt) -> Result<(LmCache, Tensor<2>), NodeError> {
        let x = match &prompt.input {
            Input::Ids(ids) => self.embed(ids.clone())?,
            Input::Embeddings(x) => x.clone(),
        };
        let [batch, tokens, width] = x.dims();
        let rows = Rows::of(prompt.mask.as_ref(), [batch, tokens], self.reach.context)?;
        let context = self.context(tokens, prompt.mask.as_ref());
        let mut cache =
            LmCache { blocks: vec![BlockCache::default(); self.blocks.len()], rows, held: tokens };
        let x = self.through(x, &context, &mut cache);
        let x = x.slice_dim(1, tokens - 1..tokens);
        Ok((cache, self.last(x, [batch, width])?))
    }

    fn step(&self, ids: &[i64], cache: &mut LmCache) -> Result<Tensor<2>, NodeError> {
        let device = self.embed.val().device();
        let data = TensorData::new(ids.to_vec(), [ids.len(), 1]);
        let x = self.embed(Tensor::from_data(data, &device.clone().inner()))?;
        let positions = cache.rows.positions(cache.held);
        let rope = Some(Rope::line(&positions, &self.reach.frequencies, &device));
        cache.held += 1;
        let spans = self.seen(1, cache.held);
        let mask = AttentionMask::of(match cache.rows.runs(cache.held) {
            Some(runs) => spans.within(&runs),
            None => spans,
        });
        let x = self.through(x, &Context { mask, rope, ..Context::default() }, cache);
        let width = x.dims()[2];
        self.last(x, [ids.len(), width])
    }

    fn select(&self, cache: &mut LmCache, rows: &[usize]) {
        let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let device = self.embed.val().device().inner();
        let numbers = Tensor::<1, Int>::from_data(numbers.as_slice(), &device);
        cache.blocks.iter_mut().for_each(|block| block.tokens.select(numbers.clone()));
        cache.rows.select(rows);
    }
}

impl CausalLm {
    fn through(&self, x: Tensor<3>, context: &Context, cache: &mut LmCache) -> Tensor<3> {
        let blocks = self.blocks.iter().zip(&mut cache.blocks);
        blocks.fold(x, |x, (block, cache)| block.step(x, context, Some(cache)))
    }

    fn last(&self, x: Tensor<3>, dims: [usize; 2]) -> Result<Tensor<2>, NodeError> {
        let x = self.norm.forward(x.reshape(dims).unsqueeze_dim(1));
        let logits = self.logits(x, None).ok_or_else(|| NodeError::Option {
            option: "head".to_owned(),
            reason: "a model without a head generates nothing; leave `head: false` out".to_owned(),
        })?;
        Ok(logits.squeeze_dim(1))
    }
}
