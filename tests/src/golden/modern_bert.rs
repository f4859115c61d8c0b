//! `modernbert`: the network with its head of words, and its last layers alone.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use modules::kind::Kind;
use modules::layers::block::Block;
use modules::losses::cross_entropy::CrossEntropy;
use modules::tensors::Tensors;
use modules::text::modern_bert::Config;
use schemas::dims::Dims;

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, port};
use super::report::Report;

const WEIGHTS: &str = "model.safetensors";

type Bert = Network<Config>;

fn device() -> Device {
    autodiff().inner()
}

/// Compares tokens of texts, `[B, .., L, D]`, where the mask is 1: others have no meaning.
fn meet_texts(report: &mut Report, name: &str, found: Array, mask: &Array) {
    let (batch, length) = (mask.shape[0], mask.shape[1]);
    let width = *found.shape.last().expect("tokens have channels");
    let repeats = found.values.len() / (batch * length * width);
    let blank = |mut array: Array| {
        for (row, values) in array.values.chunks_mut(width).enumerate() {
            let sample = row / (repeats * length);
            if mask.values[sample * length + row % length] == 0.0 {
                values.fill(0.0);
            }
        }
        array
    };
    let expected = report.take(name);
    report.compare(name, &blank(found), &blank(expected));
}

/// Cross entropy of the words that were hidden.
fn words_loss(logits: Tensor<3>, labels: &Array) -> Tensor<1> {
    let [batch, length, words] = logits.dims();
    let named = labels.values.iter().enumerate().filter(|(_, label)| **label >= 0.0);
    let (rows, named): (Vec<i64>, Vec<i64>) =
        named.map(|(row, label)| (row as i64, *label as i64)).unzip();
    let pick = |values: Vec<i64>| Tensor::<1, Int>::from_data(values.as_slice(), &device());
    let chosen = logits.reshape([batch * length, words]).select(0, pick(rows));
    CrossEntropy::new(0.0).forward(chosen, pick(named))
}

/// Compares the residual stream after each layer and, where it is expected, its attention map.
fn check_layers(
    report: &mut Report,
    (blocks, kind): (&[Block], &Config),
    x: Tensor<3>,
    mask: &Array,
    prefix: &str,
) -> Tensor<3> {
    let present = mask.int::<2>(&device());
    let stack = kind.stack();
    let contexts = stack.contexts(&x, Some(&present));
    let mut x = x;
    for (place, block) in blocks.iter().enumerate() {
        let context = &contexts[usize::from(!stack.is_global(place))];
        let name = format!("{prefix}attn.{place}");
        if report.expects(&name) {
            meet_texts(report, &name, Array::of(block.map(x.clone(), context)), mask);
        }
        x = block.forward(x, context);
        meet_texts(report, &format!("{prefix}hidden.{place}"), Array::of(x.clone()), mask);
    }
    x
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let published = Config::published(&fixture.config).expect("the configuration is of this kind");
    let options = published.options;
    let network: Bert = Network::load(&fixture, WEIGHTS, options.clone(), &published.dims);
    check_coverage(&mut report, &fixture, WEIGHTS, &[&network.taken]);
    let mask = &inputs["attention_mask"];
    let ids = inputs["input_ids"].int::<2>(&device());

    let given = Tensors::of("ids", ids.clone()).with("mask", mask.int::<2>(&device()));
    let mut outputs = network.forward(given);
    let logits: Tensor<3> = port(&mut outputs, "logits");
    meet_texts(&mut report, "logits", Array::of(logits.clone()), mask);
    let tokens: Tensor<3> = port(&mut outputs, "tokens");
    meet_texts(&mut report, "last_hidden_state", Array::of(tokens.clone()), mask);
    let head = network.module.mlm.as_ref().expect("there is a head of words");
    meet_texts(&mut report, "head", Array::of(head.features(tokens)), mask);
    let loss = words_loss(logits, &inputs["labels"]);
    report.meet("loss", &Array::of(loss.clone()));
    let gradients = network.gradients(&mut loss.backward());
    check_gradients(&mut report, &fixture, "", &gradients);
    check_inside(&mut report, &network, ids, &inputs);

    let mut options = options;
    let (depth, last) = (fixture.count("num_hidden_layers"), fixture.count("golden_last_k"));
    options["first"] = (depth - last).into();
    options["mlm"] = false.into();
    let last: Bert = Network::load(&fixture, WEIGHTS, options, &Dims::new());
    check_last(&mut report, &fixture, &last, &inputs);
    report.finish()
}

/// Embeddings, layers, rotary tables, and the gradient of the rows of words.
fn check_inside(report: &mut Report, network: &Bert, ids: Tensor<2, Int>, inputs: &Arrays) {
    let mask = &inputs["attention_mask"];
    let rows = network.module.rows(ids).unwrap_or_else(|error| panic!("{error}"));
    let rows = rows.inner();
    let leaf = Tensor::<3>::from_inner(rows.clone()).require_grad();
    let call = super::network::call();
    let present = mask.int::<2>(&device());
    let x = network.module.enter(leaf.clone());
    let mut states = network.kind.stack().run(&network.module.blocks, x, Some(&present), &call);
    let x = network.module.leave(states.pop().expect("there are layers"));
    let logits = network.module.scores(x).expect("there is a head of words");
    let all = words_loss(logits, &inputs["labels"]).backward();
    let gradient = leaf.grad(&all).expect("the rows have a gradient");
    report.meet("grad_input.inputs_embeds", &Array::of(gradient));

    let module = network.module.valid();
    let x = module.enter(rows);
    meet_texts(report, "embeddings", Array::of(x.clone()), mask);
    let ropes = network.kind.stack().ropes(x.dims()[1], &device());
    for (name, rope) in ["full", "sliding"].into_iter().zip(ropes) {
        let [cosines, _] = rope.tables();
        report.meet(&format!("rope.cos.{name}"), &Array::of(cosines));
    }
    check_layers(report, (&module.blocks, &network.kind), x, mask, "");
}

/// The last layers alone, from given tokens.
fn check_last(report: &mut Report, fixture: &Fixture, last: &Bert, inputs: &Arrays) {
    let mask = &inputs["attention_mask"];
    let hidden = inputs["lastk.hidden_in"].float::<3>(&autodiff()).require_grad();
    let given = Tensors::of("hidden", hidden.clone()).with("mask", mask.int::<2>(&device()));
    let out: Tensor<3> = port(&mut last.forward(given), "tokens");
    meet_texts(report, "lastk.out", Array::of(out.clone()), mask);
    let loss = (out * inputs["lastk.cotangent"].float(&device())).sum();
    report.meet("lastk.loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = hidden.grad(&all).expect("the tokens have a gradient");
    report.meet("lastk.grad_input.lastk.hidden_in", &Array::of(gradient));
    check_gradients(report, fixture, "lastk.", &last.gradients(&mut all));
    let module = last.module.valid();
    check_layers(report, (&module.blocks, &last.kind), hidden.inner(), mask, "lastk.");
}
