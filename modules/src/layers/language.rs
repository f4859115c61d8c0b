//! Sizes of causal language models: presets and overrides.

use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

use super::rope::Rescale;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// Llama 2, 7B.
    #[serde(rename = "llama2_7b")]
    Llama2,
    /// Llama 3, 8B.
    #[serde(rename = "llama3_8b")]
    Llama3,
    /// Llama 3.2, 1B.
    #[serde(rename = "llama3.2_1b")]
    Llama32,
    /// Mistral Instruct v0.2, 7B, which has no window.
    #[serde(rename = "mistral_7b")]
    Mistral,
    /// Qwen2, 0.5B.
    #[serde(rename = "qwen2_0.5b")]
    Qwen2Half,
    /// Qwen2, 1.5B.
    #[serde(rename = "qwen2_1.5b")]
    Qwen2OneHalf,
    /// Qwen2, 7B.
    #[serde(rename = "qwen2_7b")]
    Qwen2Seven,
    /// Vicuna v1.5, 7B: a fine-tuned Llama 2.
    #[serde(rename = "vicuna_7b")]
    Vicuna,
    /// 4 blocks of width 96 with 4 heads, 2 of keys; 512 words.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Which projections of the attention have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Biased {
    /// None (Llama, Mistral).
    #[default]
    None,
    /// Queries, keys and values (Qwen2).
    Inputs,
    /// These and the output.
    All,
}

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageOptions {
    /// Words of the vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
    /// Channels of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Heads of keys and values, a divisor of `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Channels of a head; the width over the heads when width or heads are given without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<usize>,
    /// Hidden channels of the MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Longest text, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Added to the mean square in the norms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Deviation that matrices start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
}

/// All numbers and switches of a causal language model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanguageSize {
    /// Words of the vocabulary, V.
    pub vocabulary: usize,
    /// Channels of a token, D.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Longest text, in tokens.
    pub context: usize,
    /// Added to the mean square in the norms.
    pub eps: f64,
    /// Deviation that matrices start with.
    pub sigma: f64,
    /// Base of the rotary angles.
    pub theta: f64,
    /// Llama 3.1's rescaling of these angles.
    pub rescale: Option<Rescale>,
    /// Biases of the attention.
    pub biases: Biased,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

/// Llama 3.2's rescaling.
const LLAMA_32: Rescale = Rescale {
    factor: 32.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

impl Preset {
    /// All numbers of the preset.
    pub const fn size(self) -> LanguageSize {
        let llama2 = LanguageSize {
            vocabulary: 32_000,
            width: 4096,
            depth: 32,
            heads: 32,
            kv_heads: 32,
            head: 128,
            hidden: 11_008,
            context: 4096,
            eps: 1e-5,
            sigma: 0.02,
            theta: 1e4,
            rescale: None,
            biases: Biased::None,
            tied: false,
        };
        let llama3 = LanguageSize {
            vocabulary: 128_256,
            kv_heads: 8,
            hidden: 14_336,
            context: 8192,
            theta: 5e5,
            ..llama2
        };
        match self {
            Self::Llama2 | Self::Vicuna => llama2,
            Self::Llama3 => llama3,
            Self::Llama32 => LanguageSize {
                width: 2048,
                depth: 16,
                head: 64,
                hidden: 8192,
                context: 131_072,
                rescale: Some(LLAMA_32),
                tied: true,
                ..llama3
            },
            Self::Mistral => {
                LanguageSize { kv_heads: 8, hidden: 14_336, context: 32_768, theta: 1e6, ..llama2 }
            }
            Self::Qwen2Half => qwen2([151_936, 896, 24, 14, 2, 64, 4864], true),
            Self::Qwen2OneHalf => qwen2([151_936, 1536, 28, 12, 2, 128, 8960], true),
            Self::Qwen2Seven => qwen2([152_064, 3584, 28, 28, 4, 128, 18_944], false),
            Self::Tiny => LanguageSize {
                vocabulary: 512,
                width: 96,
                depth: 4,
                heads: 4,
                kv_heads: 2,
                head: 24,
                hidden: 256,
                context: 512,
                sigma: 0.1,
                ..llama2
            },
        }
    }
}

/// A Qwen2 of `[words, width, depth, heads, heads of keys, channels of a head, hidden]`.
const fn qwen2(sizes: [usize; 7], tied: bool) -> LanguageSize {
    let [vocabulary, width, depth, heads, kv_heads, head, hidden] = sizes;
    LanguageSize {
        vocabulary,
        width,
        depth,
        heads,
        kv_heads,
        head,
        hidden,
        context: 131_072,
        eps: 1e-6,
        sigma: 0.02,
        theta: 1e6,
        rescale: None,
        biases: Biased::Inputs,
        tied,
    }
}

impl LanguageSize {
    /// With the numbers that the options give.
    pub fn with(self, options: &LanguageOptions) -> Self {
        let width = options.width.unwrap_or(self.width);
        let heads = options.heads.unwrap_or(self.heads);
        let same = (width, heads) == (self.width, self.heads);
        let head = if same { self.head } else { width / heads.max(1) };
        Self {
            vocabulary: options.vocabulary.unwrap_or(self.vocabulary),
            width,
            depth: options.depth.unwrap_or(self.depth),
            heads,
            kv_heads: options.kv_heads.unwrap_or(self.kv_heads.min(heads)),
            head: options.head.unwrap_or(head),
            hidden: options.hidden.unwrap_or(self.hidden),
            context: options.context.unwrap_or(self.context),
            eps: options.eps.unwrap_or(self.eps),
            sigma: options.sigma.unwrap_or(self.sigma),
            ..self
        }
    }

    /// Floating point operations of one forward pass over a text of this length, without the head.
    pub fn flops(&self, tokens: usize) -> u64 {
        let [d, n, h] = [self.width, tokens, self.hidden].map(|side| side as u64);
        let [all, shared] = [self.heads, self.kv_heads].map(|heads| (heads * self.head) as u64);
        let block = 2 * n * d * (2 * all + 2 * shared + 3 * h) + 4 * n * n * all;
        self.depth as u64 * block
    }

    /// Problems that the numbers show.
    pub fn check(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: String| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        for (name, value, most) in [
            ("vocabulary", self.vocabulary, 1 << 24),
            ("width", self.width, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head", self.head, 1 << 12),
            ("hidden", self.hidden, 1 << 20),
            ("context", self.context, 1 << 26),
        ] {
            if !(1..=most).contains(&value) {
                let message = format!("`{name}` is {value}, but must be from 1 to {most}");
                refuse(&format!("size.{name}"), message, format!("give a number up to {most}"));
            }
        }
        let Self { heads, kv_heads, head, .. } = *self;
        if kv_heads > 0 && !heads.is_multiple_of(kv_heads) {
            let message = format!("{kv_heads} heads of keys do not divide {heads} heads");
            let near =
                (1..=kv_heads.min(heads)).rev().find(|n| heads.is_multiple_of(*n)).unwrap_or(1);
            refuse("size.kv_heads", message, format!("write a divisor, for example {near}"));
        }
        if !head.is_multiple_of(2) {
            let message = format!("a head has {head} channels, but rotary positions turn pairs");
            refuse("size.head", message, format!("write an even number, for example {}", head + 1));
        }
        if !(self.eps > 0.0 && self.eps <= 1.0) {
            let message = format!("`eps` is {}, not above 0 and up to 1", self.eps);
            refuse("size.eps", message, "1e-5 is usual".to_owned());
        }
        if !(self.sigma > 0.0 && self.sigma <= 10.0) {
            let message = format!("`sigma` is {}, not above 0 and up to 10", self.sigma);
            refuse("size.sigma", message, "0.02 is usual".to_owned());
        }
        if !(self.theta >= 1.0 && self.theta.is_finite()) {
            let message = format!("`theta` is {}, but must be at least 1", self.theta);
            refuse("theta", message, "10000 is usual".to_owned());
        }
        if self.rescale.is_some_and(|rescale| !usable(&rescale)) {
            let message = "`rescale` slows no pair of channels down".to_owned();
            let hint = "`factor` is at least 1, and `high_freq_factor` above `low_freq_factor`";
            refuse("rescale", message, hint.to_owned());
        }
        problems
    }
}

fn usable(rescale: &Rescale) -> bool {
    let Rescale { factor, low_freq_factor: low, high_freq_factor: high, .. } = *rescale;
    let finite = factor.is_finite() && high.is_finite();
    finite
        && factor >= 1.0
        && 0.0 <= low
        && low < high
        && rescale.original_max_position_embeddings > 0
}
