//! `beats`: from the waveform to class probabilities, with and without padding.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor, activation};
use modules::audio::{beats, fbank};
use modules::init::Init;
use modules::kind::{Call, Kind};
use modules::layers::block::Block;
use modules::layers::{mel, relative};
use modules::rng::Key;
use modules::tensors::Tensors;
use schemas::dims::Dims;
use schemas::node::At;

use super::fixture::{Array, Fixture};
use super::network::{Network, autodiff, check_gradients, port};
use super::report::Report;

const WEIGHTS: &str = "model.safetensors";

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let network = Network::<beats::Config>::published(&fixture, WEIGHTS, &Dims::new());
    // The table of distances is written once for each layer, and shared.
    let shared = "self_attn.relative_attention_bias.weight";
    let keys = fixture.arrays(WEIGHTS).into_keys();
    let expected =
        keys.filter(|key| !key.ends_with(shared) || key.starts_with("encoder.layers.0."));
    report.same("keys", &network.taken, &expected.collect());

    let device = autodiff();
    let waveform = inputs["waveform"].float::<2>(&device).require_grad();
    let rows = mel::frames(waveform.dims()[1]);
    report.meet("fbank_raw", &Array::of(mel::filterbank(waveform.clone(), 128)));
    let front = fbank::Config { rows, ..fbank::Config::default() };
    let front = front.init(&Dims::new(), &Init::new(0, "fbank", &device));
    let bank = front.forward(waveform.clone());
    let padding = &inputs["padding_mask"];
    let values = padding.values.iter().map(|pad| 1.0 - pad).collect();
    let mask = Array { shape: padding.shape.clone(), values }.int::<2>(&device.clone().inner());
    let mut loss = Tensor::<1>::zeros([1], &device);
    let cotangent = inputs["cotangent"].float::<2>(&device.clone().inner());
    for (prefix, mask) in [("", None), ("pad.", Some(mask.clone()))] {
        let mut given = Tensors::of("fbank", bank.clone());
        if let Some(mask) = mask {
            given = given.with("mask", mask);
        }
        let mut outputs = network.forward(given);
        let tokens: Tensor<3> = port(&mut outputs, "tokens");
        report.meet(&format!("{prefix}encoder_out"), &Array::of(tokens));
        let shares = activation::sigmoid(port::<2>(&mut outputs, "logits"));
        report.meet(&format!("{prefix}lprobs"), &Array::of(shares.clone()));
        loss = loss + (shares * cotangent.clone()).sum();
    }
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = waveform.grad(&all).expect("the waveform has a gradient");
    report.meet("grad_input.waveform", &Array::of(gradient));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));
    check_inside(&mut report, &network.module.valid(), bank.inner(), &mask);
    report.finish()
}

fn check_inside(
    report: &mut Report,
    module: &beats::Beats,
    bank: Tensor<3>,
    mask: &Tensor<2, Int>,
) {
    let rows = bank.dims()[1];
    let features = module.patches(bank.clone());
    report.meet("features", &Array::of(features.clone()));
    let tokens = features.dims()[1];
    let there: Vec<f64> = relative::present(mask, rows, tokens)
        .into_data()
        .iter::<i64>()
        .map(|v| 1.0 - v as f64)
        .collect();
    let expected = report.take("pad.token_padding_mask").values;
    report.same("pad.token_padding_mask", &there, &expected);
    let x = match &module.project {
        Some(project) => project.forward(features),
        None => features,
    };
    report.meet("pos_conv", &Array::of(module.pos_conv.forward(x).swap_dims(1, 2)));
    let distances = module.distances(tokens);
    report.meet("position_bias", &Array::of(distances.clone()));
    let mut x = module.embed(bank, None);
    let call = Call::new(Key::new(0, "golden"), At::default());
    for (number, layer) in module.blocks.iter().enumerate() {
        let context = module.context(layer, x.clone(), distances.clone(), None, &call);
        let block: &Block = &layer.block;
        report.meet(&format!("attn.{number}"), &Array::of(block.map(x.clone(), &context)));
        x = layer.block.forward(x, &context);
        report.meet(&format!("hidden.{number}"), &Array::of(x.clone().swap_dims(0, 1)));
    }
}
