//! Low-rank adapters: which linear layers of a node get one.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::glob::fits;

/// Low-rank adapters beside matrices of linear layers (LoRA): new ones, which need `rank`, `alpha`
/// and `on`, or published ones, which need `from` alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Folder of published adapters, as PEFT writes it: `adapter_config.json` and
    /// `adapter_model.safetensors`. It says rank, alpha, layers and dropout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Columns of the first matrix of an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Numerator of the adapter's factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Dropout before the first matrix, when the node trains; 0 when absent. Beside `from` it may
    /// differ from the folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Patterns of parameter paths of linear layers, for example `blocks.*.attn.q`; a star stands
    /// for any text. A pattern without a dot is the last name of a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<String>>,
    /// Whether the factor is `alpha / sqrt(rank)` (rsLoRA) instead of `alpha / rank`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_stabilised: Option<bool>,
}

/// Adapters of a node, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Folder that their matrices are loaded from.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// Columns of the first matrix of an adapter.
    pub rank: usize,
    /// Numerator of the adapter's factor.
    pub alpha: f64,
    /// Dropout before the first matrix, when the node trains; heads and single layers have none.
    #[serde(default)]
    pub dropout: f64,
    /// Patterns of the layers, as in [`LoraConfig`].
    pub on: Vec<String>,
    /// Whether the factor is `alpha / sqrt(rank)` (rsLoRA) instead of `alpha / rank`.
    #[serde(default)]
    pub rank_stabilised: bool,
}

/// The largest rank.
pub const MAX_RANK: usize = 4096;

impl LoraConfig {
    /// Options of new adapters, or the names of those that are missing.
    pub fn options(&self) -> Result<Lora, Vec<&'static str>> {
        let Self { rank: Some(rank), alpha: Some(alpha), on: Some(on), .. } = self else {
            let all = [
                ("rank", self.rank.is_none()),
                ("alpha", self.alpha.is_none()),
                ("on", self.on.is_none()),
            ];
            return Err(all.iter().filter(|(_, absent)| *absent).map(|(name, _)| *name).collect());
        };
        Ok(Lora {
            from: None,
            rank: *rank,
            alpha: *alpha,
            dropout: self.dropout.unwrap_or(0.0),
            on: on.clone(),
            rank_stabilised: self.rank_stabilised.unwrap_or(false),
        })
    }
}

impl Lora {
    /// The factor of the adapter's output.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Whether a linear layer of this path gets an adapter.
    pub fn covers(&self, layer: &str) -> bool {
        self.on.iter().any(|pattern| matches(pattern, layer))
    }

    /// Patterns that cover none of the layers.
    pub fn useless<'a>(&'a self, layers: &'a [String]) -> impl Iterator<Item = &'a String> {
        self.on.iter().filter(|pattern| !layers.iter().any(|layer| matches(pattern, layer)))
    }
}

/// Whether a pattern covers a path. Stars stand for any text; a pattern without a dot is compared
/// with the last name.
fn matches(pattern: &str, path: &str) -> bool {
    if !pattern.contains('.') {
        return fits(pattern, path.rsplit('.').next().unwrap_or(path));
    }
    fits(pattern, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text_and_a_name_for_the_last_one() {
        assert!(matches("q", "blocks.0.attn.q"));
        assert!(!matches("q", "blocks.0.attn.q.norm"));
        assert!(matches("blocks.*.attn.*", "blocks.11.attn.proj"));
        assert!(!matches("blocks.*.attn.q", "blocks.0.cross.attn.k"));
        assert!(matches("*.attn.q", "blocks.0.cross.attn.q"));
        assert!(matches("*", "head"));
    }
}
