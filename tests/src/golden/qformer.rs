//! `blip2_qformer`: queries alone, with a text, and the text alone.

use std::path::Path;

use burn::module::Module as _;
use burn::tensor::Tensor;
use modules::kind::Kind;
use modules::layers::bert::qformer::Text;
use modules::layers::block::Context;
use modules::models::qformer::{Config, Mode};
use modules::tensors::Tensors;
use schemas::dims::Dims;

use super::bert::{check_blocks, ints};
use super::fixture::{Array, Fixture};
use super::network::{Network, autodiff, call, check_coverage, check_gradients, port};
use super::report::Report;

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let published = Config::published(&fixture.config).expect("the configuration is known");
    let network =
        Network::<Config>::load(&fixture, "model.safetensors", published.options, &Dims::new());
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);
    let image = inputs["image_embeds"].float::<3>(&autodiff()).require_grad();
    let text = inputs["text_embeds"].float::<3>(&autodiff()).require_grad();
    let seen = ints::<2>(&inputs, "image_attention_mask");
    let mask = ints::<2>(&inputs, "text_attention_mask");
    let module = network.module.valid();
    let mut all = Vec::new();
    for (name, mode) in [("query", Mode::Query), ("joint", Mode::Joint), ("text", Mode::Text)] {
        let (asks, reads) = (mode != Mode::Query, mode != Mode::Text);
        let mut given = Tensors::new();
        if reads {
            given = given.with("memory", image.clone()).with("memory_mask", seen.clone());
        }
        if asks {
            given = given.with("embeddings", text.clone()).with("mask", mask.clone());
        }
        let kind = Config { mode, ..network.kind.clone() };
        let outputs = kind.forward(&network.module, given, &call());
        let mut outputs = outputs.unwrap_or_else(|error| panic!("{error}"));
        let out: Tensor<3> = port(&mut outputs, "tokens");
        report.meet(&format!("{name}.out"), &Array::of(out.clone()));
        report.meet(&format!("{name}.pooled"), &Array::of(port::<2>(&mut outputs, "pooled")));
        all.push(out);

        let read = reads.then(|| (image.clone().inner(), Some(seen.clone())));
        let text = asks.then(|| Text { tokens: text.clone().inner(), mask: Some(mask.clone()) });
        let (x, context) = module.prepare(read, text, &Context::default());
        check_blocks(&mut report, &format!("{name}."), &module.blocks, x, &context);
    }
    let part = |number: usize, name: &str| {
        let weight = inputs[name].float::<3>(&autodiff());
        (all[number].clone() * weight).sum().div_scalar(100.0)
    };
    let loss = part(0, "cotangent_query") + part(1, "cotangent_joint");
    report.meet("loss", &Array::of(loss.clone()));
    let mut found = loss.backward();
    for (name, leaf) in [("image_embeds", &image), ("text_embeds", &text)] {
        let gradient = leaf.grad(&found).expect("the input has a gradient");
        report.meet(&format!("grad_input.{name}"), &Array::of(gradient));
    }
    let gradients = network.gradients(&mut found);
    report.meet("grad_input.query_tokens", &gradients["query_tokens"]);
    check_gradients(&mut report, &fixture, "", &gradients);
    report.finish()
}
