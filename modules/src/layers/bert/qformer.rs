//! A Q-Former: blocks in which queries and a text meet.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use super::embeddings::Tables;
use super::heads::WordHead;
use super::network::{TextCache, memory, seen};
use crate::kind::Call;
use crate::layers::block::{self, Block, BlockCache, Context};
use crate::layers::dropout_ops::dropout;
use crate::layers::norm::Norm;
use crate::rng::Key;

/// The network.
#[derive(Module, Debug)]
pub struct QFormer {
    /// Learned queries, `[Q, D]`.
    pub query_tokens: Param<Tensor<2>>,
    /// Those that were added later, `[extra, D]`.
    pub extra_query_tokens: Option<Param<Tensor<2>>>,
    /// Of words and places.
    pub embeddings: Option<Tables>,
    /// Of queries and of sums of embeddings.
    pub norm: Norm,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Scores of words.
    pub mlm: Option<WordHead>,
    pub(crate) dropout: f64,
}

/// A text on its way into the blocks.
#[derive(Debug, Clone)]
pub struct Text {
    /// Sums of words and places, `[B, L, D]`.
    pub tokens: Tensor<3>,
    /// 1 where there is a token, `[B, L]`.
    pub mask: Option<Tensor<2, Int>>,
}

/// Tokens to read, `[B, M, E]`, all or those where the mask is not 0.
pub type Read = (Tensor<3>, Option<Tensor<2, Int>>);

impl QFormer {
    /// The queries for a batch, `[B, Q, D]`.
    pub fn queries(&self, batch: usize) -> Tensor<3> {
        let queries = self.query_tokens.val();
        let queries = match &self.extra_query_tokens {
            Some(extra) => Tensor::cat(vec![queries, extra.val()], 0),
            None => queries,
        };
        let [count, width] = queries.dims();
        queries.unsqueeze::<3>().expand([batch, count, width])
    }

    /// Input of the first block from queries or sums of embeddings, `[B, N, D]`.
    pub fn enter(&self, x: Tensor<3>, name: &str, key: Option<&Key>) -> Tensor<3> {
        dropout(self.norm.forward(x), self.dropout, key.map(|key| key.with(name)).as_ref())
    }

    /// What the blocks are given: the input of the first one, and the context.
    pub fn prepare(
        &self,
        read: Option<Read>,
        text: Option<Text>,
        context: &Context,
    ) -> (Tensor<3>, Context) {
        let key = context.key.as_ref();
        let mut parts = Vec::new();
        let mut masks = Vec::new();
        let mut context = context.clone();
        if let Some((tokens, mask)) = read {
            let queries = self.queries(tokens.dims()[0]);
            context.first = queries.dims()[1];
            parts.push(self.enter(queries, "queries", key));
            context.memory = Some(memory(tokens, mask.as_ref(), context.first));
        }
        if let Some(text) = text {
            masks = self.mask(context.first, &text);
            parts.push(self.enter(text.tokens, "text", key));
        }
        let x = Tensor::cat(parts, 1);
        let tokens = x.dims()[1];
        let mask = (!masks.is_empty()).then(|| Tensor::cat(masks, 1));
        context.mask = seen(false, mask.as_ref(), [tokens, tokens]);
        (x, context)
    }

    /// Queries, text or both, all of which see each other; returns `[B, Q, D]` and `[B, L, D]`.
    pub fn run(
        &self,
        read: Option<Read>,
        text: Option<Text>,
        context: &Context,
        call: &Call,
    ) -> (Option<Tensor<3>>, Option<Tensor<3>>) {
        let (x, context) = self.prepare(read, text, context);
        let (_, x) = block::run(&self.blocks, x, &[], &context, call);
        let (queries, all) = (context.first, x.dims()[1]);
        let part = |from: usize, to: usize| (from < to).then(|| x.clone().slice_dim(1, from..to));
        (part(0, queries), part(queries, all))
    }

    /// Queries, whose keys and values are kept; returns them, `[B, Q, D]`, and what was kept.
    pub fn read(&self, read: Read, context: &Context) -> (Tensor<3>, TextCache) {
        let mut cache = TextCache::default();
        let (x, context) = self.prepare(Some(read), None, context);
        (self.through(x, &context, &mut cache), cache)
    }

    /// The next words of a text, behind the queries and words of the cache; returns `[B, n, D]`.
    /// `tokens` are sums of words and places, the mask `[B, words so far]` counts words alone.
    pub fn step(&self, text: Text, context: &Context, cache: &mut TextCache) -> Tensor<3> {
        let new = text.tokens.dims()[1];
        let queries = self.query_tokens.dims()[0]
            + self.extra_query_tokens.as_ref().map_or(0, |extra| extra.dims()[0]);
        let masks = self.mask(queries, &text);
        let mask = (!masks.is_empty()).then(|| Tensor::cat(masks, 1));
        let x = self.enter(text.tokens, "text", context.key.as_ref());
        let mask = seen(true, mask.as_ref(), [new, cache.seen + new]);
        let context = Context { mask, first: 0, memory: None, ..context.clone() };
        self.through(x, &context, cache)
    }

    /// A whole caption: queries, and words each of which sees the queries and the words before it.
    /// Activations are kept, also under activation checkpointing.
    pub fn caption(&self, read: Read, text: Text, context: &Context) -> (Tensor<3>, Tensor<3>) {
        let (queries, mut cache) = self.read(read, context);
        let key = context.key.as_ref().map(|key| key.with("caption"));
        let context = Context { key, ..context.clone() };
        (queries, self.step(text, &context, &mut cache))
    }

    fn through(&self, mut x: Tensor<3>, context: &Context, cache: &mut TextCache) -> Tensor<3> {
        cache.blocks.resize_with(self.blocks.len(), BlockCache::default);
        cache.seen += x.dims()[1];
        for (number, (block, held)) in self.blocks.iter().zip(&mut cache.blocks).enumerate() {
            let key = context.key.as_ref().map(|key| key.with_number(number as u64));
            x = block.step(x, &Context { key, ..context.clone() }, Some(held));
        }
        x
    }

    /// The mask of so many queries and a text; nothing when all tokens are there.
    fn mask(&self, queries: usize, text: &Text) -> Vec<Tensor<2, Int>> {
        let Some(mask) = text.mask.clone() else { return Vec::new() };
        let batch = mask.dims()[0];
        let ones = Tensor::ones([batch, queries], &mask.device());
        if queries == 0 { vec![mask] } else { vec![ones, mask] }
    }
}
