//! Options of ModernBERT's size.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
