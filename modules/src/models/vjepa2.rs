//! V-JEPA 2 encoder: a video transformer whose attention knows where tokens are by rotation.
//!
//! | port        | dims        | what                                                          |
//! |-------------|-------------|---------------------------------------------------------------|
//! | `video`     | `B 3 T H W` | RGB, ImageNet mean and deviation                              |
//! | `visible`   | `B V`       | optional: indices of visible patches, time-major, ascending   |
//! | `layers`    | `K B S D`   | tapped residual stream, ascending, each through the last norm |
//! | `tokens`    | `B S D`     | after the last block and its norm                             |
//! | `pooled`    | `B D`       | mean over tokens                                              |
//! | `attention` | `B T/t A`   | without `visible`: what each patch receives in the last block |
//!
//! S = V with `visible`, else T/t A with A = H/p W/p. No token reads out the clip, so `attention` is the
//! mean over heads and over all tokens that look; it sums to 1 over a clip. There is no class token and no position table: queries and
//! keys turn with frame, row and column, a third of each head each, so that clips of any extent fit.
//! `models/vjepa2_predictor` is the other half of the training, `models/attentive_pooler` a classifier.
//! Source: Assran et al. 2025, "V-JEPA 2" (arXiv 2506.09985); recipes §6.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::norm::Norm;
use crate::layers::patch_embed::PatchEmbed;
use crate::layers::positions::Lattice;
use crate::layers::rope::Rope;
use crate::layers::size::{
    Size, SizeOptions, check_named, check_no_pool, check_share, check_taps, side,
};
use crate::layers::tokens;
use crate::layout::Layout;
use crate::published::{count, hidden, only, switch};
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 40 blocks of width 1408 (1 G parameters).
    #[serde(rename = "g")]
    G,
    /// 32 blocks of width 1280 (600 M parameters).
    #[serde(rename = "h")]
    H,
    /// 24 blocks of width 1024 (300 M parameters).
    #[serde(rename = "l")]
    L,
    /// 4 blocks of width 96.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from; patches of 2 frames and 16 x 16 pixels.
    pub preset: Preset,
    /// Numbers that replace those of the preset; those of the pooling have no use here.
    pub size: SizeOptions,
    /// Blocks whose output `layers` holds; 4, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
}

impl Default for Config {
    fn default() -> Self {
        let (preset, size) = (Preset::default(), SizeOptions::default());
        Self { preset, size, taps: None, tap_interval: 1.0, drop_path: 0.0, qkv_bias: true }
    }
}

/// The encoder.
#[derive(Module, Debug)]
pub struct VJepa2 {
    /// Convolution to tokens.
    pub patch_embed: PatchEmbed,
    /// The stack.
    pub blocks: Vec<Block>,
    /// After the last block.
    pub norm: Norm,
    #[module(skip)]
    lattice: Lattice,
    head: usize,
}

impl VJepa2 {
    /// Tokens of the first block, `[B, S, D]`, and what the blocks are told of their places.
    pub fn embed(&self, video: Tensor<5>, visible: Option<Tensor<2, Int>>) -> (Tensor<3>, Context) {
        let x = self.patch_embed.forward(video);
        let rope = Rope::lattice(self.lattice, visible.as_ref(), self.head, &x.device());
        let x = match visible {
            Some(visible) => tokens::gather(x, visible),
            None => x,
        };
        (x, Context { rope: Some(rope), ..Context::default() })
    }
}

/// Rules of the layout of transformers for blocks named as in V-JEPA 2.
pub(crate) fn hf_blocks(layout: Layout) -> Layout {
    let names = [
        (".attn.q.", "query"),
        (".attn.k.", "key"),
        (".attn.v.", "value"),
        (".attn.proj.", "proj"),
    ];
    let rule =
        |layout: Layout, (from, to): (&str, &str)| layout.rule(from, &format!(".attention.{to}."));
    names.into_iter().fold(layout, rule)
}

/// Rules of the official layout for blocks: projections and their biases are fused.
pub(crate) fn official_blocks(layout: Layout) -> Layout {
    layout.fused().rules(&[
        (".attn.q.bias", ".attn.qkv.bias[0/3]"),
        (".attn.k.bias", ".attn.qkv.bias[1/3]"),
        (".attn.v.bias", ".attn.qkv.bias[2/3]"),
    ])
}

/// Whether the switches of a configuration are those that encoder and predictor have.
pub(crate) fn computed(config: &Value) -> bool {
    let eps = json!(1e-6);
    let known = [("hidden_act", json!("gelu")), ("layer_norm_eps", eps.clone()), ("ln_eps", eps)];
    only(config, &known)
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::G => Size::vit(40, 1408, 22, 6144),
            Preset::H => Size::vit(32, 1280, 16, 5120),
            Preset::L => Size::vit(24, 1024, 16, 4096),
            Preset::Tiny => Size::TINY,
        };
        let size = Size { tubelet: 2, patch: 16, ..preset }.with(&self.size);
        Size { pool_heads: 1, pooled: size.width, ..size }
    }

    fn taps(&self) -> usize {
        self.taps.unwrap_or(self.size().depth.min(4))
    }
}

impl Kind for Config {
    type Module = VJepa2;

    fn ports(&self, wired: &[String]) -> Ports {
        let size = self.size();
        let masked = wired.iter().any(|port| port == "visible");
        let seen = if masked { "V".to_owned() } else { size.tokens() };
        let (taps, width) = (self.taps(), size.width);
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .stopped("visible", "B V")
            .int()
            .optional()
            .lattice(size.lattice())
            .about("indices of visible patches, ascending")
            .output("layers", format!("{taps} B {seen} {width}"))
            .lattice(size.lattice())
            .about("tapped blocks, ascending, each through the last norm")
            .output("tokens", format!("B {seen} {width}"))
            .lattice(size.lattice())
            .about("after the last block and its norm")
            .output("pooled", format!("B {width}"))
            .about("mean over tokens");
        if masked {
            return ports;
        }
        ports
            .plain("attention", format!("B {} {}", size.times(), size.places()))
            .lattice(size.lattice())
            .about("attention that each patch receives in the last block")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(1);
        problems.extend(check_head(size));
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_no_pool(&self.size));
        let all: usize = if problems.is_empty() { size.cut(dims).iter().product() } else { 0 };
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> VJepa2 {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let Size { width, depth, heads, hidden, .. } = size;
        let plain = BlocksConfig::vit(width, depth, heads, hidden).qkv_bias(self.qkv_bias);
        let blocks = BlocksConfig { drop_path: self.drop_path, ..plain };
        VJepa2 {
            patch_embed: PatchEmbed::new(width, size.tubelet, size.patch, init),
            blocks: block::blocks(&blocks, init),
            norm: Norm::layer(width, 1e-6, init),
            lattice: size.cut(dims),
            head: width / heads,
        }
    }

    fn forward(
        &self,
        module: &VJepa2,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let visible = inputs.take_if("visible")?;
        let masked = visible.is_some();
        let (first, context) = module.embed(inputs.take("video")?, visible);
        let context = Context { rope: context.rope, ..Context::training(call) };
        let depth = self.size().depth;
        let taps = block::taps(depth, self.taps(), self.tap_interval);
        // The last block's attention is told by what enters that block.
        let mut kept = taps.clone();
        kept.extend(depth.checked_sub(2).filter(|block| !masked && !taps.contains(block)));
        let (found, x) = block::run(&module.blocks, first.clone(), &kept, &context, call);
        kept.sort_unstable();
        let at = |block: usize| {
            kept.iter().position(|kept| *kept == block).map(|place| found[place].clone())
        };
        let x = module.norm.forward(x);
        let layer = |tap: &usize| match at(*tap) {
            Some(layer) if tap + 1 < depth => module.norm.forward(layer),
            _ => x.clone(),
        };
        let layers: Tensor<4> = Tensor::stack(taps.iter().map(layer).collect::<Vec<_>>(), 0);
        let pooled: Tensor<2> = x.clone().mean_dim(1).squeeze_dim(1);
        let outputs = Tensors::of("layers", layers).with("tokens", x.clone());
        let outputs = outputs.with("pooled", pooled);
        let Some(last) = module.blocks.last().filter(|_| !masked) else { return Ok(outputs) };
        let before = depth.checked_sub(2).and_then(at).unwrap_or(first);
        let received = last.received(before, &context);
        let [frames, rows, columns] = module.lattice;
        let shape = [received.dims()[0], frames, rows * columns];
        Ok(outputs.with("attention", received.reshape(shape)))
    }

    fn layouts(&self) -> Vec<Layout> {
        let hf = hf_blocks(Layout::new("hf")).rules(&[
            ("^blocks.", "encoder.layer."),
            ("^patch_embed.", "encoder.embeddings.patch_embeddings."),
            ("^norm.", "encoder.layernorm."),
        ]);
        vec![hf, official_blocks(Layout::new("official"))]
    }

    fn published(config: &Value) -> Option<Published> {
        if !computed(config) {
            return None;
        }
        let official = config.get("use_rope").is_some() && config.get("embed_dim").is_some();
        let names = match config["model_type"].as_str() {
            Some("vjepa2") => ["hidden_size", "num_hidden_layers", "num_attention_heads"],
            None if official => ["embed_dim", "depth", "num_heads"],
            _ => return None,
        };
        let [width, depth, heads] = names.map(|name| count(config, name));
        let width = width?;
        let size = json!({
            "patch": count(config, "patch_size")?,
            "tubelet": count(config, "tubelet_size")?,
            "width": width,
            "depth": depth?,
            "heads": heads?,
            "hidden": hidden(config, "mlp_ratio", width).unwrap_or(4 * width),
        });
        let options = json!({ "size": size, "qkv_bias": switch(config, "qkv_bias", true) });
        Some(Published { options, dims: Dims::new() })
    }

    fn reference_names(&self) -> &'static [Names] {
        // In transformers masks are the predictor's, what is pooled is the pooler's, and no norm comes after
        // single blocks.
        &[("visible", &["visible"]), ("pooled", &[]), ("layers", &[])]
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let all: usize = self.size().cut(dims).iter().product();
        let kept = dims.get("V").copied().unwrap_or(all);
        side(dims, "B") as u64 * self.size().flops(all, kept)
    }
}

/// A problem when heads are too narrow to turn with three axes.
pub(crate) fn check_head(size: Size) -> Option<OptionProblem> {
    let head = size.width / size.heads.max(1);
    let message = format!("heads of {head} channels cannot turn with three axes");
    let hint = "choose fewer heads: each needs 6 channels";
    (head < 6).then(|| OptionProblem::new("size.heads", message, hint))
}

/// Kind `models/vjepa2`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("vjepa2.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{attentive_pooler, vjepa2_predictor};
    use crate::parameters;
    use crate::rng::Key;
    use burn::tensor::{Device, Distribution};
    use schemas::node::At;

    fn dims(sides: &[(&str, usize)]) -> Dims {
        sides.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn counted<K: Kind>(options: Value, sides: &[(&str, usize)]) -> f64 {
        let kind: K = serde_json::from_value(options).unwrap();
        let dims = dims(sides);
        assert_eq!(kind.check(&dims), []);
        parameters::count(&kind.init(&dims, &Init::new(0, "count", &Device::flex()))) as f64
    }

    /// The 326.0 M of facebook/vjepa2-vitl-fpc64-256 are encoder and predictor; the 1,013,267,968 of
    /// ViT-g are the encoder of V-JEPA 2.1, which has the same trunk. Of the others the collection of
    /// facebook/v-jepa-2 tells one digit: 0.7 B for ViT-H, and 0.4 B for ViT-L with the pooling for the
    /// 174 classes of SSv2.
    #[test]
    fn parameter_counts_are_the_published_ones() {
        let clip = [("B", 1), ("T", 64), ("H", 256), ("W", 256)];
        let encoder = |preset: &str| counted::<Config>(json!({ "preset": preset }), &clip);
        let predictor = |width| {
            let lattice = [("t", 32), ("h", 16), ("w", 16), ("V", 8), ("M", 8), ("D", width)];
            counted::<vjepa2_predictor::Config>(json!({ "preset": "vjepa2" }), &lattice)
        };
        let near = |found: f64, published: f64, off: f64| {
            assert!((found / published - 1.0).abs() < off, "{found}, published {published}");
        };
        let large = encoder("l") + predictor(1024);
        near(large, 326.0e6, 0.01);
        near(encoder("g"), 1_013_267_968.0, 0.01);
        near(encoder("h") + predictor(1280), 0.7e9, 0.05 / 0.7);
        let sides = [("D", 1024), ("B", 1), ("N", 8)];
        let pooler = counted::<attentive_pooler::Config>(json!({ "classes": 174 }), &sides);
        near(large + pooler, 0.4e9, 0.05 / 0.4);
    }

    #[test]
    fn visible_tokens_are_told_where_they_are() {
        let device = Device::flex();
        let options = json!({ "size": { "patch": 2, "tubelet": 1, "width": 24, "heads": 2 } });
        let config: Config = serde_json::from_value(options).unwrap();
        let dims = dims(&[("B", 1), ("T", 2), ("H", 4), ("W", 4), ("V", 3)]);
        let module = config.init(&dims, &Init::new(1, "encoder", &device));
        let video = Tensor::<5>::random([1, 3, 2, 4, 4], Distribution::Default, &device);
        let see = |index: [i64; 8]| {
            let index = Tensor::<2, Int>::from_data([index], &device);
            let inputs = Tensors::of("video", video.clone()).with("visible", index.clone());
            let call = Call::new(Key::new(0, "see"), At::default());
            let mut outputs = config.forward(&module, inputs, &call).unwrap();
            outputs.take::<Tensor<3>>("tokens").unwrap()
        };
        let (one, other) = (see([0, 1, 2, 3, 4, 5, 6, 7]), see([7, 6, 5, 4, 3, 2, 1, 0]));
        let off = (one - other.flip([1])).abs().max().into_scalar::<f32>();
        assert!(off < 1e-5, "tokens do not depend on their order: {off}");
    }

    #[test]
    fn narrow_heads_are_refused() {
        let options = json!({ "size": { "width": 32, "heads": 8 } });
        let config: Config = serde_json::from_value(options).unwrap();
        assert_eq!(config.check(&Dims::new())[0].option, "size.heads");
    }
}
