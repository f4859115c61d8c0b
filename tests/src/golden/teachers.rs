//! `internvl_clip_teacher`, `internvideo2_mae_teacher` and `videomaev2_finetune`.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use modules::layers::block::{Block, Context};
use modules::layers::visible::{self, Per};
use modules::losses::cross_entropy::CrossEntropy;
use modules::masks;
use modules::models::{internvl_clip, videomae_v2};
use modules::tensors::Tensors;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::alignment;
use super::fixture::{Array, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;

/// Side of the grid that the reference makes its fixed table for before it is stretched.
const TABLE_SIDE: usize = 14;

fn video_dims(video: &Array) -> Dims {
    let [b, _, t, h, w] = video.shape[..] else { panic!("a video has five dims") };
    dims([("B", b), ("T", t), ("H", h), ("W", w)])
}

fn size(fixture: &Fixture) -> Value {
    let width = fixture.count("embed_dim");
    json!({
        "patch": fixture.count("patch_size"),
        "width": width,
        "depth": fixture.count("depth"),
        "heads": fixture.count("num_heads"),
        "hidden": (width as f64 * fixture.number("mlp_ratio")) as usize,
    })
}

/// Compares the residual stream and, under a name of their own, the attention maps.
pub fn check_blocks(
    report: &mut Report,
    blocks: &[Block],
    x: Tensor<3>,
    prefix: &str,
    maps: Option<&str>,
) {
    let mut x = x;
    for (number, block) in blocks.iter().enumerate() {
        if let Some(name) = maps {
            let map = block.map(x.clone(), &Context::default());
            report.meet(&format!("{prefix}{name}.{number}"), &Array::of(map));
        }
        x = block.forward(x, &Context::default());
        report.meet(&format!("{prefix}hidden.{number}"), &Array::of(x.clone()));
    }
}

/// Checks the per-frame teacher and the mask that its attention gives.
pub fn check_internvl(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let mut size = size(&fixture);
    size["pool_heads"] = fixture.count("attn_pool_num_heads").into();
    size["pooled"] = fixture.count("clip_embed_dim").into();
    let options = json!({
        "size": size,
        "taps": fixture.count("clip_return_layer"),
        "tap_interval": fixture.number("clip_return_interval"),
        "activation": "gelu",
    });
    let sizes = video_dims(&inputs["video"]);
    let network =
        Network::<internvl_clip::Config>::load(&fixture, "model.safetensors", options, &sizes);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);

    let device = autodiff();
    let video = inputs["video"].float::<5>(&device).require_grad();
    let mut outputs = network.forward(Tensors::of("video", video.clone()));
    let z: Tensor<4> = port(&mut outputs, "layers");
    let x: Tensor<2> = port(&mut outputs, "pooled");
    report.meet("z", &Array::of(z.clone()));
    report.meet("x", &Array::of(x.clone()));
    report.meet("attn", &Array::of(port::<3>(&mut outputs, "attention")));
    let loss = (z * inputs["cot_z"].float(&device.clone().inner())).sum()
        + (x * inputs["cot_x"].float(&device.clone().inner())).sum();
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));

    let module = network.module.valid();
    let x = module.embed(video.inner());
    check_blocks(&mut report, &module.blocks, x, "", Some("attn_block"));
    check_importance(&mut report, &fixture, &inputs["importance"], sizes["B"]);
    report.finish()
}

/// The mask from a given order of importance.
fn check_importance(report: &mut Report, fixture: &Fixture, importance: &Array, batch: usize) {
    let expected = alignment::visible(&report.take("attention_mask"));
    let patches = importance.shape[1];
    let orders: Vec<Vec<usize>> = importance
        .values
        .chunks(patches)
        .map(|row| row.iter().map(|i| *i as usize).collect())
        .collect();
    let ratio = fixture.number("golden_mask_ratio");
    let count = schemas::dims::keep(patches, ratio);
    let frames = orders.len() / batch;
    let chosen = orders.chunks(frames).flat_map(|orders| visible::first(orders, count));
    let chosen: Vec<f64> = chosen.map(|i| i as f64).collect();
    report.same("attention_mask", &chosen, &expected.values);
    // The same order comes out of the kind when the weights fall along it.
    let mut scores = vec![0.0; importance.values.len()];
    for (row, order) in orders.iter().enumerate() {
        for (rank, patch) in order.iter().enumerate() {
            scores[row * patches + patch] = (patches - rank) as f32;
        }
    }
    let config = masks::attention::Config { ratio, per: Per::Frame };
    let noise = vec![1.0; frames * patches];
    let chosen: Vec<f64> = scores
        .chunks(frames * patches)
        .flat_map(|scores| config.choose(scores, &noise, patches))
        .map(|i| i as f64)
        .collect();
    report.same("attention_mask by weights", &chosen, &expected.values);
}

fn videomae_options(fixture: &Fixture) -> Value {
    let mut size = size(fixture);
    size["tubelet"] = fixture.count("tubelet_size").into();
    json!({ "size": size, "layer_scale": fixture.number("init_values") })
}

/// Checks the motion teacher.
pub fn check_videomae(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let mut options = videomae_options(&fixture);
    options["taps"] = fixture.count("mae_return_layer").into();
    options["tap_interval"] = fixture.number("mae_return_interval").into();
    options["table_side"] = TABLE_SIDE.into();
    options["across_heads"] = true.into(); // the reference is the released code
    let sizes = video_dims(&inputs["video"]);
    let network =
        Network::<videomae_v2::Config>::load(&fixture, "model.safetensors", options, &sizes);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);
    let table = network.module.table.values();
    let values = table.iter().map(|v| f64::from(*v)).collect();
    report.meet("pos_table", &Array { shape: vec![table.len()], values });

    let device = autodiff();
    let video = inputs["video"].float::<5>(&device).require_grad();
    let mut outputs = network.forward(Tensors::of("video", video.clone()));
    let out: Tensor<4> = port(&mut outputs, "layers");
    report.meet("out", &Array::of(out.clone()));
    let loss = (out * inputs["cotangent"].float(&device.inner())).sum();
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));

    let module = network.module.valid();
    let x = module.embed(video.inner(), None);
    check_blocks(&mut report, &module.blocks, x, "", None);
    report.finish()
}

/// Checks the fine-tuned classifier, with plain and with cosine attention.
pub fn check_finetune(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let mut options = videomae_options(&fixture);
    options["classes"] = fixture.count("num_classes").into();
    check_classifier(&mut report, &fixture, ("", "model.safetensors"), options.clone());
    options["cosine_attention"] = fixture.config["cos"]["cos_attn"].clone();
    options["layer_scale"] = fixture.config["cos"]["init_values"].clone();
    check_classifier(&mut report, &fixture, ("cos.", "cos.safetensors"), options);
    report.finish()
}

fn check_classifier(
    report: &mut Report,
    fixture: &Fixture,
    (prefix, file): (&str, &str),
    options: Value,
) {
    let inputs = fixture.arrays("inputs.safetensors");
    let sizes = video_dims(&inputs["video"]);
    let network = Network::<videomae_v2::Config>::load(fixture, file, options, &sizes);
    check_coverage(report, fixture, file, &[&network.taken]);
    let device = autodiff();
    let video = inputs["video"].float::<5>(&device).require_grad();
    let mut outputs = network.forward(Tensors::of("video", video.clone()));
    let logits: Tensor<2> = port(&mut outputs, "logits");
    report.meet(&format!("{prefix}logits"), &Array::of(logits.clone()));
    let features: Tensor<2> = port(&mut outputs, "pooled");
    report.meet(&format!("{prefix}features"), &Array::of(features));
    let labels = inputs["labels"].int::<1>(&device);
    let loss = CrossEntropy::new(0.0).forward(logits, labels);
    report.meet(&format!("{prefix}loss"), &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet(&format!("{prefix}grad_input.video"), &Array::of(gradient));
    check_gradients(report, fixture, prefix, &network.gradients(&mut all));
    let module = network.module.valid();
    let x = module.embed(video.inner(), None);
    check_blocks(report, &module.blocks, x, prefix, Some("attn"));
}
