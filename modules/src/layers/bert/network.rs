//! BERT, or a run of its blocks.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemas::node::NodeError;

use super::embeddings::Tables;
use super::heads::{WordHead, first_token};
use crate::kind::Call;
use crate::layers::attention::AttentionMask;
use crate::layers::block::{self, Block, BlockCache, Context, Memory};
use crate::layers::dropout_ops::dropout;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::layers::spans::Spans;
use crate::rng::Key;

/// BERT. A part of it has no embeddings, or not all blocks.
#[derive(Module, Debug)]
pub struct Bert {
    /// Of words, places and types.
    pub embeddings: Option<Tables>,
    /// Of the sum of the embeddings.
    pub norm: Option<Norm>,
    /// The blocks that are held.
    pub blocks: Vec<Block>,
    /// Of the first token, `[D, D]`.
    pub pooler: Option<Linear>,
    /// Scores of words.
    pub mlm: Option<WordHead>,
    /// Whether the second text follows the first, `[D, 2]`.
    pub nsp: Option<Linear>,
    pub(crate) first: usize,
    pub(crate) dropout: f64,
}

/// What earlier tokens left in all blocks, while a text is generated.
#[derive(Debug, Clone, Default)]
pub struct TextCache {
    /// By block.
    pub blocks: Vec<BlockCache>,
    /// Tokens seen.
    pub seen: usize,
}

impl TextCache {
    /// The samples of these numbers, in this order.
    pub fn select(&mut self, samples: &Tensor<1, Int>) {
        self.blocks.iter_mut().for_each(|block| block.tokens.select(samples.clone()));
    }
}

/// Tokens `[B, M, E]` to attend to from `queries` tokens, all or those where the mask `[B, M]` is
/// not 0.
pub fn memory(tokens: Tensor<3>, mask: Option<&Tensor<2, Int>>, queries: usize) -> Memory {
    let mask = mask.map(|mask| AttentionMask::of_keys(mask, queries)).unwrap_or_default();
    Memory { tokens, mask }
}

/// Which of `keys` tokens the last `queries` ones see: those of the mask `[B, keys]`, none that comes
/// later when causal.
pub fn seen(
    causal: bool,
    mask: Option<&Tensor<2, Int>>,
    [queries, keys]: [usize; 2],
) -> AttentionMask {
    let spans = Spans::all(queries, keys);
    let all = match (causal, mask) {
        (true, _) => AttentionMask::of(spans.causal()),
        (false, Some(_)) => AttentionMask::of(spans),
        (false, None) => AttentionMask::default(),
    };
    match mask {
        Some(mask) => all.and_keys(mask),
        None => all,
    }
}

impl Bert {
    /// Rows of the word embeddings for `[B, L]` ids; returns `[B, L, D]`.
    pub fn words(&self, ids: Tensor<2, Int>) -> Result<Tensor<3>, NodeError> {
        self.tables()?.of_words(ids)
    }

    /// Input of the first block from words, `[B, L, D]`, after `first` earlier tokens.
    pub fn embed(
        &self,
        words: Tensor<3>,
        types: Option<Tensor<2, Int>>,
        first: usize,
        key: Option<&Key>,
    ) -> Result<Tensor<3>, NodeError> {
        let x = self.tables()?.place(words, types, first)?;
        let x = self.norm.as_ref().map_or_else(|| x.clone(), |norm| norm.forward(x.clone()));
        Ok(dropout(x, self.dropout, key.map(|key| key.with("embeddings")).as_ref()))
    }

    /// Runs the blocks of these numbers, counted from the first one of the whole network.
    pub fn run(
        &self,
        x: Tensor<3>,
        numbers: Range<usize>,
        context: &Context,
        call: &Call,
    ) -> Tensor<3> {
        let held = &self.blocks[numbers.start - self.first..numbers.end - self.first];
        block::run(held, x, &[], context, call).1
    }

    /// Feature of each sample from tokens `[B, L, D]`: the first token, through the pooler where
    /// there is one.
    pub fn pool(&self, x: Tensor<3>) -> Tensor<2> {
        let first = first_token(x);
        match &self.pooler {
            Some(pooler) => pooler.forward(first).tanh(),
            None => first,
        }
    }

    /// The table of word embeddings, `[V, D]`.
    pub fn table(&self) -> Result<Tensor<2>, NodeError> {
        Ok(self.tables()?.words.val())
    }

    /// The next tokens of a text, `[B, n]`, behind those of the cache; returns `[B, n, D]`. The mask
    /// `[B, all]` covers earlier tokens too.
    pub fn step(
        &self,
        ids: Tensor<2, Int>,
        mask: Option<&Tensor<2, Int>>,
        tokens: Option<(Tensor<3>, Option<&Tensor<2, Int>>)>,
        cache: &mut TextCache,
    ) -> Result<Tensor<3>, NodeError> {
        let new = ids.dims()[1];
        let mut x = self.embed(self.words(ids)?, None, cache.seen, None)?;
        let context = Context {
            mask: seen(true, mask, [new, cache.seen + new]),
            memory: tokens.map(|(tokens, mask)| memory(tokens, mask, new)),
            ..Context::default()
        };
        cache.blocks.resize_with(self.blocks.len(), BlockCache::default);
        for (block, held) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.step(x, &context, Some(held));
        }
        cache.seen += new;
        Ok(x)
    }

    fn tables(&self) -> Result<&Tables, NodeError> {
        let missing = || NodeError::MissingInput { port: "hidden".to_owned() };
        self.embeddings.as_ref().ok_or_else(missing)
    }
}
