//! Options of ModernBERT's size.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which parts have biases. In published networks only the scores of words have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Biased {
    /// Projections of the attention.
    pub attention: bool,
    /// Gated units.
    pub mlp: bool,
    /// Norms.
    pub norm: bool,
    /// The matrix of the head of words.
    pub head: bool,
    /// Scores of words.
    pub words: bool,
}

impl Biased {
    /// As published.
    pub const PUBLISHED: Self =
        Self { attention: false, mlp: false, norm: false, head: false, words: true };
}

impl Default for Biased {
    fn default() -> Self {
        Self::PUBLISHED
    }
}

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SizeOptions {
    /// Words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Channels of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Layers of the whole network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden channels of the gated units.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Deviation that matrices start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
}
