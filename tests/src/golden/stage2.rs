//! `internvideo2_stage2`: the text tower cut in two nodes, with contrast, matching and hidden words.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module as _;
use burn::tensor::{Gradients, Int, Tensor};
use modules::kind::{Kind, Published};
use modules::layers::bert::network::{memory, seen};
use modules::layers::block::Context;
use modules::layers::rows::Rows;
use modules::losses::{info_nce, masked_token, matching};
use modules::models::projection;
use modules::select::{self, concatenate, gather, hard_negatives};
use modules::tensors::{Ranked, Tensors};
use modules::text::bert;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::bert::{check_blocks, ints};
use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, plain, port};
use super::report::Report;

const WEIGHTS: &str = "model.safetensors";

type Text = Network<bert::Config>;

/// A part of the text network.
fn part(fixture: &Fixture, more: &Value) -> Text {
    let published = bert::Config::published(&fixture.config).expect("the configuration is known");
    let mut options = published.options;
    for (name, value) in more.as_object().expect("options") {
        options[name] = value.clone();
    }
    Network::load(fixture, WEIGHTS, options, &Dims::new())
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
    take(&mut plain(&concatenate::Config { of, ..Default::default() }, given), "all")
}

fn take<T: Ranked>(tensors: &mut Tensors, name: &str) -> T {
    tensors.take(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Some of the equal parts of a tensor, as the node gives them.
fn some<T: Ranked + Clone>(of: Rows, from: &T, [first, end, parts]: [usize; 3]) -> T {
    let kind = select::part::Config { of, parts, from: first, to: Some(end) };
    take(&mut plain(&kind, Tensors::of("rows", from.clone())), "part")
}

/// What compares clips with texts.
struct Contrast {
    vision: Network<projection::Config>,
    text: Network<projection::Config>,
    loss: Network<info_nce::Config>,
}

impl Contrast {
    fn load(fixture: &Fixture) -> Self {
        let load = |found: Published| Network::load(fixture, WEIGHTS, found.options, &found.dims);
        let both = projection::Config::all_published(&fixture.config).into_iter().map(load);
        let [vision, text] = both.collect::<Vec<_>>().try_into().expect("two projections");
        Self { vision, text, loss: Network::published(fixture, WEIGHTS, &Dims::new()) }
    }

    /// Scores and loss of clips and texts; clips of equal ids match the same texts.
    fn compare(&self, [left, right]: [&Tensor<2>; 2], ids: Option<&Tensor<1, Int>>) -> Tensors {
        let given = Tensors::of("left", left.clone()).with("right", right.clone());
        self.loss.forward(match ids {
            Some(ids) => given.with("ids", ids.clone()),
            None => given,
        })
    }

    fn taken(&self) -> BTreeSet<String> {
        let parts = [&self.vision.taken, &self.text.taken, &self.loss.taken];
        parts.into_iter().flatten().cloned().collect()
    }

    fn gradients(&self, all: &mut Gradients) -> Arrays {
        let parts = [self.vision.gradients(all), self.text.gradients(all)];
        parts.into_iter().flatten().chain(self.loss.gradients(all)).collect()
    }
}

/// A vector for each sample, in the space of the contrast.
fn project(network: &Network<projection::Config>, x: &Tensor<2>) -> Tensor<2> {
    port(&mut network.forward(Tensors::of("features", x.clone())), "projected")
}

/// What the contrast needs of the inputs, and whether it is met.
fn check_contrast(
    report: &mut Report,
    inputs: &Arrays,
    contrast: &Contrast,
    vision: &Tensor<2>,
    text: &Tensor<2>,
) -> Tensor<1> {
    let ids = ints::<1>(inputs, "idx");
    let (v, t) = (project(&contrast.vision, vision), project(&contrast.text, text));
    report.meet("vision_proj", &Array::of(v.clone()));
    report.meet("text_proj", &Array::of(t.clone()));
    let mut given = contrast.compare([&v, &t], Some(&ids));
    let similarity: Tensor<2> = port(&mut given, "scores");
    report.meet("sim_v2t", &Array::of(similarity.clone()));
    report.meet("sim_t2v", &Array::of(similarity.clone().transpose()));
    let loss: Tensor<1> = port(&mut given, "loss");
    report.meet("loss_vtc", &Array::of(loss.clone()));
    let alone: Tensor<1> = port(&mut contrast.compare([&v, &t], None), "loss");
    report.meet("no_idx.loss_vtc", &Array::of(alone));

    let clips = inputs["pooled_vision_embeds_3d"].float::<3>(&autodiff());
    let mut given = contrast.vision.forward(Tensors::of("tokens", clips));
    let clips: Tensor<3> = port(&mut given, "projected_tokens");
    let each = |time: usize| {
        let one: Tensor<2> = clips.clone().slice_dim(1, time..time + 1).squeeze_dim(1);
        port::<2>(&mut contrast.compare([&one, &t], None), "scores")
    };
    // Several vectors for each clip: their scores are combined before the loss.
    let all: Tensor<3> = Tensor::stack((0..clips.dims()[1]).map(each).collect::<Vec<_>>(), 0);
    let combined = |scores: Tensor<2>| {
        let positives = info_nce::positives(Some(ids.clone()), &scores);
        Array::of(info_nce::symmetric(scores, positives))
    };
    report.meet("vtc3d.loss_vtc", &combined(all.clone().mean_dim(0).squeeze_dim(0)));
    report.meet("vtc3d.max.loss_vtc", &combined(all.max_dim(0).squeeze_dim(0)));

    // Weights of the negatives, as the node computes them.
    let scores = Array::of(similarity).values;
    let ids: Vec<i64> = inputs["idx"].values.iter().map(|id| *id as i64).collect();
    let side = ids.len();
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

/// Keys that no network takes: the head of words repeats the word embeddings and its own bias, and
/// the numbers of positions count up.
fn repeated() -> BTreeSet<String> {
    let names = ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"];
    let names = names.into_iter().chain(["bert.embeddings.position_ids"]);
    names.map(|name| format!("text_encoder.{name}")).collect()
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let text = part(&fixture, &json!({ "mode": "text", "mlm": false }));
    let fusion = part(&fixture, &json!({ "mode": "fusion" }));
    let head = Network::<matching::Config>::published(&fixture, WEIGHTS, &Dims::new());
    let contrast = Contrast::load(&fixture);
    let taken = [&text.taken, &fusion.taken, &head.taken, &contrast.taken(), &repeated()];
    check_coverage(&mut report, &fixture, WEIGHTS, &taken);

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
    let mut gradients = contrast.gradients(&mut all);
    for part in [text.gradients(&mut all), fusion.gradients(&mut all), head.gradients(&mut all)] {
        gradients.extend(part);
    }
    check_gradients(&mut report, &fixture, "", &gradients);
    report.finish()
}
