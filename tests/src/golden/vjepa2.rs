//! `vjepa2` and `vjepa2_loss`: encoder, predictor, pooler, and the loss of the training.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use modules::kind::Kind;
use modules::layers::block::Context;
use modules::layers::{latent, tokens};
use modules::losses::cross_entropy::CrossEntropy;
use modules::losses::latent_l1;
use modules::models::{attentive_pooler, vjepa2, vjepa2_predictor};
use modules::tensors::Tensors;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::fixture::{Array, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, followed, port};
use super::report::Report;

type Encoder = Network<vjepa2::Config>;
type Predictor = Network<vjepa2_predictor::Config>;

fn device() -> Device {
    autodiff().inner()
}

/// A published network in the words of a kind, and the dims of its node.
fn published<K: Kind>(fixture: &Fixture, more: Dims) -> (Value, Dims) {
    let found = K::published(&fixture.config).expect("the configuration is of this kind");
    let mut dims = found.dims;
    dims.extend(more);
    (found.options, dims)
}

fn load<K: Kind + std::fmt::Debug>(fixture: &Fixture, file: &str, sides: &Dims) -> Network<K> {
    let (options, sides) = published::<K>(fixture, sides.clone());
    Network::load(fixture, file, options, &sides)
}

/// Dims of all nodes for a clip of `[B, 3, T, H, W]`.
fn sides(fixture: &Fixture, [b, t, h, w]: [usize; 4]) -> Dims {
    let (tubelet, patch) = (fixture.count("tubelet_size"), fixture.count("patch_size"));
    let mut all = dims([("B", b), ("T", t), ("H", h), ("W", w)]);
    all.extend(dims([("t", t / tubelet), ("h", h / patch), ("w", w / patch)]));
    all
}

fn predict(
    predictor: &Predictor,
    tokens: Tensor<3>,
    visible: &Tensor<2, Int>,
    hidden: &Tensor<2, Int>,
) -> Tensor<3> {
    let inputs = Tensors::of("tokens", tokens)
        .with("visible", visible.clone())
        .with("hidden", hidden.clone());
    port(&mut predictor.forward(inputs), "predicted")
}

/// The loss node between predicted tokens and those of a teacher.
fn distance(
    fixture: &Fixture,
    (exponent, normalise): (u8, bool),
    predicted: Tensor<3>,
    target: Tensor<3>,
    hidden: &Tensor<2, Int>,
) -> Tensor<1> {
    let options = json!({ "exponent": exponent, "normalise": normalise });
    let loss: Network<latent_l1::Config> =
        Network::load(fixture, WEIGHTS[usize::from(normalise)], options, &Dims::new());
    let inputs =
        Tensors::of("predicted", predicted).with("target", target).with("hidden", hidden.clone());
    port(&mut loss.forward(inputs), "loss")
}

/// Weights of `vjepa2` and of `vjepa2_loss`.
const WEIGHTS: [&str; 2] = ["model.safetensors", "weights.safetensors"];

/// Checks `vjepa2`, in the layout of transformers.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let pixels = &inputs["pixel_values_videos"];
    let [b, t, _, h, w] = pixels.shape[..] else { panic!("a video has five dims") };
    let sides = sides(&fixture, [b, t, h, w]);
    let encoder: Encoder = load(&fixture, WEIGHTS[0], &sides);
    let predictor: Predictor = load(&fixture, WEIGHTS[0], &sides);
    let pooler: Network<attentive_pooler::Config> = load(&fixture, WEIGHTS[0], &sides);
    let taken = [&encoder.taken, &predictor.taken, &pooler.taken];
    check_coverage(&mut report, &fixture, WEIGHTS[0], &taken);

    let pixels = pixels.float::<5>(&autodiff()).require_grad();
    let video = pixels.clone().swap_dims(1, 2);
    let mut given = encoder.forward(Tensors::of("video", video.clone()));
    let seen: Tensor<3> = port(&mut given, "tokens");
    report.meet("encoder_out", &Array::of(seen.clone()));
    let [context, hidden] =
        ["context_mask", "target_mask"].map(|mask| inputs[mask].int::<2>(&device()));
    let shown = tokens::gather(seen.clone(), context.clone());
    report.meet("masked_hidden_state", &Array::of(shown.clone()));
    let wanted = tokens::gather(seen.clone(), hidden.clone());
    report.meet("target_hidden_state", &Array::of(wanted));
    let predicted = predict(&predictor, shown.clone(), &context, &hidden);
    report.meet("predictor_out", &Array::of(predicted.clone()));
    let target = seen.clone().detach();
    let jepa = distance(&fixture, (1, false), predicted, target, &hidden);
    report.meet("jepa_loss", &Array::of(jepa.clone()));

    let mut outputs = pooler.forward(Tensors::of("tokens", seen.clone()));
    let logits: Tensor<2> = port(&mut outputs, "logits");
    report.meet("pooled", &Array::of(port::<2>(&mut outputs, "pooled")));
    report.meet("cls_logits", &Array::of(logits.clone()));
    let class = CrossEntropy::new(0.0).forward(logits, inputs["labels"].int::<1>(&device()));
    report.meet("cls_loss", &Array::of(class.clone()));
    let loss = jepa + class;
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = pixels.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.pixel_values_videos", &Array::of(gradient));
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(predictor.gradients(&mut all));
    gradients.extend(pooler.gradients(&mut all));
    check_gradients(&mut report, &fixture, "", &gradients);

    check_encoder(&mut report, &encoder, video.inner());
    check_predictor(&mut report, &predictor, shown.inner(), &context, &hidden);
    let patches = seen.dims()[1] as i64;
    let every = rows(vec![(0..patches).collect(); b]);
    let full = predict(&predictor, seen, &every, &every);
    report.meet("full.predictor_out", &Array::of(full));
    report.finish()
}

/// Indices `[B, N]`.
fn rows(rows: Vec<Vec<i64>>) -> Tensor<2, Int> {
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    Tensor::from_data(TensorData::new(rows.concat(), shape), &device())
}

fn check_encoder(report: &mut Report, encoder: &Encoder, video: Tensor<5>) {
    let module = encoder.module.valid();
    let (mut x, context) = module.embed(video, None);
    report.meet("embeddings", &Array::of(x.clone()));
    for (number, block) in module.blocks.iter().enumerate() {
        report.meet(&format!("attn.{number}"), &Array::of(block.map(x.clone(), &context)));
        x = block.forward(x, &context);
        report.meet(&format!("hidden.{number}"), &Array::of(x.clone()));
    }
}

/// Inside the predictor the reference sorts tokens by their places.
fn check_predictor(
    report: &mut Report,
    predictor: &Predictor,
    shown: Tensor<3>,
    visible: &Tensor<2, Int>,
    hidden: &Tensor<2, Int>,
) {
    let module = predictor.module.valid();
    let places = Tensor::cat(vec![visible.clone(), hidden.clone()], 1);
    let count = places.dims()[1];
    let places: Vec<i64> = places.to_data().iter::<i64>().collect();
    let order = |row: &[i64]| {
        let mut order: Vec<i64> = (0..row.len() as i64).collect();
        order.sort_by_key(|i| row[*i as usize]);
        order
    };
    let orders: Vec<Vec<i64>> = places.chunks(count).map(order).collect();
    let sorted = |row: &[i64]| {
        let mut row = row.to_vec();
        row.sort_unstable();
        row
    };
    let sorted: Vec<Vec<i64>> = places.chunks(count).map(sorted).collect();
    let (order, sorted) = (rows(orders), rows(sorted));
    let x = module.embed(shown, hidden.dims()[1]);
    let mut x = tokens::gather(x, order);
    let context = Context { rope: Some(module.rope(&sorted)), ..Context::default() };
    for (number, block) in module.blocks.iter().enumerate() {
        let map = block.map(x.clone(), &context);
        report.meet(&format!("predictor_attn.{number}"), &Array::of(map));
        x = block.forward(x, &context);
        report.meet(&format!("predictor_hidden.{number}"), &Array::of(x.clone()));
    }
}

/// Checks `vjepa2_loss`, in the layout of the official code.
pub fn check_loss(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let io = fixture.arrays("io.safetensors");
    let given = |name: &String| name.starts_with("input.") || name.starts_with("mask.");
    let expected = io.clone().into_iter().filter(|(name, _)| !given(name)).collect();
    let mut report = Report::new(&fixture, expected);
    let clip = &io["input.clip"];
    let [b, _, t, h, w] = clip.shape[..] else { panic!("a video has five dims") };
    let sides = sides(&fixture, [b, t, h, w]);
    let encoder: Encoder = load(&fixture, WEIGHTS[1], &sides);
    let predictor: Predictor = load(&fixture, WEIGHTS[1], &sides);
    let taken = [&encoder.taken, &predictor.taken];
    check_coverage(&mut report, &fixture, WEIGHTS[1], &taken);
    const TARGET: &str = "target_weights.safetensors";
    let teacher: Encoder = load(&fixture, TARGET, &sides);
    check_coverage(&mut report, &fixture, TARGET, &[&teacher.taken]);

    let video = clip.float::<5>(&autodiff()).require_grad();
    let mut taught = teacher.forward(Tensors::of("video", video.clone().inner()));
    let raw: Tensor<3> = port::<3>(&mut taught, "tokens").inner();
    report.meet("target.raw", &Array::of(raw.clone()));
    let normed = latent::standard(raw.clone());
    report.meet("target.layernormed", &Array::of(normed.clone()));
    let mut losses: [Vec<Tensor<1>>; 2] = Default::default();
    for mask in (0..).take_while(|mask| io.contains_key(&format!("mask.enc.{mask}"))) {
        let index = |of: &str| io[&format!("mask.{of}.{mask}")].int::<2>(&device());
        let (visible, hidden) = (index("enc"), index("pred"));
        let inputs = Tensors::of("video", video.clone()).with("visible", visible.clone());
        let context: Tensor<3> = port(&mut encoder.forward(inputs), "tokens");
        report.meet(&format!("context.{mask}"), &Array::of(context.clone()));
        let predicted = predict(&predictor, context, &visible, &hidden);
        report.meet(&format!("pred.{mask}"), &Array::of(predicted.clone()));
        let wanted = tokens::gather(normed.clone(), hidden.clone());
        report.meet(&format!("target.masked.{mask}"), &Array::of(wanted));
        for (exponent, losses) in (1..).zip(&mut losses) {
            let pair = (predicted.clone(), raw.clone());
            losses.push(distance(&fixture, (exponent, true), pair.0, pair.1, &hidden));
        }
    }
    let [one, two] = losses.map(|losses| {
        let count = losses.len() as f64;
        Tensor::cat(losses, 0).sum().div_scalar(count)
    });
    report.meet("loss.exp2", &Array::of(two));
    report.meet("loss.exp1", &Array::of(one.clone()));
    let mut all = one.backward();
    report.meet("grad.input", &Array::of(video.grad(&all).expect("the video has a gradient")));
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(predictor.gradients(&mut all));
    meet_named(&mut report, "grad.", &gradients);

    let named = ("models/vjepa2", &sides);
    let files = [TARGET, WEIGHTS[1]];
    let after = followed(&fixture, &teacher, named, files, fixture.number("ema"));
    let short = |(key, array): (String, Array)| {
        (key.trim_start_matches("target_encoder.").to_owned(), array)
    };
    meet_named(&mut report, "ema.", &after.into_iter().map(short).collect());
    report.finish()
}

/// Compares the arrays that the fixture has under this prefix.
pub fn meet_named(report: &mut Report, prefix: &str, arrays: &super::fixture::Arrays) {
    for (key, array) in arrays {
        let name = format!("{prefix}{key}");
        if report.expects(&name) {
            report.meet(&name, array);
        }
    }
}
