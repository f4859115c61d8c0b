//! Sizes of text transformers of BERT's family: presets and overrides.

use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextSizeOptions {
    /// Words that have an embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
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
    /// Places that have an embedding: the longest text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<usize>,
    /// Types of tokens that have an embedding; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<usize>,
    /// What the norms add to the variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Deviation that matrices start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
}

/// All numbers of a text transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextSize {
    /// Words that have an embedding, V.
    pub vocab: usize,
    /// Channels of a token, D.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Places that have an embedding.
    pub positions: usize,
    /// Types of tokens that have an embedding.
    pub types: usize,
    /// What the norms add to the variance.
    pub eps: f64,
    /// Deviation that matrices start with.
    pub sigma: f64,
}

impl TextSize {
    /// BERT-base, uncased.
    pub const BASE: Self = Self {
        vocab: 30522,
        width: 768,
        depth: 12,
        heads: 12,
        hidden: 3072,
        positions: 512,
        types: 2,
        eps: 1e-12,
        sigma: 0.02,
    };

    /// BERT-large, uncased.
    pub const LARGE: Self = Self { width: 1024, depth: 24, heads: 16, hidden: 4096, ..Self::BASE };

    /// For laptops.
    pub const TINY: Self = Self {
        vocab: 512,
        width: 64,
        depth: 4,
        heads: 4,
        hidden: 128,
        positions: 64,
        types: 2,
        eps: 1e-12,
        sigma: 0.1,
    };

    /// With the numbers that the options give.
    pub fn with(self, options: &TextSizeOptions) -> Self {
        Self {
            vocab: options.vocab.unwrap_or(self.vocab),
            width: options.width.unwrap_or(self.width),
            depth: options.depth.unwrap_or(self.depth),
            heads: options.heads.unwrap_or(self.heads),
            hidden: options.hidden.unwrap_or(self.hidden),
            positions: options.positions.unwrap_or(self.positions),
            types: options.types.unwrap_or(self.types),
            eps: options.eps.unwrap_or(self.eps),
            sigma: options.sigma.unwrap_or(self.sigma),
        }
    }

    /// Floating point operations of `blocks` blocks on `tokens` tokens of one sample.
    pub fn flops(&self, blocks: usize, tokens: usize) -> u64 {
        let [d, h, n] = [self.width, self.hidden, tokens].map(|number| number as u64);
        blocks as u64 * (2 * n * (4 * d * d + 2 * d * h) + 4 * n * n * d)
    }

    /// Floating point operations of one cross-attention from `tokens` tokens to `memory` tokens of
    /// `width` channels.
    pub fn cross_flops(&self, tokens: usize, memory: usize, width: usize) -> u64 {
        let [d, n, m, e] = [self.width, tokens, memory, width].map(|number| number as u64);
        4 * n * d * d + 4 * m * e * d + 4 * n * m * d
    }

    /// Problems that the numbers show; `words` is the least vocabulary.
    pub fn check(&self, words: usize) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        for (name, value, least, most) in [
            ("vocab", self.vocab, words, 1 << 20),
            ("width", self.width, 1, 1 << 16),
            ("depth", self.depth, 1, 1 << 10),
            ("heads", self.heads, 1, 1 << 12),
            ("hidden", self.hidden, 1, 1 << 20),
            ("positions", self.positions, 1, 1 << 20),
            ("types", self.types, 0, 1 << 10),
        ] {
            if !(least..=most).contains(&value) {
                let message = format!("`{name}` is {value}, not from {least} to {most}");
                let hint = format!("give a number from {least} to {most}");
                problems.push(OptionProblem::new(format!("size.{name}"), message, hint));
            }
        }
        if self.heads > 0 && !self.width.is_multiple_of(self.heads) {
            let message = format!("{} heads do not divide a width of {}", self.heads, self.width);
            let most = self.heads.min(self.width);
            let near = (1..=most).rev().find(|n| self.width.is_multiple_of(*n)).unwrap_or(1);
            let hint = format!("choose a divisor of the width, for example {near}");
            problems.push(OptionProblem::new("size.heads", message, hint));
        }
        for (name, value, most, usual) in
            [("eps", self.eps, 1.0, "1e-12"), ("sigma", self.sigma, 10.0, "0.02")]
        {
            if !(value > 0.0 && value <= most) {
                let message = format!("`{name}` is {value}, not above 0 and up to {most}");
                let hint = format!("{usual} is usual");
                problems.push(OptionProblem::new(format!("size.{name}"), message, hint));
            }
        }
        problems
    }
}

/// A problem when cross-attention has no width to look at.
pub fn check_encoder_width(width: usize) -> Option<OptionProblem> {
    const MOST: usize = 1 << 16;
    let message = format!("`encoder_width` is {width}, not from 1 to {MOST}");
    let hint = "give the channels of the tokens that feed `memory`";
    (!(1..=MOST).contains(&width)).then(|| OptionProblem::new("encoder_width", message, hint))
}

/// A problem when a text is longer than the position table.
pub fn check_length(length: usize, positions: usize) -> Option<OptionProblem> {
    let message = format!("texts of {length} tokens, but the table holds {positions} places");
    let hint = "cut the texts, or set `size.positions`";
    (length > positions).then(|| OptionProblem::new("size.positions", message, hint))
}
