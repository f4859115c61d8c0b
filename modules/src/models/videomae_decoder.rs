//! VideoMAE V2 decoder: a narrow transformer that paints patches from what the encoder saw.
//!
//! | port      | dims    | what                                                         |
//! |-----------|---------|--------------------------------------------------------------|
//! | `tokens`  | `B V D` | visible tokens of the encoder, after its norm                |
//! | `visible` | `B V`   | indices of the visible patches                               |
//! | `decode`  | `B M`   | indices of the patches to paint                              |
//! | `pixels`  | `B M C` | a patch's pixels: frame, row, column, then RGB; C = 3 t p p  |
//!
//! `decode` is a mask's `hidden`, or with dual masking the `visible` of `masks/running_cell`: a
//! patch may then be both visible and decoded. Tokens are mapped to the decoder's width without
//! bias; a learned mask token stands for each patch to paint; both get a fixed sine-cosine table.
//! What a pixel means is up to the loss (`losses/masked_pixel`).
//! Source: Wang et al. 2023, "VideoMAE V2" (arXiv 2303.16727), section 3.2; Tong et al. 2022,
//! "VideoMAE" (arXiv 2203.12602).

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::fixed_table::FixedTable;
use crate::layers::linear::Linear;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::size::{
    Size, SizeOptions, check_named, check_no_pool, check_share, check_some, side,
};
use crate::layers::tokens;
use crate::layout::Layout;
use crate::published::{count, dims, hidden, is_a, says, sides, videomae_biases};
use crate::tensors::Tensors;

/// Decoders of the published pre-training runs, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// For encoder `g`: 4 blocks of width 512, patches of 14 pixels.
    #[serde(rename = "g")]
    G,
    /// For encoder `b`: 4 blocks of width 384, patches of 16 pixels.
    #[serde(rename = "b")]
    B,
    /// 2 blocks of width 48, patches of 16 pixels.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; those of the pooling have no use here.
    pub size: SizeOptions,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Whether queries and values have biases.
    pub qkv_bias: bool,
    /// ε of the norms of the blocks; Hugging Face writes 1e-12.
    pub norm_eps: f64,
    /// ε of the norm before the head; Hugging Face has 1e-5.
    pub head_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            drop_path: 0.0,
            qkv_bias: true,
            norm_eps: 1e-6,
            head_norm_eps: 1e-6,
        }
    }
}

/// The decoder.
#[derive(Module, Debug)]
pub struct VideoMaeDecoder {
    /// From the encoder's width to the decoder's, without bias.
    pub encoder_to_decoder: Linear,
    /// `[1, 1, D]`, in place of each patch to paint.
    pub mask_token: Param<Tensor<3>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: Norm,
    /// `[D, C]`.
    pub head: Linear,
    /// Positions.
    #[module(skip)]
    pub table: FixedTable,
}

impl VideoMaeDecoder {
    /// Tokens of the first block, `[B, V + M, D]`: visible ones, then those to paint.
    pub fn embed(
        &self,
        tokens: Tensor<3>,
        visible: Tensor<2, Int>,
        decode: Tensor<2, Int>,
    ) -> Tensor<3> {
        let seen = self.encoder_to_decoder.forward(tokens);
        let [batch, _, width] = seen.dims();
        let table = self.table.tensor(&seen);
        let all = table.dims()[1];
        let table = table.expand([batch, all, width]);
        let seen = seen + tokens::gather(table.clone(), visible);
        let painted = self.mask_token.val() + tokens::gather(table, decode);
        Tensor::cat(vec![seen, painted], 1)
    }

    /// Pixels `[B, M, C]` of the last `count` tokens of `[B, V + M, D]`.
    pub fn paint(&self, x: Tensor<3>, count: usize, call: &Call) -> Tensor<3> {
        let (_, x) = block::run(&self.blocks, x, &[], &Context::training(call), call);
        let all = x.dims()[1];
        self.head.forward(self.norm.forward(x.slice_dim(1, all - count..all)))
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::G => Size::vit(4, 512, 8, 2234),
            Preset::B => Size { patch: 16, ..Size::vit(4, 384, 6, 1536) },
            Preset::Tiny => Size { width: 48, depth: 2, hidden: 192, ..Size::TINY },
        };
        let size = Size { tubelet: 2, ..preset }.with(&self.size);
        Size { pool_heads: 1, ..size }
    }
}

impl Kind for Config {
    type Module = VideoMaeDecoder;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("tokens", "B V D")
            .lattice("t h w")
            .about("visible tokens of the encoder")
            .stopped("visible", "B V")
            .int()
            .lattice("t h w")
            .about("indices of the visible patches")
            .stopped("decode", "B M")
            .int()
            .lattice("t h w")
            .about("indices of the patches to paint")
            .output("pixels", format!("B M {}", self.size().voxels()))
            .lattice("t h w")
            .about("their pixels")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.size().check(2);
        problems.extend(check_no_pool(&self.size));
        problems.extend(check_share("drop_path", self.drop_path));
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems.extend(check_named("decoded", side(dims, "M"), all));
        problems.extend(check_some("decode", dims, "M"));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> VideoMaeDecoder {
        let size = self.size();
        let Size { width, depth, heads, hidden, .. } = size;
        let init = &init.with_sigma(size.sigma);
        let lattice = ["t", "h", "w"].map(|symbol| side(dims, symbol));
        let plain = BlocksConfig::videomae(width, depth, heads, hidden).qkv_bias(self.qkv_bias);
        let norm = NormKind::Layer(self.norm_eps);
        let blocks = BlocksConfig { drop_path: self.drop_path, norm, ..plain };
        VideoMaeDecoder {
            encoder_to_decoder: init.linear(side(dims, "D"), width, false, 1.0),
            mask_token: init.normal([1, 1, width], 0.02),
            blocks: block::blocks(&blocks, init),
            norm: Norm::layer(width, self.head_norm_eps, init),
            head: init.linear(width, size.voxels(), true, 1.0),
            table: FixedTable::new(lattice, width, None),
        }
    }

    fn forward(
        &self,
        module: &VideoMaeDecoder,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let decode: Tensor<2, Int> = inputs.take("decode")?;
        let count = decode.dims()[1];
        let x = module.embed(inputs.take("tokens")?, inputs.take("visible")?, decode);
        Ok(Tensors::of("pixels", module.paint(x, count, call)))
    }

    fn layouts(&self) -> Vec<Layout> {
        let inside = |layout: Layout| {
            let names = [
                ("^blocks", "decoder.blocks"),
                ("^norm", "decoder.norm"),
                ("^head", "decoder.head"),
            ];
            layout.rules(&names)
        };
        let official = inside(Layout::new("official").fused().own_biases("attn"));
        vec![official, inside(Layout::new("hf").videomae_blocks("decoder.decoder_layers."))]
    }

    fn published(config: &Value) -> Option<Published> {
        let hf = says(config, "model_type", "videomae") && is_a(config, "VideoMAEForPreTraining");
        let official = says(config, "model", "videomaev2_pretrain");
        let (patch, tubelet) = (count(config, "patch_size")?, count(config, "tubelet_size")?);
        let of = |hf_name: &str, name: &str| {
            count(config, &format!("decoder_{}", if hf { hf_name } else { name }))
        };
        if !hf && !official {
            return None;
        }
        let width = of("hidden_size", "embed_dim")?;
        let mut options = json!({ "size": {
            "patch": patch,
            "tubelet": tubelet,
            "width": width,
            "depth": of("num_hidden_layers", "depth")?,
            "heads": of("num_attention_heads", "num_heads")?,
            "hidden": of("intermediate_size", "hidden").or_else(|| hidden(config, "mlp_ratio", width))?,
        }});
        options["qkv_bias"] = videomae_biases(config).into();
        if hf {
            options["norm_eps"] = config["layer_norm_eps"].clone();
            options["head_norm_eps"] = 1e-5.into();
        }
        let [rows, columns] = sides(config, if hf { "image_size" } else { "img_size" })?;
        let frames = count(config, if hf { "num_frames" } else { "all_frames" })?;
        let encoder = count(config, if hf { "hidden_size" } else { "encoder_embed_dim" })?;
        let lattice = [("t", frames / tubelet), ("h", rows / patch), ("w", columns / patch)];
        let mut dims = dims(lattice);
        dims.extend([("D".to_owned(), encoder)]);
        Some(Published { options, dims })
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        // The head costs as much as a patch embedding of the decoded patches.
        let (seen, painted) = (side(dims, "V"), side(dims, "M"));
        side(dims, "B") as u64 * self.size().flops(painted, seen + painted)
    }
}

/// Kind `models/videomae_decoder`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("videomae_decoder.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use crate::rng::Key;
    use burn::tensor::Device;
    use schemas::node::At;

    fn make(options: serde_json::Value, dims: &[(&str, usize)]) -> (Config, VideoMaeDecoder) {
        let config: Config = serde_json::from_value(options).unwrap();
        let dims = dims.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        assert_eq!(config.check(&dims), []);
        let module = config.init(&dims, &Init::new(1, "decoder", &Device::flex()));
        (config, module)
    }

    #[test]
    fn a_patch_is_painted_the_same_in_any_order() {
        let lattice = [("t", 2), ("h", 2), ("w", 2), ("D", 8), ("V", 2), ("M", 3), ("B", 1)];
        let (_, module) = make(json!({ "size": { "patch": 2, "tubelet": 1 } }), &lattice);
        let device = Device::flex();
        let tokens = Tensor::<3>::from_data([[[0.5; 8], [-1.0; 8]]], &device);
        let visible = Tensor::<2, Int>::from_data([[1, 6]], &device);
        let paint = |decode: [i64; 3]| {
            let decode = Tensor::<2, Int>::from_data([decode], &device);
            let x = module.embed(tokens.clone(), visible.clone(), decode);
            let call = Call::new(Key::new(0, "paint"), At::default());
            module.paint(x, 3, &call).into_data().try_to_vec::<f32>().unwrap()
        };
        let (one, other) = (paint([0, 3, 6]), paint([6, 0, 3]));
        assert_eq!(one.len(), 3 * 12);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(&one[..24], &other[12..]) && near(&one[24..], &other[..12]));
        assert!(!near(&one[..12], &one[12..24]), "positions differ");
    }

    #[test]
    fn the_decoder_of_the_giant_has_the_published_sizes() {
        let lattice = [("t", 8), ("h", 16), ("w", 16), ("D", 1408), ("V", 208), ("M", 1024)];
        let (config, module) = make(json!({ "preset": "g" }), &lattice);
        let all = parameters::list(&module);
        let shape = |key: &str| {
            let layout = &config.layouts()[0];
            let found = all.iter().find(|p| layout.slot(&p.path).key == key);
            found.map(parameters::Parameter::file_shape)
        };
        assert_eq!(shape("encoder_to_decoder.weight"), Some(vec![512, 1408]));
        assert_eq!(shape("mask_token"), Some(vec![1, 1, 512]));
        assert_eq!(shape("decoder.blocks.3.mlp.fc1.weight"), Some(vec![2234, 512]));
        assert_eq!(shape("decoder.head.weight"), Some(vec![1176, 512]));
    }
}
