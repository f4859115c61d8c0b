//! Latent predictor: layers of ModernBERT over the whole lattice, hidden patches as mask tokens.
//!
//! | port        | dims      | what                                                          |
//! |-------------|-----------|---------------------------------------------------------------|
//! | `tokens`    | `B S D`   | class tokens and visible patches of the encoder               |
//! | `visible`   | `B V`     | indices of the visible patches                                |
//! | `hidden`    | `B M`     | indices of the patches to predict                             |
//! | `states`    | `B M W`   | their tokens after the last layer, W channels                 |
//! | `predicted` | `B M D`   | with `head`: unit vectors in the encoder's width              |
//!
//! Class tokens, then all patches of the clip in their order: visible ones as the encoder gave them,
//! the others one learned token. All get a learned position table, made for `table_frames` frames and
//! stretched to the clip, and go through a bridge to the layers' width. Local layers see 64 tokens on
//! each side of the flat sequence. `states` condition `losses/diffusion` in stage 1; the head predicts
//! a teacher's tokens in stage 2.
//! Source: InternVideo-Next (arXiv 2512.01342); recipes §5.3, §5.6.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::internvideo_next::{check_table, table_lattice};
use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::block::Block;
use crate::layers::bridge::Bridge;
use crate::layers::modern::Stack;
use crate::layers::modern::size::SizeOptions;
use crate::layers::norm::unit;
use crate::layers::positions::{self, Lattice};
use crate::layers::size::{check_named, check_share, check_some, side};
use crate::layers::{stretch, tokens};
use crate::layout::Layout;
use crate::published::{count, says};
use crate::tensors::Tensors;

/// The published layers, and some for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The last 5 of the 28 layers of ModernBERT-large.
    InternvideoNext,
    /// The last 2 of 4 layers of width 64.
    #[default]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Layers to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; there are no words.
    pub size: SizeOptions,
    /// Number of the first layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<usize>,
    /// Every so many layers one is global.
    pub global_every: usize,
    /// Tokens that a local layer sees on each side.
    pub near: usize,
    /// Bases of the rotary angles of global and of local layers.
    pub theta: [f64; 2],
    /// Frames that the position table is made for, in steps of the encoder's tubelets.
    pub table_frames: usize,
    /// Side of the square grid of patches that it is made for; the clip's grid when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// Whether there is a head back to the encoder's width.
    pub head: bool,
    /// Drop path rate of the last layer, when the node trains.
    pub drop_path: f64,
}

impl Default for Config {
    fn default() -> Self {
        let Stack { global_every, near, theta, .. } = Stack::new(1, 1, 1, 1);
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            first: None,
            global_every,
            near,
            theta,
            table_frames: 16,
            table_side: None,
            head: false,
            drop_path: 0.0,
        }
    }
}

/// The predictor.
#[derive(Module, Debug)]
pub struct LatentPredictor {
    /// `[1, 1, D]`, in place of hidden patches.
    pub mask_token: Param<Tensor<3>>,
    /// `[1, C + N, D]`.
    pub pos_embed: Param<Tensor<3>>,
    /// To the layers' width.
    pub bridge: Bridge,
    /// The layers.
    pub blocks: Vec<Block>,
    /// Back to the encoder's width.
    pub head: Option<Bridge>,
    /// What the layers are.
    #[module(skip)]
    pub stack: Stack,
    #[module(skip)]
    lattices: [Lattice; 2],
}

impl LatentPredictor {
    /// Position table of the clip, `[1, C + N, D]`, for C class tokens.
    pub fn table(&self, front: usize) -> Tensor<3> {
        let [from, to] = self.lattices;
        stretch::table(self.pos_embed.val(), front, from, to)
    }

    /// Class tokens and all patches of the clip with positions, `[B, C + N, D]`, from tokens
    /// `[B, C + V, D]`.
    pub fn lattice(&self, tokens: Tensor<3>, visible: &Tensor<2, Int>) -> Tensor<3> {
        let ([batch, rows, width], seen) = (tokens.dims(), visible.dims()[1]);
        let (front, all) = (rows - seen, self.lattices[1].iter().product::<usize>());
        // Behind the last visible patch stands the mask token, which every other patch takes.
        let mut places: Vec<i64> = vec![rows as i64; batch * (front + all)];
        let shown: Vec<i64> = visible.clone().inner().to_data().iter::<i64>().collect();
        for (sample, row) in places.chunks_mut(front + all).enumerate() {
            (0..front).for_each(|place| row[place] = place as i64);
            for (rank, patch) in shown[sample * seen..(sample + 1) * seen].iter().enumerate() {
                row[front + *patch as usize] = (front + rank) as i64;
            }
        }
        let data = TensorData::new(places, [batch, front + all]);
        let places = Tensor::<2, Int>::from_data(data, &visible.device());
        let mask = self.mask_token.val().expand([batch, 1, width]);
        let x = tokens::gather(Tensor::cat(vec![tokens, mask], 1), places);
        x + self.table(front)
    }
}

impl Config {
    /// The layers, and the deviation at the start.
    fn layers_of(&self) -> (Stack, f64) {
        let (whole, first, sigma) = match self.preset {
            Preset::InternvideoNext => (Stack::new(28, 1024, 16, 2624), 23, 0.02),
            Preset::Tiny => (Stack::new(4, 64, 4, 96), 2, 0.1),
        };
        let size = &self.size;
        let (first, depth) = (self.first.unwrap_or(first), size.depth.unwrap_or(whole.count));
        let stack = Stack {
            width: size.width.unwrap_or(whole.width),
            heads: size.heads.unwrap_or(whole.heads),
            hidden: size.hidden.unwrap_or(whole.hidden),
            first,
            count: depth.saturating_sub(first),
            global_every: self.global_every,
            near: self.near,
            theta: self.theta,
            drop_path: self.drop_path,
            ..whole
        };
        (stack, size.sigma.unwrap_or(sigma))
    }

    /// The layers.
    pub fn stack(&self) -> Stack {
        self.layers_of().0
    }
}

impl Kind for Config {
    type Module = LatentPredictor;

    fn ports(&self, _: &[String]) -> Ports {
        let ports = Ports::default()
            .input("tokens", "B S D")
            .lattice("t h w")
            .about("class tokens and visible patches of the encoder")
            .stopped("visible", "B V")
            .int()
            .lattice("t h w")
            .about("indices of the visible patches")
            .stopped("hidden", "B M")
            .int()
            .lattice("t h w")
            .about("indices of the patches to predict")
            .output("states", format!("B M {}", self.stack().width))
            .lattice("t h w")
            .about("their tokens after the last layer");
        match self.head {
            true => ports
                .output("predicted", "B M D")
                .lattice("t h w")
                .tag("norm", "l2")
                .about("unit vectors in the encoder's width"),
            false => ports,
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let (stack, sigma) = self.layers_of();
        let mut problems = stack.check();
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_table(self.table_frames, self.table_side));
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if self.size.vocab.is_some() {
            refuse("size.vocab", "there are no words here".to_owned(), "leave it out");
        }
        if !(sigma > 0.0 && sigma <= 10.0) {
            let message = format!("`sigma` is {sigma}, not above 0 and up to 10");
            refuse("size.sigma", message, "0.02 is usual");
        }
        let (sees, shown) = (side(dims, "S"), side(dims, "V"));
        if sees < shown {
            let message = format!("{sees} tokens, but {shown} visible patches");
            refuse("", message, "connect the `visible` that the encoder sees through");
        }
        if !side(dims, "D").is_multiple_of(16) {
            let message = format!("{} channels, not a multiple of 16", side(dims, "D"));
            refuse("", message, "the position table needs it: change the encoder's width");
        }
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        problems.extend(check_named("visible", shown, all));
        problems.extend(check_named("hidden", side(dims, "M"), all));
        problems.extend(check_some("hidden", dims, "M"));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> LatentPredictor {
        let ((stack, sigma), outer) = (self.layers_of(), side(dims, "D"));
        let init = &init.with_sigma(sigma);
        let clip = ["t", "h", "w"].map(|symbol| side(dims, symbol));
        let front = side(dims, "S").saturating_sub(side(dims, "V"));
        let made = table_lattice(self.table_frames, self.table_side, clip);
        let values = move || positions::joint(made, outer, front);
        LatentPredictor {
            mask_token: init.normal([1, 1, outer], 0.02),
            pos_embed: init.computed([1, front + made.iter().product::<usize>(), outer], values),
            bridge: Bridge::new(outer, stack.width, init),
            blocks: stack.blocks(init),
            head: self.head.then(|| Bridge::new(stack.width, outer, init)),
            stack,
            lattices: [made, clip],
        }
    }

    fn forward(
        &self,
        module: &LatentPredictor,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let tokens: Tensor<3> = inputs.take("tokens")?;
        let visible: Tensor<2, Int> = inputs.take("visible")?;
        let hidden: Tensor<2, Int> = inputs.take("hidden")?;
        let front = tokens.dims()[1] - visible.dims()[1];
        let x = module.bridge.forward(module.lattice(tokens, &visible));
        let mut states = module.stack.run(&module.blocks, x.clone(), None, call);
        let x = states.pop().unwrap_or(x);
        let states = tokens::gather(x, hidden.add_scalar(front as i64));
        let outputs = match &module.head {
            Some(head) => Tensors::of("predicted", unit(head.forward(states.clone()))),
            None => Tensors::new(),
        };
        Ok(outputs.with("states", states))
    }

    fn layouts(&self) -> Vec<Layout> {
        let layout = Layout::new("official").rules(&[
            ("^mask_token", "bert_mask_token"),
            ("^pos_embed", "diff_pos_embed"),
            ("^bridge.mlp.fc1.", "to_bert_proj.head.0."),
            ("^bridge.mlp.fc2.", "to_bert_proj.head.2."),
            ("^bridge.", "to_bert_proj."),
            ("^head.mlp.fc1.", "selfdist_decoder.head.0."),
            ("^head.mlp.fc2.", "selfdist_decoder.head.2."),
            ("^head.", "selfdist_decoder."),
        ]);
        vec![self.stack().layout(layout, "bert_decoder.layers.", 0)]
    }

    fn published(config: &Value) -> Option<Published> {
        let of = config.get("predictor").filter(|of| of.get("kept_layer_ids").is_some())?;
        let kept = of["kept_layer_ids"].as_array()?;
        let frames = count(config, "model_num_frames").or_else(|| count(config, "num_frames"))?;
        let options = json!({
            "size": {
                "width": count(of, "hidden_size")?,
                "depth": count(of, "num_hidden_layers")?,
                "heads": count(of, "num_attention_heads")?,
                "hidden": count(of, "intermediate_size")?,
            },
            "first": kept.first()?,
            "global_every": count(of, "global_attn_every_n_layers")?,
            "near": count(of, "local_window_each_side")?,
            "theta": [of["global_rope_theta"].as_f64()?, of["local_rope_theta"].as_f64()?],
            "table_frames": frames / count(config, "tubelet_size")?,
            "head": says(config, "kind", "internvideo_next_stage2"),
        });
        let tokens = count(config, "img_size")? / count(config, "patch_size")?;
        let times = frames / count(config, "tubelet_size")?;
        let (width, seen) = (count(config, "embed_dim")?, 1 + count(config, "cls_token_num")?);
        let lattice = [("t", times), ("h", tokens), ("w", tokens)];
        let sides = lattice.into_iter().chain([("D", width), ("S", seen), ("V", 1)]);
        let dims = sides.map(|(name, value)| (name.to_owned(), value)).collect();
        Some(Published { options, dims })
    }

    fn layers(&self) -> usize {
        self.stack().count
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (stack, outer) = (self.stack(), side(dims, "D"));
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        let bridge = 2 * all * outer * (outer + stack.width);
        side(dims, "B") as u64 * (stack.flops(all) + bridge as u64)
    }
}

/// Kind `models/latent_predictor`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("latent_predictor.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;

    fn made(options: Value, width: usize) -> (Config, LatentPredictor) {
        let config: Config = serde_json::from_value(options).unwrap();
        let sides = [("t", 16), ("h", 16), ("w", 16), ("S", 1028), ("V", 1024), ("M", 3072)];
        let mut dims: Dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        dims.insert("D".to_owned(), width);
        assert_eq!(config.check(&dims), []);
        let module = config.init(&dims, &Init::new(0, "predictor", &Device::flex()));
        (config, module)
    }

    /// Five layers of ModernBERT-large, of which 28 and the words are 395 million.
    #[test]
    fn the_layers_are_those_of_the_large_network() {
        let (config, module) = made(json!({ "preset": "internvideo_next" }), 768);
        let listed = parameters::list(&module);
        let blocks = listed.iter().filter(|p| p.path.starts_with("blocks."));
        let count: usize = blocks.map(|p| p.shape.iter().product::<usize>()).sum();
        let published = (395e6 - 50_368.0 * 1024.0) / 28.0 * 5.0;
        assert!((count as f64 / published - 1.0).abs() < 0.01, "{count}");
        assert_eq!((config.stack().first, config.stack().count), (23, 5));
    }

    #[test]
    fn published_keys_are_those_of_bridges_and_layers() {
        let (config, module) = made(json!({ "head": true }), 96);
        let layout = &config.layouts()[0];
        let keys: Vec<String> =
            parameters::list(&module).iter().map(|p| layout.slot(&p.path).key).collect();
        for key in [
            "bert_mask_token",
            "diff_pos_embed",
            "to_bert_proj.head.0.weight",
            "to_bert_proj.head.2.bias",
            "to_bert_proj.norm.weight",
            "bert_decoder.layers.1.mlp.Wo.weight",
            "bert_decoder.layers.0.attn_norm.weight",
            "selfdist_decoder.head.0.bias",
            "selfdist_decoder.head.2.weight",
        ] {
            assert!(keys.iter().any(|found| found == key), "{key}: {keys:?}");
        }
    }

    #[test]
    fn hidden_patches_are_one_token_and_their_places() {
        let device = Device::flex();
        let config = Config { table_frames: 1, ..Config::default() };
        let sides = [("t", 1), ("h", 2), ("w", 2), ("S", 3), ("V", 2), ("M", 2), ("D", 16)];
        let dims: Dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        let module = config.init(&dims, &Init::new(1, "predictor", &device));
        let tokens = Tensor::<3>::ones([1, 3, 16], &device);
        let visible = Tensor::<2, Int>::from_data([[0, 3]], &device);
        let x = module.lattice(tokens, &visible) - module.pos_embed.val();
        let found: Vec<f32> = x.slice_dim(2, 0..1).into_data().try_to_vec().unwrap();
        let mask = module.mask_token.val().into_data().try_to_vec::<f32>().unwrap()[0];
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(found[0], 1.0) && near(found[1], 1.0) && near(found[4], 1.0), "{found:?}");
        assert!(near(found[2], mask) && near(found[3], mask), "{found:?}");
    }
}
