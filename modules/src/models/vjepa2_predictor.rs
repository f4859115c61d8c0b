//! V-JEPA 2 predictor: what a teacher would give for hidden patches, from what the encoder saw.
//!
//! | port        | dims    | what                                              |
//! |-------------|---------|---------------------------------------------------|
//! | `tokens`    | `B V D` | visible tokens of the encoder, after its norm     |
//! | `visible`   | `B V`   | indices of the visible patches                    |
//! | `hidden`    | `B M`   | indices of the patches to predict                 |
//! | `predicted` | `B M D` | their tokens, in the encoder's width              |
//!
//! A narrow transformer: visible tokens in its own width, and a learned mask token for each patch to
//! predict. All are told by rotation where they are in the clip, as in the encoder. Released
//! networks hold several mask tokens and use one: the official code the first one, transformers the
//! second one (`mask_token: 1`).
//! Source: Assran et al. 2025, "V-JEPA 2" (arXiv 2506.09985), section 2.1; recipes §6.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::vjepa2::{check_head, computed, hf_blocks, official_blocks};
use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::layers::positions::Lattice;
use crate::layers::rope::Rope;
use crate::layers::size::{
    Size, SizeOptions, check_named, check_no_pool, check_share, check_some, side,
};
use crate::layout::Layout;
use crate::published::{count, dims, hidden, switch};
use crate::tensors::Tensors;

/// The published size, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 12 blocks of width 384, for all encoders.
    Vjepa2,
    /// 2 blocks of width 48.
    #[default]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; those of patches and pooling have no use here.
    pub size: SizeOptions,
    /// Mask tokens held; released networks have 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_tokens: Option<usize>,
    /// The one that is used.
    pub mask_token: usize,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
}

impl Default for Config {
    fn default() -> Self {
        let (preset, size) = (Preset::default(), SizeOptions::default());
        Self { preset, size, mask_tokens: None, mask_token: 0, drop_path: 0.0, qkv_bias: true }
    }
}

/// The predictor.
#[derive(Module, Debug)]
pub struct VJepa2Predictor {
    /// From the encoder's width to the predictor's.
    pub embed: Linear,
    /// `[1, 1, 1, D]` each, start at 0.
    pub mask_tokens: Vec<Param<Tensor<4>>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the last block.
    pub norm: Norm,
    /// Back to the encoder's width.
    pub proj: Linear,
    #[module(skip)]
    lattice: Lattice,
    head: usize,
    mask_token: usize,
}

impl VJepa2Predictor {
    /// Tokens of the first block, `[B, V + M, D]`: visible ones, then `hidden` ones.
    pub fn embed(&self, tokens: Tensor<3>, hidden: usize) -> Tensor<3> {
        let seen = self.embed.forward(tokens);
        let [batch, _, width] = seen.dims();
        let token: Tensor<3> = self.mask_tokens[self.mask_token].val().squeeze_dim(0);
        Tensor::cat(vec![seen, token.expand([batch, hidden, width])], 1)
    }

    /// Rotary positions of patches `[B, N]`.
    pub fn rope(&self, patches: &Tensor<2, Int>) -> Rope {
        let device = self.embed.weight.val().device();
        Rope::lattice(self.lattice, Some(patches), self.head, &device)
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::Vjepa2 => Size::vit(12, 384, 12, 1536),
            Preset::Tiny => Size { width: 48, depth: 2, hidden: 192, ..Size::TINY },
        };
        Size { pool_heads: 1, ..preset.with(&self.size) }
    }

    fn mask_tokens(&self) -> usize {
        let preset = if self.preset == Preset::Vjepa2 { 10 } else { 1 };
        self.mask_tokens.unwrap_or(preset)
    }
}

impl Kind for Config {
    type Module = VJepa2Predictor;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("tokens", "B V D")
            .lattice("t h w")
            .about("visible tokens of the encoder")
            .stopped("visible", "B V")
            .int()
            .lattice("t h w")
            .about("indices of the visible patches")
            .stopped("hidden", "B M")
            .int()
            .lattice("t h w")
            .about("indices of the patches to predict")
            .output("predicted", "B M D")
            .lattice("t h w")
            .about("their tokens")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.size().check(1);
        problems.extend(check_head(self.size()));
        problems.extend(check_no_pool(&self.size));
        problems.extend(check_share("drop_path", self.drop_path));
        for (name, given) in [("patch", self.size.patch), ("tubelet", self.size.tubelet)] {
            if given.is_some() {
                let (option, message) = (format!("size.{name}"), "the encoder cuts the patches");
                problems.push(OptionProblem::new(option, message, "leave it out"));
            }
        }
        let (tokens, used) = (self.mask_tokens(), self.mask_token);
        if !(1..=1 << 10).contains(&tokens) {
            let message = format!("`mask_tokens` is {tokens}, but must be from 1 to 1024");
            problems.push(OptionProblem::new("mask_tokens", message, "10 are published"));
        } else if used >= tokens {
            let message = format!("there is no mask token {used} of {tokens}");
            problems.push(OptionProblem::new("mask_token", message, "they count from 0"));
        }
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems.extend(check_named("hidden", side(dims, "M"), all));
        problems.extend(check_some("hidden", dims, "M"));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> VJepa2Predictor {
        let size = self.size();
        let (Size { width, depth, heads, hidden, .. }, outer) = (size, side(dims, "D"));
        let init = &init.with_sigma(size.sigma);
        let plain = BlocksConfig::vit(width, depth, heads, hidden).qkv_bias(self.qkv_bias);
        let blocks = BlocksConfig { drop_path: self.drop_path, ..plain };
        let token = |_| init.constant([1, 1, 1, width], 0.0);
        VJepa2Predictor {
            embed: init.linear(outer, width, true, 1.0),
            mask_tokens: (0..self.mask_tokens()).map(token).collect(),
            blocks: block::blocks(&blocks, init),
            norm: Norm::layer(width, 1e-6, init),
            proj: init.linear(width, outer, true, 1.0),
            lattice: ["t", "h", "w"].map(|symbol| side(dims, symbol)),
            head: width / heads,
            mask_token: self.mask_token,
        }
    }

    fn forward(
        &self,
        module: &VJepa2Predictor,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let tokens: Tensor<3> = inputs.take("tokens")?;
        let visible: Tensor<2, Int> = inputs.take("visible")?;
        let hidden: Tensor<2, Int> = inputs.take("hidden")?;
        let (seen, asked) = (visible.dims()[1], hidden.dims()[1]);
        let rope = Some(module.rope(&Tensor::cat(vec![visible, hidden], 1)));
        let context = Context { rope, ..Context::training(call) };
        let x = module.embed(tokens, asked);
        let (_, x) = block::run(&module.blocks, x, &[], &context, call);
        let x = module.norm.forward(x.slice_dim(1, seen..seen + asked));
        Ok(Tensors::of("predicted", module.proj.forward(x)))
    }

    fn layouts(&self) -> Vec<Layout> {
        let tokens = self.mask_tokens();
        // From the last one on: the number 1 begins the number 10.
        let token = |layout: Layout, i: usize| {
            let part = format!("predictor.embeddings.mask_tokens[{i}/{tokens}]");
            layout.rule(&format!("^mask_tokens.{i}"), &part)
        };
        let hf = (0..tokens).rev().fold(hf_blocks(Layout::new("hf")), token).rules(&[
            ("^embed.", "predictor.embeddings.predictor_embeddings."),
            ("^blocks.", "predictor.layer."),
            ("^norm.", "predictor.layernorm."),
            ("^proj.", "predictor.proj."),
        ]);
        let official = official_blocks(Layout::new("official"));
        let inside = |layout: Layout, name: &str| {
            layout.rule(&format!("^{name}"), &format!("predictor_{name}"))
        };
        let names = ["embed.", "blocks.", "norm.", "proj."];
        vec![hf, names.into_iter().fold(official, inside)]
    }

    fn published(config: &Value) -> Option<Published> {
        if !computed(config) {
            return None;
        }
        let hf = config["model_type"] == "vjepa2";
        let of = if hf { config } else { config.get("predictor")? };
        let names = if hf {
            ["pred_hidden_size", "pred_num_hidden_layers", "pred_num_attention_heads"]
        } else {
            ["embed_dim", "depth", "num_heads"]
        };
        let [width, depth, heads] = names.map(|name| count(of, name));
        let (width, outer) = (width?, if hf { "hidden_size" } else { "embed_dim" });
        let tokens = if hf { "pred_num_mask_tokens" } else { "num_mask_tokens" };
        let options = json!({
            "size": {
                "width": width,
                "depth": depth?,
                "heads": heads?,
                "hidden": hidden(of, if hf { "pred_mlp_ratio" } else { "mlp_ratio" }, width).unwrap_or(4 * width),
            },
            "mask_tokens": count(of, tokens)?,
            "qkv_bias": switch(config, "qkv_bias", true),
            "mask_token": if hf { 1 } else { count(of, "mask_token_used").unwrap_or(0) },
        });
        let mut dims = dims([("D", count(config, outer)?)]);
        dims.extend(clip(config).unwrap_or_default());
        Some(Published { options, dims })
    }

    fn reference_names(&self) -> &'static [Names] {
        &[
            ("tokens", &["masked_hidden_state", "tokens"]),
            ("visible", &["context_mask", "visible"]),
            ("hidden", &["target_mask", "hidden"]),
            ("predicted", &["predictor_out", "predicted"]),
        ]
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (size, all) = (self.size(), side(dims, "V") + side(dims, "M"));
        let ends = 2 * all * size.width * side(dims, "D");
        side(dims, "B") as u64 * (size.flops(0, all) + ends as u64)
    }
}

/// The lattice of the clips that transformers names.
fn clip(config: &Value) -> Option<Dims> {
    let of = |field: &str| count(config, field);
    let side = of("crop_size")? / of("patch_size")?;
    Some(dims([("t", of("frames_per_clip")? / of("tubelet_size")?), ("h", side), ("w", side)]))
}

/// Kind `models/vjepa2_predictor`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("vjepa2_predictor.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;

    fn dims() -> Dims {
        let sides = [("t", 2), ("h", 4), ("w", 4), ("D", 16), ("V", 3), ("M", 2), ("B", 1)];
        sides.map(|(name, value)| (name.to_owned(), value)).into()
    }

    #[test]
    fn mask_tokens_are_parts_of_one_tensor_or_tensors_of_their_own() {
        let config = Config { mask_tokens: Some(11), ..Config::default() };
        let module = config.init(&dims(), &Init::new(0, "predictor", &Device::flex()));
        let all = parameters::list(&module);
        let [hf, official] = [0, 1].map(|i| config.layouts()[i].clone());
        let slot = |layout: &Layout, i| layout.slot(&format!("mask_tokens.{i}"));
        let of = |i| (slot(&hf, i).key, slot(&hf, i).part);
        assert_eq!(of(10), ("predictor.embeddings.mask_tokens".to_owned(), [10, 11]));
        assert_eq!(of(1), ("predictor.embeddings.mask_tokens".to_owned(), [1, 11]));
        assert_eq!(slot(&official, 10).key, "mask_tokens.10");
        let token = all.iter().find(|p| p.path == "mask_tokens.3").unwrap();
        assert_eq!(slot(&hf, 3).file_shape(token.file_shape()), [11, 1, 1, 48]);
    }

    #[test]
    fn a_mask_token_that_is_not_there_is_refused() {
        let config = Config { mask_token: 1, ..Config::default() };
        assert_eq!(config.check(&dims())[0].option, "mask_token");
        let config = Config { mask_tokens: Some(2), ..config };
        assert_eq!(config.check(&dims()), []);
    }
}
