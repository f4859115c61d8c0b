//! Language models as nodes and as writers: they learn, adapters learn alone, and what is written does
//! not depend on the company.

use burn::module::Module as _;
use burn::tensor::{Tensor, TensorData};
use modules::REGISTRY;
use modules::generate::decoder::{Decoder as _, Input, Prompt};
use modules::generate::{Generated, Search, Settings, generate};
use modules::init::Init;
use modules::kind::Kind as _;
use modules::layers::causal::CausalLm;
use modules::rng::Key;
use modules::text::causal_lm::Config;
use schemas::dims::Dims;
use schemas::entry::{Entry, Export, find};
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, NodeSpec, Part, Update};
use serde_json::{Value, json};
use tests::device;

const WORDS: usize = 40;
const SHAPE: [usize; 2] = [2, 12];

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

fn entry() -> &'static Entry {
    find(REGISTRY, "text/causal_lm").expect("the kind exists")
}

fn node(lora: Value) -> Box<dyn Node> {
    (entry().build)(&spec(lora, Value::Null)).unwrap_or_else(fail)
}

fn spec(lora: Value, weights: Value) -> NodeSpec {
    let options = json!({ "size": { "vocabulary": WORDS, "depth": 2 } });
    let options = (entry().resolve)(&options).expect("the options are right");
    let spec = json!({
        "name": "lm", "kind": "text/causal_lm", "options": options,
        "dims": { "B": SHAPE[0], "L": SHAPE[1] }, "wired": ["ids"], "wants": [], "backward": true,
        "optimizer": { "lr": 1e-2 }, "frozen": [], "seed": 3, "device": "flex", "precision": "f32",
        "checkpointing": false, "weights": weights, "ema": null, "lora": lora,
    });
    serde_json::from_value(spec).expect("a spec")
}

fn text() -> Vec<i64> {
    (0..SHAPE[0] * SHAPE[1]).map(|i| ((i * i * 7 + 3 * i) % WORDS) as i64).collect()
}

/// Mean cross entropy of each next word, and its gradient.
fn next_word(logits: &Frame) -> (f64, Frame) {
    let (scores, text) = (logits.to_f32(), text());
    let mut gradient = vec![0.0f32; scores.len()];
    let (mut loss, count) = (0.0, (SHAPE[0] * (SHAPE[1] - 1)) as f64);
    for place in (0..SHAPE[0] * SHAPE[1]).filter(|place| place % SHAPE[1] + 1 < SHAPE[1]) {
        let row = &scores[place * WORDS..(place + 1) * WORDS];
        let sum: f64 = row.iter().map(|score| f64::from(*score).exp()).sum();
        let told = text[place + 1] as usize;
        loss -= (f64::from(row[told]).exp() / sum).ln() / count;
        for (word, score) in row.iter().enumerate() {
            let share = f64::from(*score).exp() / sum - f64::from(u8::from(word == told));
            gradient[place * WORDS + word] = (share / count) as f32;
        }
    }
    (loss, Frame::f32(logits.shape().to_vec(), gradient))
}

fn learn(node: &mut dyn Node, steps: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    for step in 0..steps {
        let at = At { step, ..At::default() };
        let given = Frames::from([("ids".to_owned(), Frame::i64(SHAPE, text()))]);
        let outputs = node.forward(at, given).unwrap_or_else(fail).frames;
        let (loss, gradient) = next_word(&outputs["logits"]);
        losses.push(loss);
        node.backward(at, vec![("logits".to_owned(), gradient)]).unwrap_or_else(fail);
        node.update(&Update { step, lr: 1e-2, scale: 1.0 }).unwrap_or_else(fail);
    }
    losses
}

#[test]
fn a_tiny_model_learns_a_text() {
    let losses = learn(&mut *node(Value::Null), 12);
    assert!(losses[11] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn adapters_learn_alone_and_leave_the_model_as_it_was() {
    let bytes = |node: &dyn Node| {
        let weights = node.weights().into_iter();
        weights.map(|(path, frame)| (path, frame.bytes().to_vec())).collect::<Vec<_>>()
    };
    let plain = learn(&mut *node(Value::Null), 1)[0];
    for rank_stabilised in [false, true] {
        let lora = json!({ "rank": 4, "alpha": 8.0, "on": ["q", "v", "blocks.*.mlp.*", "head"],
            "rank_stabilised": rank_stabilised });
        let mut node = node(lora);
        let before = bytes(&*node);
        let losses = learn(&mut *node, 12);
        assert!((losses[0] - plain).abs() < 1e-6, "an adapter begins as nothing");
        assert!(losses[11] < losses[0] - 0.3, "{losses:?}");
        let adapters = before.iter().filter(|(path, _)| path.contains(".lora.")).count();
        assert_eq!(adapters, 2 * (2 * 5 + 1));
        for ((path, before), (_, after)) in before.iter().zip(bytes(&*node)) {
            assert_eq!(*before != after, path.contains(".lora."), "{path}");
        }
    }
}

fn logits(node: &mut dyn Node) -> Vec<f32> {
    let at = At { step: 100, ..At::default() };
    let given = Frames::from([("ids".to_owned(), Frame::i64(SHAPE, text()))]);
    node.forward(at, given).unwrap_or_else(fail).frames["logits"].to_f32()
}

#[test]
fn trained_adapters_leave_merged_or_alone_and_come_back() {
    for rank_stabilised in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut lora = json!({ "rank": 4, "alpha": 8.0, "on": ["q", "v", "blocks.*.mlp.*", "head"],
            "rank_stabilised": rank_stabilised });
        let trained = spec(lora.clone(), Value::Null);
        let mut node = (entry().build)(&trained).unwrap_or_else(fail);
        learn(&mut *node, 2);
        let (said, state) = (logits(&mut *node), node.save());

        let file = folder.path().join("merged.safetensors");
        (entry().export)(&trained, &state, Export::Merged, &file).unwrap_or_else(fail);
        let plain = spec(Value::Null, json!(file));
        let merged = logits(&mut *(entry().build)(&plain).unwrap_or_else(fail));
        let moved = logits(&mut *self::node(Value::Null));
        let off = |other: &[f32]| {
            let pairs = said.iter().zip(other);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(off(&merged) < 1e-5, "{}", off(&merged));
        assert!(off(&moved) > 1e-2, "two steps move the scores: {}", off(&moved));

        let out = folder.path().join("adapters");
        (entry().export)(&trained, &state, Export::Adapters, &out).unwrap_or_else(fail);
        let read = (entry().adapters)(&trained, &out).unwrap_or_else(fail);
        assert_eq!((read.rank, read.alpha, read.rank_stabilised), (4, 8.0, rank_stabilised));
        lora["from"] = json!(out);
        let again = spec(lora, Value::Null);
        let node = (entry().build)(&again).unwrap_or_else(fail);
        assert_eq!(node.save().tensors.len(), read_count(&state));
        for (path, frame) in node.weights() {
            assert!(state.tensors[&format!("parameter.{path}")].bytes() == frame.bytes(), "{path}");
        }
        let second = folder.path().join("second");
        (entry().export)(&again, &node.save(), Export::Adapters, &second).unwrap_or_else(fail);
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = |folder: &std::path::Path| std::fs::read(folder.join(name)).expect(name);
            assert!(bytes(&out) == bytes(&second), "{name}");
        }
        let error = (entry().export)(&plain, &state, Export::Merged, &file).unwrap_err();
        assert!(error.to_string().contains("no `lora`"), "{error}");
    }
}

/// Parameters of a saved state, without what the optimiser keeps.
fn read_count(state: &Part) -> usize {
    state.tensors.keys().filter(|name| name.starts_with("parameter.")).count()
}

#[test]
fn a_tokenizer_with_more_words_than_the_network_is_refused() {
    let golden = tests::command::root().join("tests/golden");
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join("llama").join(name), folder.path().join(name)).expect(name);
    }
    let text = std::fs::read_to_string(folder.path().join("config.json")).expect("words");
    let config = serde_json::from_str(&text).expect("JSON");
    let found = (entry().published)(&config).remove(0);
    let options = (entry().resolve)(&found.options).expect("the options are right");
    let mut spec = NodeSpec::alone("text/causal_lm", options, found.dims);
    spec.weights = Some(folder.path().to_owned());
    (entry().check_weights)(&spec).unwrap_or_else(fail);
    let tokenizer = golden.join("tokenizer_wordpiece/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).expect("copied");
    let error = (entry().check_weights)(&spec).unwrap_err().to_string();
    assert!(error.contains("its tokenizer is not that of this network"), "{error}");
}

fn model(options: Value) -> CausalLm {
    let config: Config = serde_json::from_value(options).expect("the options are right");
    config.init(&Dims::new(), &Init::new(7, "lm", &device::device()))
}

fn write(model: &CausalLm, prompt: &Prompt, search: Search) -> Vec<Generated> {
    let settings = Settings { search, max_tokens: 12, stop_ids: vec![3], ..Settings::default() };
    generate(model, prompt, &settings, None, &Key::new(2, "write")).unwrap_or_else(fail)
}

/// Words and ends; log probabilities are equal up to rounding, as sums have another order in a batch.
fn same(a: &Generated, b: &Generated) -> bool {
    a.tokens == b.tokens && a.end == b.end && (a.log_probability - b.log_probability).abs() < 1e-3
}

#[test]
fn a_text_is_written_alike_alone_in_company_and_from_embeddings() {
    let texts = [vec![5, 6, 7, 8, 9, 10], vec![11, 12, 13]];
    for options in [json!({}), json!({ "window": 3, "biases": "inputs", "tied": true })] {
        let model = model(options);
        let device = device::device();
        for search in [
            Search::Greedy,
            Search::Sample { temperature: 0.8, top_k: 50, top_p: 0.9 },
            Search::Beams { beams: 3, length_penalty: 1.0 },
        ] {
            let both = write(&model, &Prompt::of_words(&texts, &device), search);
            let first = write(&model, &Prompt::of_words(&texts[..1], &device), search);
            assert!(same(&both[0], &first[0]), "{search:?} {both:?} {first:?}");
            if search == Search::Greedy {
                let second = write(&model, &Prompt::of_words(&texts[1..], &device), search);
                assert!(same(&both[1], &second[0]), "{both:?} {second:?}");
            }
            let prompt = Prompt::of_words(&texts, &device);
            let Input::Ids(ids) = prompt.input.clone() else { unreachable!("words") };
            let input = Input::Embeddings(model.embed(ids).unwrap_or_else(fail));
            let again = write(&model, &Prompt { input, ..prompt }, search);
            assert!(both.iter().zip(&again).all(|(a, b)| same(a, b)), "{both:?} {again:?}");
        }
    }
}

#[test]
fn what_a_model_cannot_write_is_an_error() {
    let device = device::device();
    let refused = |model: &CausalLm, words: usize| {
        let prompt = Prompt::of_words(&[vec![1; words]], &device);
        let settings = Settings::default();
        let result = generate(model, &prompt, &settings, None, &Key::new(2, "write"));
        result.unwrap_err().to_string()
    };
    let long = refused(&model(json!({ "size": { "context": 8 } })), 9);
    assert!(long.contains("9 tokens, more than the context of 8"), "{long}");
    let headless = refused(&model(json!({ "head": false })), 4);
    assert!(headless.contains("without a head"), "{headless}");
}

/// `cargo nextest run --workspace --run-ignored all writing_speed --no-capture`
#[test]
#[ignore = "measures; run it on a quiet machine"]
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn writing_speed() {
    let model = model(json!({ "size": {
        "vocabulary": 8192, "width": 768, "depth": 12, "heads": 12, "kv_heads": 12, "hidden": 2048,
        "context": 2048, "sigma": 0.02,
    } }));
    let model = model.valid();
    let device = device::device();
    let now = std::time::Instant::now;
    let ms = |start: std::time::Instant| 1e3 * start.elapsed().as_secs_f64();
    for length in [16, 512] {
        let data = TensorData::new(vec![7i64; length], [1, length]);
        let prompt = Prompt { input: Input::Ids(Tensor::from_data(data, &device)), mask: None };
        let (mut prefill, mut step) = (f64::MAX, f64::MAX);
        for _ in 0..3 {
            let start = now();
            let (mut cache, scores) = model.prefill(&prompt).unwrap_or_else(fail);
            drop(scores.into_data());
            prefill = prefill.min(ms(start));
            for word in 0..64 {
                let start = now();
                drop(model.step(&[word], &mut cache).unwrap_or_else(fail).into_data());
                step = step.min(ms(start));
            }
        }
        let held = Tensor::<4>::ones([1, 12, length, 64], &device);
        let copy = || {
            let start = now();
            for _ in 0..24 {
                let new = held.clone().slice_dim(2, 0..1);
                drop(Tensor::cat(vec![held.clone(), new], 2).into_data());
            }
            ms(start)
        };
        let copies = (0..20).map(|_| copy()).fold(f64::MAX, f64::min);
        println!(
            "{length} words: prefill {prefill:.0} ms, then {step:.1} ms a word; copying the keys and \
             values of all blocks would take {copies:.1} ms"
        );
    }
}
