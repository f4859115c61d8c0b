//! `clip`, `siglip` and `siglip2`: two towers and their contrastive loss.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use modules::kind::{Call, Kind};
use modules::layers::block::{Block, Context};
use modules::layers::image_tower::ImageTower;
use modules::layers::text_tower::TextTower;
use modules::losses::{info_nce, pairwise_sigmoid};
use modules::models::{clip, siglip, siglip2};
use modules::rng::Key;
use modules::tensors::Tensors;
use modules::text;
use schemas::dims::Dims;
use schemas::node::At;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, port};
use super::report::Report;

const FILE: &str = "model.safetensors";

/// A network as its `config.json` describes it, on pictures as they are.
pub fn published<K: Kind + std::fmt::Debug>(
    fixture: &Fixture,
    config: &Value,
    file: &str,
    more: &[(&str, Value)],
) -> Network<K> {
    let published = K::published(config).expect("the configuration is of this kind");
    let mut options = published.options;
    for (name, value) in more {
        options[*name] = value.clone();
    }
    Network::load(fixture, file, options, &Dims::new())
}

/// Pictures `[B, 3, H, W]` as clips of one frame.
pub fn still(pictures: &Array) -> Array {
    let [b, c, h, w] = pictures.shape[..] else { panic!("pictures have four dims") };
    Array { shape: vec![b, c, 1, h, w], values: pictures.values.clone() }
}

/// Compares the residual stream and the attention maps of a stack; returns what leaves it. `keep`
/// says of which tokens, row-major `[B, N]`, the values mean something.
pub fn check_stack(
    report: &mut Report,
    blocks: &[Block],
    x: Tensor<3>,
    context: &Context,
    [hidden, maps]: [&str; 2],
    keep: Option<&[f64]>,
) -> Tensor<3> {
    let mut x = x;
    for (number, block) in blocks.iter().enumerate() {
        let name = format!("{maps}.{number}");
        if report.expects(&name) {
            let map = Array::of(block.map(x.clone(), context));
            meet(report, &name, &map, keep, map.shape[1]);
        }
        x = block.forward(x, context);
        meet(report, &format!("{hidden}.{number}"), &Array::of(x.clone()), keep, 1);
    }
    x
}

/// Compares `[B, groups, N, ..]` at the tokens that mean something.
fn meet(report: &mut Report, name: &str, got: &Array, keep: Option<&[f64]>, groups: usize) {
    let Some(keep) = keep else { return report.meet(name, got) };
    let expected = report.take(name);
    let tokens = keep.len() / got.shape[0];
    let width = got.values.len() / (keep.len() * groups);
    let chosen = |array: &Array| {
        let rows = array.values.chunks(width).enumerate();
        let there = |row: usize| keep[row / (tokens * groups) * tokens + row % tokens] == 1.0;
        let values = rows.filter(|(row, _)| there(*row)).flat_map(|(_, row)| row.to_vec());
        let values: Vec<f64> = values.collect();
        Array { shape: vec![values.len()], values }
    };
    report.compare(name, &chosen(got), &chosen(&expected));
}

/// Outputs of both towers.
struct Embedded {
    image: Tensor<2>,
    text: Tensor<2>,
}

/// The parts of a fixture that all three share.
struct Setting {
    fixture: Fixture,
    inputs: Arrays,
    report: Report,
}

impl Setting {
    fn open(folder: &Path) -> Self {
        let fixture = Fixture::open(folder);
        let inputs = fixture.arrays("inputs.safetensors");
        let report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
        Self { fixture, inputs, report }
    }

    fn tower<K: Kind + std::fmt::Debug>(&self, more: &[(&str, Value)]) -> Network<K> {
        published(&self.fixture, &self.fixture.config, FILE, more)
    }

    fn ids(&self) -> Tensor<2, Int> {
        self.inputs["input_ids"].int(&autodiff().inner())
    }

    fn int(&self, name: &str) -> Tensor<2, Int> {
        self.inputs[name].int(&autodiff().inner())
    }

    fn meet<const D: usize>(&mut self, name: &str, got: Tensor<D>) {
        self.report.meet(name, &Array::of(got));
    }

    /// The text tower: outputs, then the stack. `keep` says which tokens mean something.
    fn text<K>(
        &mut self,
        network: &Network<K>,
        mask: Option<&Tensor<2, Int>>,
        keep: Option<&[f64]>,
    ) -> Tensor<2>
    where
        K: Kind<Module = TextTower> + std::fmt::Debug,
    {
        let mut inputs = Tensors::of("ids", self.ids());
        if let Some(mask) = mask {
            inputs = inputs.with("mask", mask.clone());
        }
        let mut outputs = network.forward(inputs);
        let tokens = Array::of(port::<3>(&mut outputs, "tokens"));
        meet(&mut self.report, "text_last", &tokens, keep, 1);
        let tower = network.module.valid();
        let features: Tensor<2> = port(&mut outputs, "features");
        let pooled: Tensor<2> = port(&mut outputs, "pooled");
        self.meet("text_pooled", tower.projection.forward(features.inner()));
        self.meet("text_embeds", pooled.clone());
        let x = tower.embed(self.ids());
        if self.report.expects("text_embeddings") {
            self.meet("text_embeddings", x.clone());
        }
        let mask = tower.mask(x.dims()[1], mask);
        let context = Context { mask, ..Context::default() };
        let names = ["text_hidden", "text_attn"];
        check_stack(&mut self.report, &tower.blocks, x, &context, names, keep);
        pooled
    }

    /// Loss, gradients of all parameters and of the pixels.
    fn end(
        mut self,
        loss: Tensor<1>,
        pixels: &dyn Fn(&burn::tensor::Gradients) -> Array,
        gradients: impl FnOnce(&mut burn::tensor::Gradients) -> Arrays,
        taken: [&BTreeSet<String>; 3],
    ) -> Report {
        check_coverage(&mut self.report, &self.fixture, FILE, &taken);
        self.meet("loss", loss.clone());
        let mut all = loss.backward();
        self.report.meet("grad_input.pixel_values", &pixels(&all));
        check_gradients(&mut self.report, &self.fixture, "", &gradients(&mut all));
        self.report.finish()
    }
}

fn call() -> Call {
    Call::new(Key::new(0, "golden"), At::default())
}

/// What the tower finds in single pictures, without gradient.
fn look(tower: &ImageTower, pictures: &Array) -> modules::layers::image_tower::Found {
    let pictures = still(pictures).float::<5>(&autodiff().inner());
    tower.look(tower.embed(tower.pictures(pictures)), None, &call())
}

/// Gradients of both towers and the loss by key.
fn joined(parts: [Arrays; 3]) -> Arrays {
    parts.into_iter().flatten().collect()
}

/// Checks CLIP.
pub fn check_clip(folder: &Path) -> Report {
    let mut at = Setting::open(folder);
    let vision: Network<clip::Config> = at.tower(&[("input", json!("own"))]);
    let text: Network<text::clip::Config> = at.tower(&[]);
    let pixels = still(&at.inputs["pixel_values"]).float::<5>(&autodiff()).require_grad();
    let mut outputs = vision.forward(Tensors::of("video", pixels.clone()));
    let image: Tensor<2> = port(&mut outputs, "pooled");
    at.meet("vision_pooled", port::<2>(&mut outputs, "features"));
    at.meet("image_embeds", image.clone());
    let mask = at.int("attention_mask");
    let keep = at.inputs["attention_mask"].values.clone();
    let words = at.text(&text, Some(&mask), Some(&keep));
    let both = Embedded { image, text: words };

    let tower = vision.module.valid();
    let x = tower.embed(tower.pictures(pixels.clone().inner()));
    at.meet("vision_embeddings", x.clone());
    let x = tower.enter(x);
    at.meet("vision_pre_ln", x.clone());
    let names = ["vision_hidden", "vision_attn"];
    check_stack(&mut at.report, &tower.blocks, x, &Context::default(), names, None);
    let found = look(&tower, &at.inputs["pixel_values_interp"]);
    at.meet("interp.last", found.tokens);
    at.meet("interp.pooled", found.features);

    let nce: Network<info_nce::Config> = Network::load(&at.fixture, FILE, json!({}), &Dims::new());
    let inputs = Tensors::of("left", both.image).with("right", both.text);
    let mut given = nce.forward(inputs);
    let scores: Tensor<2> = port(&mut given, "scores");
    at.meet("logits_per_image", scores.clone());
    at.meet("logits_per_text", scores.transpose());
    let gradients = |all: &mut burn::tensor::Gradients| {
        joined([vision.gradients(all), text.gradients(all), nce.gradients(all)])
    };
    let taken = [&vision.taken, &text.taken, &nce.taken];
    let of_pixels =
        |all: &burn::tensor::Gradients| Array::of(pixels.grad(all).expect("a gradient"));
    at.end(port(&mut given, "loss"), &of_pixels, gradients, taken)
}

/// Compares scores and loss of the sigmoid loss, in one piece and in tiles; returns network and loss.
fn sigmoid(at: &mut Setting, both: Embedded) -> (Network<pairwise_sigmoid::Config>, Tensor<1>) {
    let run = |options: Value| {
        let network: Network<pairwise_sigmoid::Config> =
            Network::load(&at.fixture, FILE, options, &Dims::new());
        let inputs = Tensors::of("left", both.text.clone()).with("right", both.image.clone());
        let given = network.forward(inputs);
        (network, given)
    };
    let (_, mut tiled) = run(json!({ "tile": 2 }));
    let (network, mut given) = run(json!({}));
    let scores: Tensor<2> = port(&mut given, "scores");
    if at.report.expects("logits_per_image") {
        at.meet("logits_per_image", scores.clone().transpose());
    }
    at.meet("logits_per_text", scores);
    let whole: Tensor<1> = port(&mut given, "loss");
    let tiled = Array::of(port::<1>(&mut tiled, "loss"));
    at.report.compare("loss in tiles", &tiled, &Array::of(whole.clone()));
    (network, whole)
}

/// Checks SigLIP.
pub fn check_siglip(folder: &Path) -> Report {
    let mut at = Setting::open(folder);
    let vision: Network<siglip::Config> = at.tower(&[("input", json!("own"))]);
    let text: Network<text::siglip::Config> = at.tower(&[]);
    let pixels = still(&at.inputs["pixel_values"]).float::<5>(&autodiff()).require_grad();
    let mut outputs = vision.forward(Tensors::of("video", pixels.clone()));
    let image: Tensor<2> = port(&mut outputs, "pooled");
    at.meet("vision_pooled", port::<2>(&mut outputs, "features"));
    at.meet("image_embeds", image.clone());
    at.meet("vision_last", port::<3>(&mut outputs, "tokens"));
    let words = at.text(&text, None, None);

    let masked = Tensors::of("ids", at.ids()).with("mask", at.int("text_attention_mask"));
    let tokens = Array::of(port::<3>(&mut text.forward(masked), "tokens"));
    let keep = at.inputs["text_attention_mask"].values.clone();
    meet(&mut at.report, "text_masked.last", &tokens, Some(&keep), 1);

    let tower = vision.module.valid();
    let x = tower.embed(tower.pictures(pixels.clone().inner()));
    at.meet("vision_embeddings", x.clone());
    let names = ["vision_hidden", "vision_attn"];
    let x = check_stack(&mut at.report, &tower.blocks, x, &Context::default(), names, None);
    let x = tower.post_norm.as_ref().expect("a norm").forward(x);
    let pool = tower.pool.as_ref().expect("a pooling");
    at.meet("vision_head_attn", pool.with_map(x, &Default::default()).1);
    let found = look(&tower, &at.inputs["pixel_values_interp"]);
    at.meet("interp.last", found.tokens);
    at.meet("interp.pooled", found.features);

    let (judge, loss) = sigmoid(&mut at, Embedded { image, text: words });
    let gradients = |all: &mut burn::tensor::Gradients| {
        joined([vision.gradients(all), text.gradients(all), judge.gradients(all)])
    };
    let taken = [&vision.taken, &text.taken, &judge.taken];
    let of_pixels =
        |all: &burn::tensor::Gradients| Array::of(pixels.grad(all).expect("a gradient"));
    at.end(loss, &of_pixels, gradients, taken)
}

/// Checks SigLIP 2 NaFlex.
pub fn check_siglip2(folder: &Path) -> Report {
    let mut at = Setting::open(folder);
    let vision: Network<siglip2::Config> = at.tower(&[]);
    let text: Network<text::siglip::Config> = at.tower(&[]);
    let patches = at.inputs["pixel_values"].float::<3>(&autodiff()).require_grad();
    let (shapes, present) = (at.int("spatial_shapes"), at.int("pixel_attention_mask"));
    let inputs = Tensors::of("patches", patches.clone()).with("shapes", shapes);
    let mut outputs = vision.forward(inputs.clone().with("mask", present.clone()));
    // The mask follows from the shapes.
    let again: Tensor<2> = port(&mut vision.forward(inputs), "features");
    let keep = at.inputs["pixel_attention_mask"].values.clone();
    let pooled: Tensor<2> = port(&mut outputs, "features");
    at.report.compare("without mask", &Array::of(again), &Array::of(pooled.clone()));
    at.meet("vision_pooled", pooled);
    let image: Tensor<2> = port(&mut outputs, "pooled");
    at.meet("image_embeds", image.clone());
    let last = Array::of(port::<3>(&mut outputs, "tokens"));
    meet(&mut at.report, "vision_last", &last, Some(&keep), 1);

    let mask = at.int("attention_mask");
    let seen = at.inputs["attention_mask"].values.clone();
    let words = at.text(&text, Some(&mask), Some(&seen));

    let tower = vision.module.valid();
    let grids = at.inputs["spatial_shapes"].values.chunks(2);
    let grids: Vec<[usize; 2]> = grids.map(|g| [g[0] as usize, g[1] as usize]).collect();
    let x = tower.embed_packed(patches.clone().inner(), &grids);
    meet(&mut at.report, "vision_embeddings", &Array::of(x.clone()), Some(&keep), 1);
    let mask = modules::layers::attention::AttentionMask::of_keys(&present, x.dims()[1]);
    let context = Context { mask, ..Context::default() };
    let names = ["vision_hidden", "vision_attn"];
    check_stack(&mut at.report, &tower.blocks, x, &context, names, Some(&keep));

    let (judge, loss) = sigmoid(&mut at, Embedded { image, text: words });
    let gradients = |all: &mut burn::tensor::Gradients| {
        joined([vision.gradients(all), text.gradients(all), judge.gradients(all)])
    };
    let taken = [&vision.taken, &text.taken, &judge.taken];
    let of_patches =
        |all: &burn::tensor::Gradients| Array::of(patches.grad(all).expect("a gradient"));
    at.end(loss, &of_patches, gradients, taken)
}
