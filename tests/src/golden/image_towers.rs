//! `internvit`, and `siglip_semantic_mask`: the SigLIP teacher of InternVideo-Next with its mask.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use modules::layers::block::Context;
use modules::layers::tokens;
use modules::layers::visible::{self, Per};
use modules::masks::semantic::{self, Choice};
use modules::models::{intern_vit, siglip};
use modules::tensors::Tensors;
use schemas::dims::keep;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::image_text::{check_stack, published, still};
use super::network::{Network, autodiff, check_coverage, check_gradients, port};
use super::report::Report;

/// Checks both flavours of InternViT.
pub fn check_internvit(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let text = fixture.bytes("config_ln.json");
    let other: Value = serde_json::from_slice(&text).expect("a fixture holds JSON");
    check_flavour(&mut report, &fixture, &fixture.config, ("", "model.safetensors"));
    check_flavour(&mut report, &fixture, &other, ("ln.", "ln.safetensors"));
    report.finish()
}

fn check_flavour(
    report: &mut Report,
    fixture: &Fixture,
    config: &Value,
    (prefix, file): (&str, &str),
) {
    let inputs = fixture.arrays("inputs.safetensors");
    let network: Network<intern_vit::Config> = published(fixture, config, file, &[]);
    check_coverage(report, fixture, file, &[&network.taken]);
    let device = autodiff();
    let pixels = still(&inputs["pixel_values"]).float::<5>(&device).require_grad();
    let mut outputs = network.forward(Tensors::of("video", pixels.clone()));
    let last: Tensor<3> = port(&mut outputs, "tokens");
    report.meet(&format!("{prefix}last_hidden_state"), &Array::of(last.clone()));
    let pooled: Tensor<2> = port(&mut outputs, "features");
    report.meet(&format!("{prefix}pooled"), &Array::of(pooled));
    let loss = (last * inputs["cotangent"].float(&device.inner())).sum();
    report.meet(&format!("{prefix}loss"), &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = pixels.grad(&all).expect("the pixels have a gradient");
    report.meet(&format!("{prefix}grad_input.pixel_values"), &Array::of(gradient));
    check_gradients(report, fixture, prefix, &network.gradients(&mut all));

    let wide = still(&inputs["pixel_values_interp"]).float::<5>(&autodiff().inner());
    let mut outputs = network.forward(Tensors::of("video", wide));
    let last: Tensor<3> = port(&mut outputs, "tokens");
    report.meet(&format!("{prefix}interp.last_hidden_state"), &Array::of(last));

    let tower = network.module.valid();
    let x = tower.embed(tower.pictures(pixels.inner()));
    report.meet(&format!("{prefix}embeddings"), &Array::of(x.clone()));
    let names = [format!("{prefix}hidden"), format!("{prefix}attn")];
    let names = [names[0].as_str(), names[1].as_str()];
    check_stack(report, &tower.blocks, x.clone(), &Context::default(), names, None);
    // The rows of the first token alone are those of the whole map.
    let block = &tower.blocks[0];
    let whole = block.map(x.clone(), &Context::default()).slice_dim(2, 0..1);
    let first = Array::of(block.map_of_first(x, 1));
    report.compare(&format!("{prefix}map of the class token"), &first, &Array::of(whole));
}

/// Checks the teacher and its masks.
pub fn check_semantic(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let io = fixture.arrays("io.safetensors");
    let (inputs, expected): (Arrays, Arrays) =
        io.into_iter().partition(|(name, _)| name.starts_with("input."));
    let mut report = Report::new(&fixture, expected);
    let depth = fixture.count("num_hidden_layers");
    let mut config = fixture.config.clone();
    config["model_type"] = "siglip_vision_model".into();
    config["image_size"] = fixture.config["pos_embed_image_size"].clone();
    let options =
        [("taps", json!(depth)), ("tap_inputs", json!(true)), ("mean_of_units", json!(true))];
    let file = "weights.safetensors";
    let network: Network<siglip::Config> = published(&fixture, &config, file, &options);
    check_coverage(&mut report, &fixture, file, &[&network.taken]);

    let video = inputs["input.video_imagenet_norm"].float::<5>(&autodiff().inner());
    let [batch, _, frames, _, _] = video.dims();
    let pictures = network.module.pictures(video.clone());
    let pixels = &inputs["input.pixels_teacher_norm"];
    report.compare("input.pixels_teacher_norm", &Array::of(pictures), pixels);
    let mut outputs = network.forward(Tensors::of("video", video.clone()));
    // All blocks are tapped: the listed ones lie at any distance.
    let layers: Tensor<4> = port(&mut outputs, "layers");
    let layers = layers.select(0, fixture.list("return_layer_inputs"));
    report.meet("out.middle", &Array::of(layers.clone()));
    report.meet("out.final_clip", &Array::of(port::<2>(&mut outputs, "pooled")));
    let scores = Array::of(port::<3>(&mut outputs, "attention"));
    report.meet("out.attn", &scores);
    let [_, _, _, height, width] = video.dims();
    let single = video.swap_dims(1, 2).reshape([batch * frames, 3, 1, height, width]);
    let mut alone = network.forward(Tensors::of("video", single));
    report.meet("out.final_per_frame", &Array::of(port::<2>(&mut alone, "pooled")));
    check_masks(&mut report, &fixture, &scores, &inputs["input.exp_noise"], layers);
    report.finish()
}

fn check_masks(
    report: &mut Report,
    fixture: &Fixture,
    scores: &Array,
    noise: &Array,
    layers: Tensor<4>,
) {
    let floats = |array: &Array| -> Vec<f32> { array.values.iter().map(|v| *v as f32).collect() };
    let (scores, noise) = (floats(scores), floats(noise));
    let [batch, frames] = ["batch", "frames"].map(|field| fixture.count(field));
    let patches = scores.len() / (batch * frames);
    let ratio = fixture.number("mask_ratio");
    report.same("visible", &keep(patches, ratio), &fixture.count("visible_per_frame"));
    let order = report.take("mask.order");
    let pairs = scores.chunks(patches).zip(noise.chunks(patches));
    let found: Vec<f64> = pairs.flat_map(|(s, e)| visible::order(s, e)).map(|i| i as f64).collect();
    report.same("mask.order", &found, &order.values);
    let clip = frames * patches;
    for (choice, name) in [
        (Choice::Draw, "mask.multinomial"),
        (Choice::Keep, "derived.topk_keep_highest"),
        (Choice::Hide, "derived.topk_mask_highest"),
    ] {
        let config = semantic::Config { choice, ratio, per: Per::Frame };
        let pairs = scores.chunks(clip).zip(noise.chunks(clip));
        let chosen: Vec<f64> = pairs
            .flat_map(|(s, e)| config.choose(s, e, patches))
            .map(|index| index as f64)
            .collect();
        // True is hidden.
        let expected = report.take(name).places(0.0, 0);
        report.same(name, &chosen, &expected.values);
        if choice != Choice::Draw {
            continue;
        }
        let index: Tensor<2, Int> = expected.int(&autodiff().inner());
        let [k, b, rows, width] = layers.dims();
        let all = layers.clone().reshape([k * b, rows, width]);
        let kept = tokens::gather(all, index.repeat_dim(0, k));
        report.meet("mask.visible_targets", &Array::of(kept));
    }
}
