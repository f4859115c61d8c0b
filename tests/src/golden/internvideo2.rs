//! `internvideo2_cls` and `internvideo2_ap`; what all InternVideo2 fixtures share.

use std::path::Path;

use burn::tensor::{Int, Tensor};
use modules::layers::block::Context;
use modules::layers::positions;
use modules::losses::cross_entropy::CrossEntropy;
use modules::models::internvideo2::{Config, InternVideo2};
use modules::tensors::Tensors;
use serde_json::{Value, json};

use super::fixture::{Array, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;

/// Numbers of `config.json` as options of the encoder, every block tapped.
pub fn options(fixture: &Fixture, gelu: &str) -> Value {
    let width = fixture.count("embed_dim");
    json!({
        "size": {
            "patch": fixture.count("patch_size"),
            "tubelet": fixture.count("tubelet_size"),
            "width": width,
            "depth": fixture.count("depth"),
            "heads": fixture.count("num_heads"),
            "hidden": (width as f64 * fixture.number("mlp_ratio")) as usize,
            "pool_heads": fixture.count("attn_pool_num_heads"),
            "pooled": fixture.count("clip_embed_dim"),
        },
        "taps": fixture.count("depth"),
        "activation": gelu,
        "positions": if fixture.flag("sep_pos_embed") { "separable" } else { "joint" },
    })
}

/// Frames, rows and columns of tokens.
pub fn lattice(fixture: &Fixture, video: &Array) -> [usize; 3] {
    let patch = fixture.count("patch_size");
    let [_, _, t, h, w] = video.shape[..] else { panic!("a video has five dims") };
    [t / fixture.count("tubelet_size"), h / patch, w / patch]
}

/// Compares patch embedding, residual stream, attention maps and pooling of an encoder.
pub fn check_inside(
    report: &mut Report,
    module: &InternVideo2,
    video: &Tensor<5>,
    visible: Option<Tensor<2, Int>>,
) {
    report.meet("patch_embed", &Array::of(module.patch_embed.forward(video.clone())));
    let mut x = module.embed(video.clone(), visible);
    for (number, block) in module.blocks.iter().enumerate() {
        let map = block.map(x.clone(), &Context::default());
        report.meet(&format!("attn.{number}"), &Array::of(map));
        x = block.forward(x, &Context::default());
        report.meet(&format!("hidden.{number}"), &Array::of(x.clone()));
    }
    let (pooled, map) = module.clip_projector.with_map(x);
    report.meet("pool_attn.0", &Array::of(map));
    report.meet("pooled", &Array::of(pooled));
}

/// Compares the tables at the start.
pub fn check_tables(report: &mut Report, fixture: &Fixture, lattice: [usize; 3]) {
    let width = fixture.count("embed_dim");
    let [frames, rows, columns] = lattice;
    let table = |values: Vec<f32>| Array {
        shape: vec![values.len()],
        values: values.into_iter().map(f64::from).collect(),
    };
    if fixture.flag("sep_pos_embed") {
        let plane = table(positions::plane(rows, columns, width));
        report.meet("pos_table.pos_embed_spatial", &plane);
        report.meet("pos_table.pos_embed_temporal", &table(positions::line(frames, width)));
    } else {
        report.meet("pos_table.pos_embed", &table(positions::joint(lattice, width, 1)));
    }
}

/// Checks a classifier: the whole clip, cross entropy of the logits.
pub fn check_classifier(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let mut options = options(&fixture, "gelu");
    options["classes"] = fixture.count("num_classes").into();
    options["extra_mlp"] = (fixture.config["model"] == "internvideo2_ap").into();
    let [b, _, t, h, w] = inputs["video"].shape[..] else { panic!("a video has five dims") };
    let sizes = dims([("B", b), ("T", t), ("H", h), ("W", w)]);
    let network = Network::<Config>::load(&fixture, "model.safetensors", options, &sizes);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);

    let device = autodiff();
    let video = inputs["video"].float::<5>(&device).require_grad();
    let mut outputs = network.forward(Tensors::of("video", video.clone()));
    let logits: Tensor<2> = port(&mut outputs, "logits");
    report.meet("logits", &Array::of(logits.clone()));
    let loss = CrossEntropy::new(0.0).forward(logits, inputs["labels"].int::<1>(&device));
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));

    let video = video.inner();
    let module = burn::module::Module::valid(&network.module);
    check_inside(&mut report, &module, &video, None);
    let pooled: Tensor<2> = port(&mut outputs, "pooled");
    let pooled = match &network.module.extra_mlp {
        Some(extra) => pooled.clone() + extra.mlp.forward(extra.norm.forward(pooled)),
        None => pooled,
    };
    let norm = network.module.fc_norm.as_ref().expect("a classifier has a norm");
    report.meet("fc_norm", &Array::of(norm.forward(pooled)));
    check_tables(&mut report, &fixture, lattice(&fixture, &inputs["video"]));
    report.finish()
}
