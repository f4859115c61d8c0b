//! `llama`, `llama3_rope`, `mistral`, `qwen2` and `llama_lora`.

use std::path::Path;

use burn::module::Module as _;
use burn::tensor::{Device, Int, Tensor};
use modules::generate::decoder::{Decoder, Input, Prompt};
use modules::generate::{Settings, generate};
use modules::kind::{self, Call, Kind};
use modules::layers::causal::CausalLm;
use modules::losses::cross_entropy::CrossEntropy;
use modules::parameters;
use modules::rng::Key;
use modules::tensors::Tensors;
use modules::text::causal_lm::Config;
use modules::weights::{self, adapters};
use schemas::lora::Lora;
use schemas::node::{At, NodeSpec};
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;

/// Options of the model in the words of the kind.
fn options(fixture: &Fixture) -> Value {
    Config::published(&fixture.config).expect("a config of a known model").options
}

/// Mean cross entropy of each next word that has a label.
///
/// The loss between texts and scores belongs to a kind of its own; here is what the fixtures need.
fn next_word(logits: Tensor<3>, labels: &Array) -> Tensor<1> {
    let [batch, tokens, words] = logits.dims();
    let mut rows = Vec::new();
    let mut told = Vec::new();
    for sample in 0..batch {
        for place in 1..tokens {
            let label = labels.values[sample * tokens + place] as i64;
            if label >= 0 {
                rows.push((sample * tokens + place - 1) as i64);
                told.push(label);
            }
        }
    }
    let device = logits.device().inner();
    let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &device);
    let told = Tensor::<1, Int>::from_data(told.as_slice(), &device);
    CrossEntropy::new(0.0).forward(logits.reshape([batch * tokens, words]).select(0, rows), told)
}

/// Compares where the mask `[B, L]` is 1; the places of an array `[B, .., L, C]` are its rows.
fn meet_words(report: &mut Report, name: &str, got: Array, mask: &Array) {
    let (batch, tokens) = (mask.shape[0], mask.shape[1]);
    let width = *got.shape.last().expect("rows");
    let keep = |array: Array| {
        let each = array.values.len() / batch;
        let is = |i: usize| mask.values[i / each * tokens + i / width % tokens] != 0.0;
        let values = array.values.iter().enumerate();
        let values = values.map(|(i, value)| if is(i) { *value } else { 0.0 }).collect();
        Array { values, ..array }
    };
    let expected = keep(report.take(name));
    report.compare(name, &keep(got), &expected);
}

/// The residual stream and, where they are expected, the attention maps.
fn check_blocks(report: &mut Report, module: &CausalLm, ids: Tensor<2, Int>, mask: &Array) {
    let device = ids.device();
    let tokens = ids.dims()[1];
    let context = module.context(tokens, Some(&mask.int(&device)));
    let mut x = module.embed(ids).unwrap_or_else(|error| panic!("{error}"));
    for (number, block) in module.blocks.iter().enumerate() {
        let name = format!("attn.{number}");
        if report.expects(&name) {
            meet_words(report, &name, Array::of(block.map(x.clone(), &context)), mask);
        }
        x = block.forward(x, &context);
        meet_words(report, &format!("hidden.{number}"), Array::of(x.clone()), mask);
    }
}

/// Words that follow, and the scores on the way.
fn check_generation(report: &mut Report, module: &CausalLm, inputs: &Arrays, prefix: &str) {
    let device = autodiff().inner();
    let mask = inputs.get(&format!("{prefix}attention_mask")).filter(|_| !prefix.is_empty());
    let ids = if prefix.is_empty() { "generate.input_ids" } else { "leftpad.input_ids" };
    let prompt = Prompt {
        input: Input::Ids(inputs[ids].int(&device)),
        mask: mask.map(|mask| mask.int(&device)),
    };
    let expected = report.take(&format!("{prefix}generate.tokens"));
    let settings =
        Settings { max_tokens: expected.shape[1], keep_scores: true, ..Settings::default() };
    let texts = generate(module, &prompt, &settings, None, &Key::new(0, "golden"));
    let texts = texts.unwrap_or_else(|error| panic!("{error}"));
    let words = texts.iter().flat_map(|text| text.tokens.iter().map(|word| *word as f64));
    report.same(&format!("{prefix}generate.tokens"), &words.collect(), &expected.values);
    let scores = texts.iter().flat_map(|text| text.scores.iter().flatten());
    let values: Vec<f64> = scores.map(|score| f64::from(*score)).collect();
    let name = format!("{prefix}generate.scores");
    report.meet(&name, &Array { shape: vec![values.len()], values });
}

/// Checks a language model: from words and from embeddings, padded on either side, and writing.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let (batch, tokens) = (inputs["input_ids"].shape[0], inputs["input_ids"].shape[1]);
    let sizes = dims([("B", batch), ("L", tokens)]);
    let network = Network::<Config>::load(&fixture, "model.safetensors", options(&fixture), &sizes);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);

    let device = autodiff().inner();
    let (ids, mask) = (inputs["input_ids"].int::<2>(&device), &inputs["attention_mask"]);
    let given = |mask: &Array| Tensors::of("mask", mask.int::<2>(&device));
    let mut outputs = network.forward(given(mask).with("ids", ids.clone()));
    let logits: Tensor<3> = port(&mut outputs, "logits");
    meet_words(&mut report, "logits", Array::of(logits.clone()), mask);
    let last = Array::of(port::<3>(&mut outputs, "tokens"));
    meet_words(&mut report, "last_hidden_state", last, mask);
    let loss = next_word(logits, &inputs["labels"]);
    report.meet("loss", &Array::of(loss.clone()));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut loss.backward()));

    let module = network.module.valid();
    let x = module.embed(ids.clone()).unwrap_or_else(|error| panic!("{error}"));
    let x = x.autodiff().require_grad();
    let mut outputs = network.forward(given(mask).with("embeddings", x.clone()));
    let all = next_word(port(&mut outputs, "logits"), &inputs["labels"]).backward();
    let gradient = x.grad(&all).expect("the embeddings have a gradient");
    report.meet("grad_input.inputs_embeds", &Array::of(gradient));

    let [cos, sin] = module.context(tokens, None).rope.expect("rotary positions").tables();
    report.meet("rope.cos", &Array::of(cos));
    report.meet("rope.sin", &Array::of(sin));
    check_blocks(&mut report, &module, ids, mask);

    let padded = inputs["leftpad.input_ids"].int::<2>(&device);
    let left = given(&inputs["leftpad.attention_mask"]).with("ids", padded);
    let logits: Tensor<3> = port(&mut network.forward(left), "logits");
    let last = logits.dims()[1] - 1;
    report.meet("leftpad.logits", &Array::of(logits.slice_dim(1, last..last + 1)));
    for prefix in ["", "leftpad."] {
        check_generation(&mut report, &module, &inputs, prefix);
    }
    report.same("context", &Decoder::context(&module), &fixture.count("max_position_embeddings"));
    report.finish()
}

/// A node of the fixture's model.
fn spec(fixture: &Fixture, lora: Option<&Lora>) -> NodeSpec {
    let kind: Config = serde_json::from_value(options(fixture)).expect("the options are right");
    let spec = json!({
        "name": "lm", "kind": "text/causal_lm", "options": kind, "dims": {}, "wired": ["ids"],
        "wants": [], "backward": true, "optimizer": null, "frozen": [], "seed": 0,
        "device": "flex", "precision": "f32", "checkpointing": false, "weights": null,
        "ema": null, "lora": lora,
    });
    serde_json::from_value(spec).expect("a spec")
}

/// Scores and loss of a model with the fixture's words.
fn run(kind: &Config, module: &CausalLm, inputs: &Arrays, device: &Device) -> [Array; 2] {
    let (logits, loss) = differentiable(kind, module, inputs, device);
    [Array::of(logits), Array::of(loss)]
}

fn differentiable(
    kind: &Config,
    module: &CausalLm,
    inputs: &Arrays,
    device: &Device,
) -> (Tensor<3>, Tensor<1>) {
    let given = Tensors::of("ids", inputs["input_ids"].int::<2>(device))
        .with("mask", inputs["attention_mask"].int::<2>(device));
    let call = Call::new(Key::new(0, "golden"), At::default());
    let outputs = kind.forward(module, given, &call);
    let logits: Tensor<3> = port(&mut outputs.unwrap_or_else(|e| panic!("{e}")), "logits");
    (logits.clone(), next_word(logits, &inputs["labels"]))
}

/// Checks low-rank adapters in PEFT's files: read, in use, trained, merged and written.
pub fn check_lora(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let kind: Config = serde_json::from_value(options(&fixture)).expect("the options are right");
    let (device, home) = (autodiff().inner(), autodiff());
    let read = |lora: Option<&Lora>| {
        let module = kind::make(&kind, &spec(&fixture, lora), &home);
        let module = weights::load_into(
            &kind,
            module,
            ("text/causal_lm", &folder.join("model.safetensors")),
        );
        module.unwrap_or_else(|error| panic!("{error}")).0
    };
    let mask = &inputs["attention_mask"];
    let base = read(None);
    let [logits, loss] = run(&kind, &base, &inputs, &device);
    meet_words(&mut report, "base.logits", logits, mask);
    report.meet("base.loss", &loss);

    let lora = adapters::read_config(&kind, &base, folder).unwrap_or_else(|e| panic!("{e}"));
    let module = adapters::load(&kind, read(Some(&lora)), folder).unwrap_or_else(|e| panic!("{e}"));
    let module = parameters::activate(module, &|path| path.contains(".lora."));
    let (logits, loss) = differentiable(&kind, &module, &inputs, &device);
    meet_words(&mut report, "logits", Array::of(logits.clone()), mask);
    report.meet("loss", &Array::of(loss.clone()));
    for (path, gradient) in parameters::gradients(&module, &mut loss.backward()) {
        let key = adapters::key(&kind, &path).expect("adapters alone train");
        // Stored as they are in files: outputs first.
        let gradient = gradient.into_float::<2>().transpose();
        report.meet(&format!("grad_param.{key}"), &Array::of(gradient));
    }
    check_blocks(&mut report, &module.valid(), inputs["input_ids"].int(&device), mask);
    check_merged(&mut report, &fixture, (&kind, &lora), &module);
    check_written(&mut report, (&kind, &lora), &module, folder);
    report.finish()
}

/// Merged matrices are those of the file, and compute what the adapters computed.
fn check_merged(
    report: &mut Report,
    fixture: &Fixture,
    (kind, lora): (&Config, &Lora),
    module: &CausalLm,
) {
    let inputs = fixture.arrays("inputs.safetensors");
    let device = autodiff().inner();
    let [before, _] = run(kind, module, &inputs, &device);
    let merged = adapters::merge(module.clone(), lora);
    let [after, _] = run(kind, &merged, &inputs, &device);
    report.compare("logits of the merged model", &after, &before);
    let layout = &weights::layouts(kind)[0];
    let values = parameters::values(&merged);
    let mut files = fixture.arrays("merged.safetensors");
    for (path, value) in values {
        if let Some(expected) = files.remove(&layout.slot(&path).key) {
            let value = Array::of(value.into_float::<2>().transpose());
            report.compare(&format!("merged {path}"), &value, &expected);
        }
    }
    report.same("merged matrices that no layer has", &files.len(), &0);
}

/// What is written is what was read.
fn check_written(
    report: &mut Report,
    (kind, lora): (&Config, &Lora),
    module: &CausalLm,
    folder: &Path,
) {
    let written = tempfile::tempdir().expect("a folder");
    adapters::save(kind, module, lora, written.path()).unwrap_or_else(|e| panic!("{e}"));
    let open = |folder: &Path| Fixture {
        folder: folder.to_owned(),
        config: Value::Null,
        meta: Value::Null,
    };
    let arrays = |folder: &Path| open(folder).arrays("adapter_model.safetensors");
    report.same("written adapters", &arrays(written.path()), &arrays(folder));
    let again = adapters::read_config(kind, module, written.path());
    report.same("written options", &again.unwrap_or_else(|e| panic!("{e}")), lora);
}
