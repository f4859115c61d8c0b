//! Attention: from tokens to themselves, or to a memory of other tokens.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor, activation};

pub use super::attention_mask::AttentionMask;
use super::attention_ops;
pub use super::cache::Cache;
use super::dropout_ops::Draws;
use super::linear::Linear;
use super::norm::{Norm, unit};
use super::rope::Rope;
use crate::init::Init;
use crate::rng::Key;

/// Attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`. Keys and values may have fewer heads,
/// each of which serves as many heads of the queries.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    attention_ops::attend(q, k, v, mask.bias.clone(), mask.spans.clone(), None)
}

/// Attention maps `[B, heads, queries, keys]` of what [`attention`] takes.
pub fn attention_map(q: Tensor<4>, k: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    let [_, heads, _, width] = q.dims();
    let dtype = q.dtype();
    let k = for_heads(k, heads);
    let scores = q.mul_scalar(1.0 / (width as f64).sqrt()).matmul(k.transpose());
    let scores = scores.cast(FloatDType::F32);
    let scores = match mask.added(&scores) {
        Some(added) => scores + added,
        None => scores,
    };
    activation::softmax(scores, 3).cast(dtype)
}

/// Keys or values `[B, kv_heads, M, d]` as they serve these heads, `[B, heads, M, d]`.
fn for_heads(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, held, tokens, width] = x.dims();
    if held == heads {
        return x;
    }
    let x = x.reshape([batch, held, 1, tokens, width]);
    let x = x.expand([batch, held, heads / held, tokens, width]);
    x.reshape([batch, heads, tokens, width])
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Of the queries.
    pub q: bool,
    /// Of the keys.
    pub k: bool,
    /// Of the values.
    pub v: bool,
    /// Of the output.
    pub out: bool,
}

impl Biases {
    /// All.
    pub const ALL: Self = Self { q: true, k: true, v: true, out: true };
    /// None.
    pub const NONE: Self = Self { q: false, k: false, v: false, out: false };
    /// All but that of the keys, which shifts all scores of a query alike (VideoMAE).
    pub const WITHOUT_KEYS: Self = Self { k: false, ..Self::ALL };
    /// That of the output (InternVideo2).
    pub const OUTPUT: Self = Self { out: true, ..Self::NONE };
    /// Those of queries, keys and values (Qwen2).
    pub const INPUTS: Self = Self { out: false, ..Self::ALL };
}

/// Shape and switches of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Channels of the tokens that ask, D.
    pub width: usize,
    /// Channels of the tokens that are asked, E.
    pub memory: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Heads.
    pub heads: usize,
    /// Heads of keys and values; a divisor of `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head: usize,
    /// Biases of the projections.
    pub biases: Biases,
    /// RMSNorm of q and of k over all heads, before they are split, with this ε.
    pub qk_norm: Option<f64>,
    /// Cosine attention with a learned temperature per head (Swin V2, VideoMAE V2).
    pub cosine: bool,
    /// Attention across the heads of each token instead of across tokens.
    pub across_heads: bool,
    /// Dropout of the attention map.
    pub dropout: f64,
    /// Whether there is an output projection; without one `outputs` is the width of all heads.
    pub project: bool,
}

impl AttentionConfig {
    /// Self-attention with all biases.
    pub fn new(width: usize, heads: usize) -> Self {
        Self {
            width,
            memory: width,
            outputs: width,
            heads,
            kv_heads: heads,
            head: width / heads.max(1),
            biases: Biases::ALL,
            qk_norm: None,
            cosine: false,
            across_heads: false,
            dropout: 0.0,
            project: true,
        }
    }
}

/// What attention is given beside tokens.
#[derive(Debug, Default)]
pub struct Look<'a> {
    /// Rotary positions of queries and keys.
    pub rope: Option<&'a Rope>,
    /// Who sees whom; all see all when absent.
    pub mask: Option<&'a AttentionMask>,
    /// Draws of dropout; nothing is dropped when absent.
    pub key: Option<&'a Key>,
    /// Earlier tokens, which come before those that are given.
    pub cache: Option<&'a mut Cache>,
}

/// Multi-head attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[D, heads d]`.
    pub q: Linear,
    /// Keys, `[E, kv_heads d]`.
    pub k: Linear,
    /// Values, `[E, kv_heads d]`.
    pub v: Linear,
    /// Norm of the queries over all heads.
    pub q_norm: Option<Norm>,
    /// Norm of the keys over all heads.
    pub k_norm: Option<Norm>,
    /// Logarithm of the temperature of cosine attention, `[heads, 1, 1]`, at most ln 100.
    pub scale: Option<Param<Tensor<3>>>,
    /// Output projection, `[heads d, outputs]`; V-JEPA 2's pooling has none.
    pub proj: Option<Linear>,
    head: usize,
    across_heads: bool,
    dropout: f64,
}

/// Largest logarithm of the temperature of cosine attention, ln 100 as it was written down.
const MAX_LOG_SCALE: f64 = 4.6052;

impl Attention {
    /// The output projection starts divided by `shrink`.
    pub fn new(config: &AttentionConfig, shrink: f64, init: &Init) -> Self {
        let AttentionConfig { width, memory, heads, kv_heads, head, biases, .. } = *config;
        let (all, shared) = (heads * head, kv_heads * head);
        let norm = |width| config.qk_norm.map(|eps| Norm::rms(width, eps, init));
        Self {
            q: init.linear(width, all, biases.q, 1.0),
            k: init.linear(memory, shared, biases.k, 1.0),
            v: init.linear(memory, shared, biases.v, 1.0),
            q_norm: norm(all),
            k_norm: norm(shared),
            scale: config.cosine.then(|| init.constant([heads, 1, 1], 10f32.ln())),
            proj: config.project.then(|| init.linear(all, config.outputs, biases.out, shrink)),
            head,
            across_heads: config.across_heads,
            dropout: config.dropout,
        }
    }

    /// Tokens `[B, N, D]` ask themselves; returns `[B, N, outputs]`.
    pub fn forward(&self, x: Tensor<3>, look: Look<'_>) -> Tensor<3> {
        self.ask(x.clone(), x.clone(), x, look)
    }

    /// Tokens `[B, N, D]` ask others, `[B, M, E]`, from which keys and values are made; returns
    /// `[B, N, outputs]`.
    pub fn ask(&self, x: Tensor<3>, k: Tensor<3>, v: Tensor<3>, look: Look<'_>) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let (q, k) = self.queries_and_keys(x, k, &look);
        let v = self.by_head(self.v.named(v, "v", look.key));
        let [k, v] = match look.cache {
            Some(cache) => cache.extend(k, v),
            None => [k, v],
        };
        let all = AttentionMask::default();
        let parts =
            if self.across_heads { [q, k, v].map(|t| t.swap_dims(1, 2)) } else { [q, k, v] };
        let [q, k, v] = parts;
        let mask = look.mask.unwrap_or(&all);
        let drop = Draws::of(self.dropout, look.key.map(|key| key.with("map")).as_ref());
        let out = attention_ops::attend(q, k, v, mask.bias.clone(), mask.spans.clone(), drop);
        let width = out.shape().num_elements() / (batch * tokens).max(1);
        let out = out.swap_dims(1, 2).reshape([batch, tokens, width]);
        self.project(out, look.key)
    }

    fn project(&self, out: Tensor<3>, key: Option<&Key>) -> Tensor<3> {
        match &self.proj {
            Some(proj) => proj.named(out, "proj", key),
            None => out,
        }
    }

    /// As [`Attention::ask`], without a look; also returns the attention map `[B, heads, N, M]`.
    pub fn ask_with_map(&self, x: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> (Tensor<3>, Tensor<4>) {
        self.look_with_map(x, k, v, &Look::default())
    }

    /// As [`Attention::ask_with_map`], with a look.
    pub fn look_with_map(
        &self,
        x: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        look: &Look<'_>,
    ) -> (Tensor<3>, Tensor<4>) {
        let map = self.map_of(x, k, look);
        let [batch, heads, tokens, _] = map.dims();
        let out = map.clone().matmul(self.by_head(self.v.forward(v)));
        let out = out.swap_dims(1, 2).reshape([batch, tokens, heads * self.head]);
        (self.project(out, None), map)
    }

    /// The attention map `[B, heads, N, M]` of tokens `[B, N, D]` that ask others `[B, M, E]`.
    pub fn map_of(&self, x: Tensor<3>, k: Tensor<3>, look: &Look<'_>) -> Tensor<4> {
        let (q, k) = self.queries_and_keys(x, k, look);
        attention_map(q, k, look.mask.unwrap_or(&AttentionMask::default()))
    }

    /// How much each of the tokens `[B, N, D]` is looked at by all of them, `[B, N]`: the mean of the map
    /// over heads and rows, so that it sums to 1. No gradient flows through it.
    pub fn received(&self, x: Tensor<3>, rope: Option<&Rope>) -> Tensor<2> {
        // The whole map of a long clip does not fit into memory.
        const AT_ONCE: usize = 256;
        let x = x.detach();
        let [batch, tokens, _] = x.dims();
        let look = Look { rope, ..Look::default() };
        let (q, k) = self.queries_and_keys(x.clone(), x, &look);
        let (q, k) = (q.detach(), k.detach());
        let sum = |start: usize| {
            let q = q.clone().slice_dim(2, start..tokens.min(start + AT_ONCE));
            let map = attention_map(q, k.clone(), &AttentionMask::default());
            map.cast(FloatDType::F32).mean_dim(1).sum_dim(2)
        };
        let none = Tensor::zeros([batch, 1, 1, tokens], &k.device());
        let total = (0..tokens).step_by(AT_ONCE).map(sum).reduce(|a, b| a + b).unwrap_or(none);
        total.div_scalar(tokens.max(1) as f64).reshape([batch, tokens])
    }

    /// By head, `[B, heads, N, d]`, ready for the scale `1 / sqrt(d)`.
    fn queries_and_keys(
        &self,
        x: Tensor<3>,
        k: Tensor<3>,
        look: &Look<'_>,
    ) -> (Tensor<4>, Tensor<4>) {
        let normed = |t: Tensor<3>, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(t),
            None => t,
        };
        let q = self.by_head(normed(self.q.named(x, "q", look.key), &self.q_norm));
        let k = self.by_head(normed(self.k.named(k, "k", look.key), &self.k_norm));
        let (q, k) = match look.rope {
            Some(rope) => (rope.turn(q), rope.turn(k)),
            None => (q, k),
        };
        let Some(scale) = &self.scale else { return (q, k) };
        let factor = scale.val().clamp_max(MAX_LOG_SCALE).exp();
        let factor = factor.mul_scalar((self.head as f64).sqrt()).unsqueeze::<4>();
        (unit(q) * factor, unit(k))
    }

    fn by_head(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, width] = x.dims();
        x.reshape([batch, tokens, width / self.head, self.head]).swap_dims(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spans::Spans;
    use super::*;
    use burn::tensor::{Device, Distribution, Int};

    fn draw<const R: usize>(shape: [usize; R]) -> Tensor<R> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    /// The mean over draws is what comes out without dropout.
    #[test]
    fn dropped_maps_keep_the_mean() {
        let init = Init::new(1, "dropout", &Device::flex());
        let plain = AttentionConfig { kv_heads: 1, ..AttentionConfig::new(8, 2) };
        let attention = Attention::new(&AttentionConfig { dropout: 0.3, ..plain }, 1.0, &init);
        let x = draw([2, 5, 8]).mul_scalar(20.0);
        let whole = attention.forward(x.clone(), Look::default());
        let key = Key::new(1, "draws");
        let one = |number| {
            let key = key.with_number(number);
            attention.forward(x.clone(), Look { key: Some(&key), ..Look::default() })
        };
        assert_eq!(one(0).into_data(), one(0).into_data());
        let off = |x: Tensor<3>| (x - whole.clone()).abs().mean().into_scalar::<f32>();
        let mean = (0..400).map(one).reduce(|a, b| a + b).unwrap().div_scalar(400.0);
        let (first, many) = (off(one(0)), off(mean));
        assert!(first > 0.0 && many < 0.15 * first, "{many} of {first}");
    }

    #[test]
    fn a_mask_with_gaps_hides_the_same_keys_as_one_without() {
        let [q, k, v] = [(); 3].map(|()| draw([2, 2, 4, 8]));
        let present = |rows| Tensor::<2, Int>::from_data(rows, &Device::flex());
        let runs = AttentionMask::of_keys(&present([[1, 1, 1, 0], [0, 1, 1, 0]]), 4);
        assert!(runs.bias.is_none());
        let gaps = AttentionMask::of_keys(&present([[1, 1, 1, 0], [1, 0, 1, 1]]), 4);
        let one = attention(q.clone(), k.clone(), v.clone(), &runs);
        let other = attention(q.clone(), k.clone(), v.clone(), &gaps);
        let off = (one - other.clone()).slice_dim(0, 0..1).abs().max().into_scalar::<f32>();
        assert!(off < 1e-6, "{off}");
        let maps = attention_map(q, k, &gaps);
        let off = (maps.clone().matmul(v) - other).abs().max().into_scalar::<f32>();
        assert!(off < 1e-5, "{off}");
        assert_eq!(maps.slice([1..2, 0..2, 0..4, 1..2]).abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn cached_tokens_count_as_if_they_came_again() {
        let config = AttentionConfig { kv_heads: 1, ..AttentionConfig::new(8, 2) };
        let attention = Attention::new(&config, 1.0, &Init::new(1, "a", &Device::flex()));
        let x = draw([2, 5, 8]);
        let mask = AttentionMask::causal(5);
        let whole = attention.forward(x.clone(), Look { mask: Some(&mask), ..Look::default() });
        let mut cache = Cache::default();
        let mut parts = Vec::new();
        for run in [0..3, 3..4, 4..5] {
            let mask = AttentionMask::of(Spans::all(run.len(), run.end).causal());
            let look = Look { mask: Some(&mask), cache: Some(&mut cache), ..Look::default() };
            parts.push(attention.forward(x.clone().slice_dim(1, run), look));
        }
        let off = (whole - Tensor::cat(parts, 1)).abs().max().into_scalar::<f32>();
        assert!(off < 1e-6, "{off}");
    }
}
