//! CLIP text tower: a causal transformer that is read out at the end token.
//!
//! | port       | dims    | what                                              |
//! |------------|---------|---------------------------------------------------|
//! | `ids`      | `B L`   | token numbers; each text holds the end token      |
//! | `mask`     | `B L`   | optional: 1 = token, 0 = padding                  |
//! | `tokens`   | `B L D` | after the last block and its norm                 |
//! | `features` | `B D`   | the first end token                               |
//! | `pooled`   | `B P`   | projected, as unit vectors                        |
//!
//! `models/clip` is the other tower. Source: Radford et al. 2021, "CLIP" (arXiv 2103.00020).

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
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 12 blocks of width 512, for B/32 and B/16.
    B,
    /// 12 blocks of width 768, for L/14 and L/14 at 336.
    L,
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
    /// Number of the end token; the last one of the vocabulary when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
    /// Activation of the blocks; OpenAI's weights were trained with `quick_gelu`.
    pub activation: Activation,
    /// ε of the norms.
    pub eps: f64,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: TextSizeOptions::default(),
            end: None,
            activation: Activation::QuickGelu,
            eps: 1e-5,
            drop_path: 0.0,
        }
    }
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TextTowerConfig {
        let preset = match self.preset {
            Preset::B => TextSize::of(49_408, 77, 512),
            Preset::L => TextSize::of(49_408, 77, 768),
            Preset::Tiny => TextSize::TINY,
        };
        let size = preset.with(&self.size);
        TextTowerConfig {
            size,
            eps: self.eps,
            activation: self.activation,
            drop_path: self.drop_path,
            causal: true,
            read: ReadToken::End(self.end.unwrap_or(size.vocab.saturating_sub(1))),
            projection_bias: false,
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
        let hf = Layout::new("hf").clip_blocks("text_model.encoder.layers.").rules(&[
            ("^token_embed", "text_model.embeddings.token_embedding.weight"),
            ("^pos_embed", "text_model.embeddings.position_embedding.weight"),
            ("^norm", "text_model.final_layer_norm"),
            ("^projection", "text_projection"),
        ]);
        let openai = Layout::new("openai").torch_attention(".attn.", ".attn.").rules(&[
            (".norm1.", ".ln_1."),
            (".norm2.", ".ln_2."),
            (".mlp.fc1.", ".mlp.c_fc."),
            (".mlp.fc2.", ".mlp.c_proj."),
            ("^blocks.", "transformer.resblocks."),
            ("^token_embed", "token_embedding.weight"),
            ("^pos_embed", "positional_embedding"),
            ("^norm", "ln_final"),
            ("^projection.weight", "text_projection[in]"),
        ]);
        vec![hf, openai]
    }

    fn published(config: &Value) -> Option<Published> {
        let text = part(config, &["clip"], "text_config", &["clip_text_model"])?;
        let pooled = count_or(text, "projection_dim", 512);
        let vocab = count_or(text, "vocab_size", 49_408);
        // Old files say 2 and mean the largest number of a text.
        let end = text["eos_token_id"].as_u64().unwrap_or(2);
        let options = json!({
            "size": {
                "vocab": vocab,
                "context": count_or(text, "max_position_embeddings", 77),
                "width": count_or(text, "hidden_size", 512),
                "depth": count_or(text, "num_hidden_layers", 12),
                "heads": count_or(text, "num_attention_heads", 8),
                "hidden": count_or(text, "intermediate_size", 2048),
                "pooled": count_or(config, "projection_dim", pooled),
            },
            "end": if end == 2 { vocab as u64 - 1 } else { end },
            "activation": word(text, "hidden_act", "quick_gelu"),
            "eps": text["layer_norm_eps"].as_f64().unwrap_or(1e-5),
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

/// Kind `text/clip`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("clip.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::text_tower::counted;

    /// Parameters of `CLIPTextModelWithProjection`: those of the whole published models, 151 277 313
    /// and 427 616 513, without the image towers and the temperature.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in [(Preset::B, 63_428_096), (Preset::L, 123_650_304)] {
            let config = Config { preset, ..Config::default() };
            assert_eq!(counted(&config.tower()), published, "{preset:?}");
        }
    }

    #[test]
    fn an_old_configuration_ends_texts_with_the_last_token() {
        let old = json!({ "model_type": "clip", "text_config": { "eos_token_id": 2 } });
        let published = Config::published(&old).expect("a published network");
        assert_eq!(published.options["end"], 49_407);
    }
}
