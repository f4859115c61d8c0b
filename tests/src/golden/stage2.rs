//! `internvideo2_stage2`: the text tower cut in two nodes, with contrast, matching and hidden words.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module as _;
use burn::tensor::{Int, Tensor, TensorData, activation};
use modules::kind::Kind;
use modules::layers::bert::network::{memory, seen};
use modules::layers::block::Context;
use modules::layers::norm::unit;
use modules::layers::rows::Rows;
use modules::losses::{masked_token, matching};
use modules::select::{self, concatenate, gather, hard_negatives};
use modules::tensors::{Ranked, Tensors};
use modules::text::bert;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::bert::{check_blocks, ints};
use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, plain, port};
use super::report::Report;

type Text = Network<bert::Config>;

/// A part of the text network.
fn part(fixture: &Fixture, more: &Value) -> Text {
    let published = bert::Config::published(&fixture.config).expect("the configuration is known");
    let mut options = published.options;
    for (name, value) in more.as_object().expect("options") {
        options[name] = value.clone();
    }
    Network::load(fixture, "model.safetensors", options, &Dims::new())
}

/// Rows of these numbers, as the node gives them.
fn rows<T: Ranked + Clone>(of: Rows, from: &T, index: &Tensor<1, Int>) -> T {
    let given = Tensors::of("rows", from.clone()).with("index", index.clone());
    take(&mut plain(&gather::Config { of }, given), "chosen")
}

/// Rows of all tensors, as the node gives them.
fn join<T: Ranked + Clone>(of: Rows, parts: &[&T]) -> T {
    let names = ["first", "second", "third", "fourth"];
    let add = |given: Tensors, (name, part): (&str, &&T)| given.with(name, (*part).clone());
    let given = names.into_iter().zip(parts).fold(Tensors::new(), add);
    take(&mut plain(&concatenate::Config { of }, given), "all")
}

fn take<T: Ranked>(tensors: &mut Tensors, name: &str) -> T {
    tensors.take(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Some of the equal parts of a tensor, as the node gives them.
fn some<T: Ranked + Clone>(of: Rows, from: &T, [first, end, parts]: [usize; 3]) -> T {
    let kind = select::part::Config { of, parts, from: first, to: Some(end) };
    take(&mut plain(&kind, Tensors::of("rows", from.clone())), "part")
}

// joined by losses/info_nce
/// The contrastive part: projections, temperature and loss.
struct Contrast {
    leaves: Vec<(&'static str, Tensor<2>)>,
    temperature: Tensor<1>,
}

impl Contrast {
    fn load(fixture: &Fixture) -> Self {
        let held = fixture.arrays("model.safetensors");
        let leaf = |name: &'static str| {
            let array = &held[name];
            let rows = if array.shape.len() == 2 { array.shape[0] } else { 1 };
            let shape = vec![rows, array.values.len() / rows];
            let array = Array { shape, values: array.values.clone() };
            (name, array.float::<2>(&autodiff()).require_grad())
        };
        let names =
            ["vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias"];
        let temperature = Array { shape: vec![1], values: held["temp"].values.clone() };
        Self {
            leaves: names.map(leaf).into(),
            temperature: temperature.float::<1>(&autodiff()).require_grad(),
        }
    }

    /// Keys that no other network takes.
    fn taken(&self) -> BTreeSet<String> {
        let own = self.leaves.iter().map(|(name, _)| (*name).to_owned());
        // The second matrix of the head of words is the first one again.
        let again = ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"];
        let again = again.into_iter().chain(["bert.embeddings.position_ids"]);
        let again = again.map(|name| format!("text_encoder.{name}"));
        own.chain(again).chain(["temp".to_owned()]).collect()
    }

    fn project<const R: usize>(&self, name: &str, x: Tensor<R>) -> Tensor<R> {
        let leaf = |end: &str| {
            let key = format!("{name}.{end}");
            let found = self.leaves.iter().find(|(held, _)| *held == key);
            found.expect("the leaf is held").1.clone()
        };
        let bias = leaf("bias").reshape([-1]);
        burn::tensor::module::linear(x, leaf("weight").transpose(), Some(bias))
    }

    fn similarity(&self, vision: Tensor<2>, text: Tensor<2>) -> Tensor<2> {
        let scores = unit(vision).matmul(unit(text).transpose());
        scores / self.temperature.clone().unsqueeze::<2>()
    }

    /// Mean of both directions; rows whose ids are equal match.
    fn loss(similarity: Tensor<2>, ids: &[f64]) -> Tensor<1> {
        let count = ids.len();
        let share = |i: usize| {
            let row = ids.iter().filter(|id| **id == ids[i / count]).count() as f32;
            if ids[i / count] == ids[i % count] { 1.0 / row } else { 0.0 }
        };
        let values: Vec<f32> = (0..count * count).map(share).collect();
        let data = TensorData::new(values, [count, count]);
        let target = Tensor::<2>::from_data(data, &similarity.device());
        let one = |scores: Tensor<2>| {
            (activation::log_softmax(scores, 1) * target.clone()).sum().div_scalar(count as f64)
        };
        (one(similarity.clone()) + one(similarity.transpose())).div_scalar(-2.0)
    }

    fn gradients(&self, all: &burn::tensor::Gradients) -> Arrays {
        let one = |(name, leaf): &(&'static str, Tensor<2>)| {
            ((*name).to_owned(), Array::of(leaf.grad(all).expect("a gradient")))
        };
        let mut found: Arrays = self.leaves.iter().map(one).collect();
        let temperature = self.temperature.grad(all).expect("a gradient");
        found.insert("temp".to_owned(), Array::of(temperature));
        found
    }
}

/// What the contrast needs of the inputs, and whether it is met.
fn check_contrast(
    report: &mut Report,
    inputs: &Arrays,
    contrast: &Contrast,
    vision: &Tensor<2>,
    text: &Tensor<2>,
) -> Tensor<1> {
    let ids = &inputs["idx"].values;
    let v = contrast.project("vision_proj", vision.clone());
    let t = contrast.project("text_proj", text.clone());
    report.meet("vision_proj", &Array::of(v.clone()));
    report.meet("text_proj", &Array::of(t.clone()));
    let similarity = contrast.similarity(v, t.clone());
    report.meet("sim_v2t", &Array::of(similarity.clone()));
    report.meet("sim_t2v", &Array::of(similarity.clone().transpose()));
    let loss = Contrast::loss(similarity.clone(), ids);
    report.meet("loss_vtc", &Array::of(loss.clone()));
    let alone: Vec<f64> = (0..ids.len()).map(|i| i as f64).collect();
    report.meet("no_idx.loss_vtc", &Array::of(Contrast::loss(similarity.clone(), &alone)));

    let clips = inputs["pooled_vision_embeds_3d"].float::<3>(&autodiff());
    let clips = contrast.project("vision_proj", clips);
    let [_, times, _] = clips.dims();
    let each = |time: usize| {
        let one: Tensor<2> = clips.clone().slice_dim(1, time..time + 1).squeeze_dim(1);
        contrast.similarity(one, t.clone())
    };
    let all: Tensor<3> = Tensor::stack((0..times).map(each).collect::<Vec<_>>(), 0);
    let mean: Tensor<2> = all.clone().mean_dim(0).squeeze_dim(0);
    let most: Tensor<2> = all.max_dim(0).squeeze_dim(0);
    report.meet("vtc3d.loss_vtc", &Array::of(Contrast::loss(mean, ids)));
    report.meet("vtc3d.max.loss_vtc", &Array::of(Contrast::loss(most, ids)));

    // Weights of the negatives, as the node computes them.
    let side = ids.len();
    let scores = Array::of(similarity.inner()).values;
    let ids: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
    let columns = hard_negatives::transposed(&scores, side);
    for (name, scores) in [("weights_v2t", scores), ("weights_t2v", columns)] {
        let values = hard_negatives::weights(&scores, &ids);
        report.meet(name, &Array { shape: vec![side, side], values });
    }
    loss
}

/// Both parts from inside, on clean, matched and hidden words.
fn check_inside(
    report: &mut Report,
    inputs: &Arrays,
    (text, fusion): (&Text, &Text),
    batch: &Fused,
) {
    let (text, blocks) = (text.module.valid(), fusion.module.valid().blocks);
    let mask = ints::<2>(inputs, "attention_mask");
    let vision = inputs["vision_embeds"].float::<3>(&autodiff().inner());
    let tokens = mask.dims()[1];
    let own = |mask: &Tensor<2, Int>| Context {
        mask: seen(false, Some(mask), [tokens, tokens]),
        ..Context::default()
    };
    let asking = |context: Context, vision: Tensor<3>| Context {
        memory: Some(memory(vision, None, tokens)),
        ..context
    };
    let embed = |name: &str| {
        let words = text.words(ints(inputs, name)).expect("the ids are words");
        text.embed(words, None, 0, None).expect("the text is short")
    };
    let x = embed("input_ids");
    report.meet("text.embeddings", &Array::of(x.clone()));
    let x = check_blocks(report, "text.", &text.blocks, x, &own(&mask));
    report.meet("text.out", &Array::of(x.clone()));
    let x = check_blocks(report, "fusion.", &blocks, x, &asking(own(&mask), vision.clone()));
    report.meet("fusion.out", &Array::of(x));
    let mut x = check_blocks(report, "mlm.", &text.blocks, embed("mlm_input_ids"), &own(&mask));
    for (number, block) in blocks.iter().enumerate() {
        x = block.forward(x, &asking(own(&mask), vision.clone()));
        report.meet(&format!("mlm.hidden.{}", text.blocks.len() + number), &Array::of(x.clone()));
    }
    let pairs = 3 * mask.dims()[0];
    let part = |tokens: &Tensor<3>| tokens.clone().inner().slice_dim(0, 0..pairs);
    let mask = batch.mask.clone().slice_dim(0, 0..pairs);
    let (x, context) = (part(&batch.hidden), asking(own(&mask), part(&batch.memory)));
    check_blocks(report, "vtm.", &blocks, x, &context);
}

/// What the second part is given: pairs that match, those with another clip, those with another
/// text, and texts with hidden words.
struct Fused {
    hidden: Tensor<3>,
    memory: Tensor<3>,
    mask: Tensor<2, Int>,
}

fn fused(inputs: &Arrays, tokens: &Tensor<3>, vision: &Tensor<3>) -> Fused {
    let mask = ints::<2>(inputs, "attention_mask");
    let (of_text, of_vision) =
        (ints::<1>(inputs, "vision_neg_indices"), ints::<1>(inputs, "txt_neg_indices"));
    let clean = some(Rows::Tokens, tokens, [0, 1, 2]);
    let hidden = some(Rows::Tokens, tokens, [1, 2, 2]);
    let other_text = rows(Rows::Tokens, &clean, &of_vision);
    let other_vision = rows(Rows::Tokens, vision, &of_text);
    let other_mask = rows(Rows::Ids, &mask, &of_vision);
    Fused {
        hidden: join(Rows::Tokens, &[&clean, &clean, &other_text, &hidden]),
        memory: join(Rows::Tokens, &[vision, &other_vision, vision, vision]),
        mask: join(Rows::Ids, &[&mask, &mask, &other_mask, &mask]),
    }
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let text = part(&fixture, &json!({ "mode": "text" }));
    let fusion = part(&fixture, &json!({ "mode": "fusion", "mlm": true }));
    let pairs = dims([("D", fixture.count("hidden_size"))]);
    let head = Network::<matching::Config>::load(&fixture, "model.safetensors", json!({}), &pairs);
    let contrast = Contrast::load(&fixture);
    let taken = [&text.taken, &fusion.taken, &head.taken, &contrast.taken()];
    check_coverage(&mut report, &fixture, "model.safetensors", &taken);

    let mask = ints::<2>(&inputs, "attention_mask");
    let (clean, hidden) = (ints::<2>(&inputs, "input_ids"), ints::<2>(&inputs, "mlm_input_ids"));
    let given = Tensors::of("ids", join(Rows::Ids, &[&clean, &hidden]));
    let mut read = text.forward(given.with("mask", join(Rows::Ids, &[&mask, &mask])));
    let (tokens, pooled): (Tensor<3>, Tensor<2>) =
        (port(&mut read, "tokens"), port(&mut read, "pooled"));
    let clips = inputs["pooled_vision_embeds"].float::<2>(&autodiff()).require_grad();
    let vision = inputs["vision_embeds"].float::<3>(&autodiff()).require_grad();
    let pooled = some(Rows::Vectors, &pooled, [0, 1, 2]);
    let vtc = check_contrast(&mut report, &inputs, &contrast, &clips, &pooled);

    let together = fused(&inputs, &tokens, &vision);
    check_inside(&mut report, &inputs, (&text, &fusion), &together);
    let given = Tensors::of("hidden", together.hidden)
        .with("memory", together.memory)
        .with("mask", together.mask)
        .with("table", port::<2>(&mut read, "table"));
    let mut given = fusion.forward(given);
    let pooled: Tensor<2> = port(&mut given, "pooled");
    let pooled = some(Rows::Vectors, &pooled, [0, 3, 4]);
    let mut matched = head.forward(Tensors::of("features", pooled));
    report.meet("vtm_logits", &Array::of(port::<2>(&mut matched, "scores")));
    let vtm: Tensor<1> = port(&mut matched, "loss");
    report.meet("loss_vtm", &Array::of(vtm.clone()));
    let logits: Tensor<3> = port(&mut given, "logits");
    let logits = some(Rows::Tokens, &logits, [3, 4, 4]);
    report.meet("mlm_logits", &Array::of(logits.clone()));
    let labels = ints::<2>(&inputs, "mlm_labels");
    let given = Tensors::of("logits", logits).with("labels", labels);
    let mlm: Tensor<1> = port(&mut plain(&masked_token::Config::default(), given), "loss");
    report.meet("loss_mlm", &Array::of(mlm.clone()));

    let loss = vtc + vtm + mlm;
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    report.meet("grad_input.vision_embeds", &Array::of(vision.grad(&all).expect("a gradient")));
    report
        .meet("grad_input.pooled_vision_embeds", &Array::of(clips.grad(&all).expect("a gradient")));
    let mut gradients = contrast.gradients(&all);
    for part in [text.gradients(&mut all), fusion.gradients(&mut all), head.gradients(&mut all)] {
        gradients.extend(part);
    }
    check_gradients(&mut report, &fixture, "", &gradients);
    report.finish()
}
