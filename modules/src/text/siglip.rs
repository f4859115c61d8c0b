//! SigLIP text tower: a transformer that sees the whole text and is read out at its last token.
//!
//! | port       | dims    | what                                              |
//! |------------|---------|---------------------------------------------------|
//! | `ids`      | `B L`   | token numbers, padded to the length of training   |
//! | `mask`     | `B L`   | optional: 1 = token, 0 = padding                  |
//! | `tokens`   | `B L D` | after the last block and its norm                 |
//! | `features` | `B D`   | the last token, padding or not                    |
//! | `pooled`   | `B P`   | projected, as unit vectors                        |
//!
//! The published weights were trained on texts padded to 64 tokens, without a mask. SigLIP 2 has the
//! same tower with a larger vocabulary. `models/siglip` and `models/siglip2` are the other towers.
//! Source: Zhai et al. 2023, "SigLIP" (arXiv 2303.15343); Tschannen et al. 2025, "SigLIP 2" (arXiv
//! 2502.14786).

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::mlp::Activation;
use crate::layers::text_tower::{ReadToken, TextSize, TextSizeOptions, TextTower, TextTowerConfig};
use crate::layout::Layout;
use crate::published::{count_or, part, word};
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 12 blocks of width 768, 32 000 tokens.
    Base,
    /// 24 blocks of width 1024, 32 000 tokens.
    Large,
    /// 27 blocks of width 1152, 32 000 tokens.
    So400m,
    /// SigLIP 2: base with 256 000 tokens.
    Siglip2Base,
    /// SigLIP 2: large with 256 000 tokens.
    Siglip2Large,
    /// SigLIP 2: so400m with 256 000 tokens.
    Siglip2So400m,
    /// 4 blocks of width 96.
    #[default]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    pub size: TextSizeOptions,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Activation of the blocks; all published weights were trained with `gelu_tanh`.
    pub activation: Activation,
    /// ε of the norms.
    pub eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: TextSizeOptions::default(),
            drop_path: 0.0,
            activation: Activation::GeluTanh,
            eps: 1e-6,
        }
    }
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TextTowerConfig {
        let base = TextSize::of(32_000, 64, 768);
        let large = TextSize { depth: 24, ..TextSize::of(32_000, 64, 1024) };
        let so = TextSize { depth: 27, heads: 16, hidden: 4304, ..TextSize::of(32_000, 64, 1152) };
        let preset = match self.preset {
            Preset::Base => base,
            Preset::Large => large,
            Preset::So400m => so,
            Preset::Siglip2Base => TextSize { vocab: 256_000, ..base },
            Preset::Siglip2Large => TextSize { vocab: 256_000, ..large },
            Preset::Siglip2So400m => TextSize { vocab: 256_000, ..so },
            Preset::Tiny => TextSize::TINY,
        };
        TextTowerConfig {
            size: preset.with(&self.size),
            eps: self.eps,
            activation: self.activation,
            drop_path: self.drop_path,
            causal: false,
            read: ReadToken::Last,
            projection_bias: true,
        }
    }
}

impl Kind for Config {
    type Module = TextTower;

    fn ports(&self, _: &[String]) -> Ports {
        self.tower().ports()
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        self.tower().problems(dims)
    }

    fn init(&self, _: &Dims, init: &Init) -> TextTower {
        self.tower().init(init)
    }

    fn forward(
        &self,
        module: &TextTower,
        inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        module.read(inputs, call)
    }

    fn layouts(&self) -> Vec<Layout> {
        let hf = Layout::new("hf").clip_blocks("encoder.layers.").rules(&[
            ("^token_embed", "embeddings.token_embedding.weight"),
            ("^pos_embed", "embeddings.position_embedding.weight"),
            ("^norm", "final_layer_norm"),
            ("^projection", "head"),
        ]);
        vec![hf.prefix("text_model.")]
    }

    fn published(config: &Value) -> Option<Published> {
        let models = ["siglip", "siglip2"];
        let alone = ["siglip_text_model", "siglip2_text_model"];
        let text = part(config, &models, "text_config", &alone)?;
        let width = count_or(text, "hidden_size", 768);
        let options = json!({
            "size": {
                "vocab": count_or(text, "vocab_size", 32_000),
                "context": count_or(text, "max_position_embeddings", 64),
                "width": width,
                "depth": count_or(text, "num_hidden_layers", 12),
                "heads": count_or(text, "num_attention_heads", 12),
                "hidden": count_or(text, "intermediate_size", 3072),
                "pooled": count_or(text, "projection_size", width),
            },
            "activation": word(text, "hidden_act", "gelu_pytorch_tanh"),
            "eps": text["layer_norm_eps"].as_f64().unwrap_or(1e-6),
        });
        Some(Published { options, dims: Dims::new() })
    }

    fn vocabulary(&self) -> Option<usize> {
        Some(self.tower().size.vocab)
    }

    fn layers(&self) -> usize {
        self.tower().size.depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        self.tower().flops(dims)
    }
}

/// Kind `text/siglip`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("siglip.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::text_tower::counted;

    /// Parameters of the whole published models, 203 M, 652 M, 878 M, 375 M and 1136 M, without the
    /// image towers.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in [
            (Preset::Base, 203.16e6 - 92.88e6),
            (Preset::Large, 652.15e6 - 315.96e6),
            (Preset::So400m, 877.96e6 - 428.23e6),
            (Preset::Siglip2Base, 375.2e6 - 92.93e6),
            (Preset::Siglip2So400m, 1_136e6 - 427.89e6),
        ] {
            let config = Config { preset, ..Config::default() };
            let off = counted(&config.tower()) as f64 / published - 1.0;
            assert!(off.abs() < 0.01, "{preset:?}: {}", counted(&config.tower()));
        }
    }
}
