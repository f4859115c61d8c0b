//! `videomae_pretrain` and `videomae_model`: VideoMAE as transformers writes it.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use modules::init::Init;
use modules::layers::norm::Norm;
use modules::losses::cross_entropy::CrossEntropy;
use modules::losses::masked_pixel;
use modules::models::{videomae_decoder, videomae_v2};
use modules::parameters;
use modules::tensors::{AnyTensor, Tensors};
use schemas::dims::Dims;
use serde_json::json;

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;
use super::teachers::check_blocks;

const WEIGHTS: &str = "model.safetensors";

type Encoder = Network<videomae_v2::Config>;
type Decoder = Network<videomae_decoder::Config>;

/// A clip `[B, T, 3, H, W]`, which is how transformers has it, as a leaf.
fn clip(inputs: &Arrays) -> Tensor<5> {
    inputs["pixel_values"].float::<5>(&autodiff()).require_grad()
}

fn video(clip: &Tensor<5>) -> Tensor<5> {
    clip.clone().swap_dims(1, 2)
}

fn grad(report: &mut Report, clip: &Tensor<5>, all: &burn::tensor::Gradients) {
    let gradient = clip.grad(all).expect("the clip has a gradient");
    report.meet("grad_input.pixel_values", &Array::of(gradient));
}

fn check_table(report: &mut Report, name: &str, values: &[f32]) {
    let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    report.meet(name, &Array { shape: vec![values.len()], values });
}

/// Checks the masked autoencoder.
pub fn check_autoencoder(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let mask = &inputs["bool_masked_pos"];
    let (seen, hidden) = (mask.places(0.0, 0), mask.places(1.0, 0));
    let sizes = dims([("B", mask.shape[0]), ("V", seen.shape[1]), ("M", hidden.shape[1])]);
    let encoder = Encoder::published(&fixture, WEIGHTS, &sizes);
    let decoder = Decoder::published(&fixture, WEIGHTS, &sizes);
    check_coverage(&mut report, &fixture, WEIGHTS, &[&encoder.taken, &decoder.taken]);

    let clip = clip(&inputs);
    let device = autodiff().inner();
    let (seen, hidden) = (seen.int::<2>(&device), hidden.int::<2>(&device));
    let given = Tensors::of("video", video(&clip)).with("visible", seen.clone());
    let tokens: Tensor<3> = port(&mut encoder.forward(given), "tokens");
    let given = Tensors::of("tokens", tokens.clone());
    let given = given.with("visible", seen.clone()).with("decode", hidden.clone());
    let painted: Tensor<3> = port(&mut decoder.forward(given), "pixels");
    report.meet("logits", &Array::of(painted.clone()));
    let loss = |normalise: bool| {
        let mut sizes = sizes.clone();
        sizes.extend(lattice(&fixture, &inputs["pixel_values"].shape));
        sizes.insert("C".to_owned(), painted.dims()[2]);
        let options = json!({ "normalise": normalise });
        let network = Network::<masked_pixel::Config>::load(&fixture, WEIGHTS, options, &sizes);
        let inputs = Tensors::of("predicted", painted.clone())
            .with("video", video(&clip).inner())
            .with("decode", hidden.clone());
        port::<1>(&mut network.forward(inputs), "loss")
    };
    report.meet("raw.loss", &Array::of(loss(false)));
    let loss = loss(true);
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    grad(&mut report, &clip, &all);
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(decoder.gradients(&mut all));
    check_gradients(&mut report, &fixture, "", &gradients);
    check_inside(&mut report, (&encoder, &decoder), &clip.inner(), tokens.inner(), [seen, hidden]);
    report.finish()
}

/// The lattice of the clip, and the sides of the clip.
fn lattice(fixture: &Fixture, clip: &[usize]) -> Dims {
    let [_, t, _, h, w] = clip[..] else { panic!("a clip has five dims") };
    let (patch, tubelet) = (fixture.count("patch_size"), fixture.count("tubelet_size"));
    dims([("T", t), ("H", h), ("W", w), ("t", t / tubelet), ("h", h / patch), ("w", w / patch)])
}

fn check_inside(
    report: &mut Report,
    (encoder, decoder): (&Encoder, &Decoder),
    clip: &Tensor<5>,
    tokens: Tensor<3>,
    [seen, hidden]: [Tensor<2, Int>; 2],
) {
    let (encoder, decoder) = (encoder.module.valid(), decoder.module.valid());
    let x = encoder.embed(video(clip), Some(seen.clone()));
    report.meet("embeddings", &Array::of(x.clone()));
    check_blocks(report, &encoder.blocks, x, "", Some("attn"));
    let narrow = decoder.encoder_to_decoder.forward(tokens.clone());
    report.meet("decoder_in", &Array::of(narrow));
    let x = decoder.embed(tokens, seen, hidden);
    check_blocks(report, &decoder.blocks, x, "decoder_", Some("attn"));
    check_table(report, "pos_table.encoder", encoder.table.values());
    check_table(report, "pos_table.decoder", decoder.table.values());
}

/// Checks the classifier, and the encoder with a norm of its tokens.
pub fn check_classifier(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let network = Encoder::published(&fixture, WEIGHTS, &Dims::new());
    check_coverage(&mut report, &fixture, WEIGHTS, &[&network.taken]);
    let clip = clip(&inputs);
    let mut outputs = network.forward(Tensors::of("video", video(&clip)));
    let logits: Tensor<2> = port(&mut outputs, "logits");
    report.meet("logits", &Array::of(logits.clone()));
    report.meet("pooled", &Array::of(port::<2>(&mut outputs, "pooled")));
    let labels = inputs["labels"].int::<1>(&autodiff());
    let loss = CrossEntropy::new(0.0).forward(logits, labels);
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    grad(&mut report, &clip, &all);
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));

    let module = network.module.valid();
    let x = module.embed(video(&clip.inner()), None);
    report.meet("embeddings", &Array::of(x.clone()));
    check_blocks(&mut report, &module.blocks, x, "", Some("attn"));
    // The same stack in a checkpoint with a norm of the tokens instead of one of their mean.
    let tokens: Tensor<3> = port(&mut outputs, "tokens");
    let device = autodiff().inner();
    let (width, eps) = (fixture.count("hidden_size"), fixture.number("layer_norm_eps"));
    let norm = Norm::layer(width, eps, &Init::new(0, "norm", &device));
    let norm = parameters::map(norm, &mut |parameter, _| {
        let key = format!("nopool.layernorm.{}", parameter.path);
        AnyTensor::F1(inputs[&key].float::<1>(&device))
    });
    report.meet("nopool.last_hidden_state", &Array::of(norm.forward(tokens.inner())));
    report.finish()
}
