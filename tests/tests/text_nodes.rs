//! Text networks as nodes: they learn, and what they compute does not depend on how it is cut.

use modules::REGISTRY;
use modules::init::Init;
use modules::kind::{Call, Kind};
use modules::layers::bert::network::TextCache;
use modules::layers::bert::qformer::Text;
use modules::layers::block::Context;
use modules::models::qformer;
use modules::rng::Key;
use modules::tensors::Tensors;
use modules::text::bert;
use schemas::dims::Dims;
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, NodeSpec, Update};
use serde_json::{Value, json};

use burn::tensor::{Device, Int, Tensor};

fn node(kind: &str, options: Value, dims: Value, [wired, wants]: [&[&str]; 2]) -> Box<dyn Node> {
    let entry = find(REGISTRY, kind).expect("the kind exists");
    let options = (entry.resolve)(&options).expect("the options are right");
    let sizes: Dims = serde_json::from_value(dims.clone()).unwrap();
    let problems = (entry.check)(&options, &sizes);
    assert!(problems.is_empty(), "{problems:?}");
    let spec: NodeSpec = serde_json::from_value(json!({
        "name": kind, "kind": kind, "options": options, "dims": dims, "wired": wired,
        "wants": wants, "backward": true, "optimizer": { "lr": 3e-3 }, "frozen": [], "seed": 3,
        "device": "flex", "precision": "f32", "checkpointing": false, "weights": null, "ema": null,
    }))
    .unwrap();
    (entry.build)(&spec).unwrap_or_else(fail)
}

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

fn frames<const N: usize>(pairs: [(&str, Frame); N]) -> Frames {
    pairs.into_iter().map(|(name, frame)| (name.to_owned(), frame)).collect()
}

/// Ids `[2, 6]`; the second text is shorter.
fn ids() -> Frame {
    Frame::i64([2, 6], [7, 3, 9, 4, 1, 2, 5, 8, 6, 2, 0, 0])
}

fn mask() -> Frame {
    Frame::i64([2, 6], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
}

fn memory() -> Frame {
    Frame::f32([2, 5, 12], (0..120).map(|i| (0.37 * i as f32).sin()))
}

/// Losses of some steps of a network and the loss on its word scores.
fn losses(mut network: Box<dyn Node>, inputs: &Frames, loss: &str, labels: &Frame) -> Vec<f32> {
    let dims = json!({ "B": 2, "L": 6, "V": 512 });
    let mut end = node(loss, json!({}), dims, [&["logits", "labels"], &["logits"]]);
    let mut found = Vec::new();
    for step in 0..20 {
        let at = At { step, ..At::default() };
        let given = network.forward(at, inputs.clone()).unwrap_or_else(fail).frames;
        let pair = frames([("logits", given["logits"].clone()), ("labels", labels.clone())]);
        let ended = end.forward(at, pair).unwrap_or_else(fail);
        found.push(ended.frames["loss"].to_f32()[0]);
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = end.backward(at, one).unwrap_or_else(fail);
        let arrived = vec![("logits".to_owned(), back["logits"].clone())];
        network.backward(at, arrived).unwrap_or_else(fail);
        network.update(&Update { step, lr: 3e-3, scale: 1.0 }).unwrap_or_else(fail);
    }
    found
}

#[test]
fn a_tiny_bert_learns_hidden_words_and_a_decoder_the_next_ones() {
    let text = || frames([("ids", ids()), ("mask", mask())]);
    let dims = || json!({ "B": 2, "L": 6 });
    let hidden =
        Frame::i64([2, 6], [-100, 3, -100, -100, 1, -100, -100, 8, -100, -100, -100, -100]);
    let options = json!({ "mlm": true, "dropout": 0.0 });
    let network = node("text/bert", options, dims(), [&["ids", "mask"], &[]]);
    let found = losses(network, &text(), "losses/masked_token", &hidden);
    assert!(found[0] > 4.0 && found[19] < 0.5 * found[0], "{found:?}");

    let next = Frame::i64([2, 6], [7, 3, 9, 4, 1, 2, 5, 8, 6, 2, -100, -100]);
    let options = json!({ "mode": "causal", "mlm": true, "cross_from": 2, "encoder_width": 12 });
    let dims = json!({ "B": 2, "L": 6, "M": 5 });
    let network = node("text/bert", options, dims, [&["ids", "mask", "memory"], &["memory"]]);
    let mut inputs = text();
    inputs.insert("memory".to_owned(), memory());
    let found = losses(network, &inputs, "losses/next_token", &next);
    assert!(found[19] < 0.6 * found[0], "{found:?}");
}

#[test]
fn a_tiny_qformer_learns_captions() {
    let next = Frame::i64([2, 6], [7, 3, 9, 4, 1, 2, 5, 8, 6, 2, -100, -100]);
    let options = json!({ "mode": "causal", "mlm": true, "encoder_width": 12 });
    let dims = json!({ "B": 2, "L": 6, "M": 5 });
    let network = node("models/qformer", options, dims, [&["ids", "mask", "memory"], &["memory"]]);
    let inputs = frames([("ids", ids()), ("mask", mask()), ("memory", memory())]);
    let found = losses(network, &inputs, "losses/next_token", &next);
    assert!(found[19] < 0.6 * found[0], "{found:?}");
}

fn kind<K: Kind>(options: Value) -> (K, K::Module) {
    let kind: K = serde_json::from_value(options).unwrap();
    assert_eq!(kind.check(&Dims::new()), []);
    let module = kind.init(&Dims::new(), &Init::new(5, "net", &Device::flex()));
    (kind, module)
}

fn float<const R: usize>(frame: &Frame) -> Tensor<R> {
    let data = burn::tensor::TensorData::new(frame.to_f32(), frame.shape().to_vec());
    Tensor::from_data(data, &Device::flex())
}

fn int<const R: usize>(frame: &Frame) -> Tensor<R, Int> {
    let data = burn::tensor::TensorData::new(frame.to_i64(), frame.shape().to_vec());
    Tensor::from_data(data, &Device::flex())
}

fn off<const R: usize>(a: Tensor<R>, b: Tensor<R>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

fn run<K: Kind>(kind: &K, module: &K::Module, inputs: Tensors) -> Tensors {
    let call = Call::new(Key::new(0, "run"), At::default());
    kind.forward(module, inputs, &call).unwrap_or_else(fail)
}

#[test]
fn a_text_written_word_by_word_is_the_same_as_at_once() {
    let options = json!({ "mode": "causal", "cross_from": 0, "encoder_width": 12 });
    let (bert, module) = kind::<bert::Config>(options);
    let text = || Tensors::of("ids", int::<2>(&ids())).with("mask", int::<2>(&mask()));
    let inputs = text().with("memory", float::<3>(&memory()));
    let whole: Tensor<3> = run(&bert, &module, inputs).take("tokens").unwrap();
    let mut cache = TextCache::default();
    let mut parts = Vec::new();
    for part in [0..2, 2..3, 3..6] {
        let there = int::<2>(&mask()).slice_dim(1, 0..part.end);
        let new = int::<2>(&ids()).slice_dim(1, part);
        let memory = Some((float::<3>(&memory()), None));
        parts.push(module.step(new, Some(&there), memory, &mut cache).unwrap());
    }
    assert_eq!(cache.seen, 6);
    assert!(off(whole, Tensor::cat(parts, 1)) < 1e-5);
}

#[test]
fn a_caption_behind_kept_queries_is_the_same_word_by_word() {
    let options = json!({ "mode": "causal", "encoder_width": 12, "extra_queries": 3 });
    let (qformer, module) = kind::<qformer::Config>(options);
    let inputs = Tensors::of("ids", int::<2>(&ids()))
        .with("mask", int::<2>(&mask()))
        .with("memory", float::<3>(&memory()));
    let mut given = run(&qformer, &module, inputs);
    let tokens: Tensor<3> = given.take("tokens").unwrap();
    let read = (float::<3>(&memory()), None);
    let (queries, mut cache) = module.read(read, &Context::default());
    assert!(off(given.take("queries").unwrap(), queries.clone()) < 1e-6);
    let tables = module.embeddings.as_ref().unwrap();
    let mut parts = vec![queries];
    for word in 0..6 {
        let ids = int::<2>(&ids()).slice_dim(1, word..word + 1);
        let tokens = tables.place(tables.of_words(ids).unwrap(), None, word).unwrap();
        let mask = Some(int::<2>(&mask()).slice_dim(1, 0..word + 1));
        parts.push(module.step(Text { tokens, mask }, &Context::default(), &mut cache));
    }
    assert!(off(tokens, Tensor::cat(parts, 1)) < 1e-5);
}

#[test]
fn a_network_in_two_parts_computes_what_the_whole_does() {
    let options = |mode: &str, mlm: bool| json!({ "mode": mode, "mlm": mlm, "split": 3, "cross_from": 3, "encoder_width": 12 });
    let (whole, all) = kind::<bert::Config>(options("whole", true));
    let text = Tensors::of("ids", int::<2>(&ids())).with("mask", int::<2>(&mask()));
    let inputs = text.clone().with("memory", float::<3>(&memory()));
    let expected: Tensor<3> = run(&whole, &all, inputs).take("logits").unwrap();
    // The parts run on the parameters of the whole, as if both had read one file.
    let first: bert::Config = serde_json::from_value(options("text", false)).unwrap();
    let second: bert::Config = serde_json::from_value(options("fusion", true)).unwrap();
    let mut given = run(&first, &all, text);
    let inputs = Tensors::of("hidden", given.take::<Tensor<3>>("tokens").unwrap())
        .with("table", given.take::<Tensor<2>>("table").unwrap())
        .with("mask", int::<2>(&mask()))
        .with("memory", float::<3>(&memory()));
    let found: Tensor<3> = run(&second, &all, inputs).take("logits").unwrap();
    assert_eq!(off(expected, found), 0.0);
}

#[test]
fn words_that_the_table_does_not_hold_are_refused_by_place() {
    let (bert, module) = kind::<bert::Config>(json!({}));
    let ids = Tensor::<2, Int>::from_data([[1, 2], [3, 512]], &Device::flex());
    let call = Call::new(Key::new(0, "run"), At::default());
    let error = bert.forward(&module, Tensors::of("ids", ids), &call).unwrap_err().to_string();
    assert!(error.contains("sample 1, token 1 is 512"), "{error}");
}

#[test]
fn queries_can_be_added_to_a_trained_network() {
    let (small, module) = kind::<qformer::Config>(json!({ "encoder_width": 12 }));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("qformer.safetensors");
    let mut part = schemas::node::Part::default();
    for (path, tensor) in modules::parameters::values(&module) {
        part.tensors.insert(format!("parameter.{path}"), tensor.into_frame());
    }
    let what = (schemas::entry::Export::Parameters, None);
    modules::weights::export(&small, &module, &part, what, &file).unwrap();
    let (large, other) =
        kind::<qformer::Config>(json!({ "encoder_width": 12, "extra_queries": 3 }));
    let (other, coverage) =
        modules::weights::load_into(&large, other, ("models/qformer", &file)).unwrap();
    assert_eq!((coverage.layout.as_str(), coverage.unused.len()), ("hf", 0));
    let queries = other.queries(1);
    assert_eq!(queries.dims(), [1, 11, 64]);
    assert!(off(queries.clone().slice_dim(1, 0..8), module.queries(1)) == 0.0);
    assert_eq!(queries.slice_dim(1, 8..11).abs().max().into_scalar::<f32>(), 0.0);
}
