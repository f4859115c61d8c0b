//! Networks that predict latents, as nodes: losses fall.

use modules::REGISTRY;
use schemas::dims::Dims;
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, Update};
use serde_json::{Value, json};

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

/// A node; it trains when it wants gradients or is said to.
fn make(
    kind: &str,
    options: Value,
    dims: &[(&str, usize)],
    wired: &[&str],
    wants: &[&str],
    trains: bool,
) -> Box<dyn Node> {
    let entry = find(REGISTRY, kind).expect("the kind exists");
    let options = (entry.resolve)(&options).expect("the options are right");
    let dims: Dims = dims.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!((entry.check)(&options, &dims), [], "{kind}");
    let optimizer = json!({ "lr": 1e-3, "weight_decay": 0.0 });
    let spec = json!({
        "name": kind, "kind": kind, "options": options, "dims": dims, "wired": wired,
        "wants": wants, "backward": trains || !wants.is_empty(),
        "optimizer": trains.then_some(optimizer), "frozen": [], "seed": 3, "device": "flex",
        "precision": "f32", "checkpointing": false, "weights": null, "ema": null,
    });
    (entry.build)(&serde_json::from_value(spec).expect("a spec")).unwrap_or_else(fail)
}

fn frames<const N: usize>(pairs: [(&str, &Frame); N]) -> Frames {
    pairs.into_iter().map(|(name, frame)| (name.to_owned(), frame.clone())).collect()
}

fn forward<const N: usize>(node: &mut dyn Node, at: At, inputs: [(&str, &Frame); N]) -> Frames {
    node.forward(at, frames(inputs)).unwrap_or_else(fail).frames
}

/// The gradient that a node gives to one input when this arrives at an output.
fn back(node: &mut dyn Node, at: At, output: &str, gradient: &Frame) -> Frames {
    node.backward(at, vec![(output.to_owned(), gradient.clone())]).unwrap_or_else(fail)
}

fn video(batch: usize, frames: usize, side: usize) -> Frame {
    let shape = [batch, 3, frames, side, side];
    let wave = |i: usize| (0.37 * i as f32).sin() + (0.011 * i as f32).cos();
    Frame::f32(shape, (0..shape.iter().product()).map(wave))
}

#[test]
fn a_student_learns_to_predict_what_a_teacher_sees_of_hidden_patches() {
    let clip = [("B", 2), ("T", 8), ("H", 32), ("W", 32)];
    let options = json!({ "patch": 8, "tubelet": 2, "blocks": 2, "area": [0.3, 0.3] });
    let mut mask = make("masks/multiblock", options, &clip, &["video"], &[], false);
    let size = json!({ "size": { "patch": 8, "depth": 2, "width": 48 } });
    let mut teacher = make("models/vjepa2", size.clone(), &clip, &["video"], &[], false);
    let mut student = make("models/vjepa2", size, &clip, &["video", "visible"], &[], true);
    let lattice =
        [("B", 2), ("t", 4), ("h", 4), ("w", 4), ("V", 8), ("M", 8), ("D", 48), ("N", 64)];
    let wired = ["tokens", "visible", "hidden"];
    let mut guess = make("models/vjepa2_predictor", json!({}), &lattice, &wired, &["tokens"], true);
    let wired = ["predicted", "target", "hidden"];
    let mut loss = make("losses/latent_l1", json!({}), &lattice, &wired, &["predicted"], false);
    let (video, at) = (video(2, 8, 32), At::default());
    let places = forward(&mut *mask, at, [("video", &video)]);
    let (visible, hidden) = (&places["visible"], &places["hidden"]);
    let taught = forward(&mut *teacher, at, [("video", &video)]);
    let mut losses = Vec::new();
    for step in 0..150 {
        let at = At { step, ..at };
        let seen = forward(&mut *student, at, [("video", &video), ("visible", visible)]);
        let inputs = [("tokens", &seen["tokens"]), ("visible", visible), ("hidden", hidden)];
        let given = forward(&mut *guess, at, inputs);
        let pair = [("predicted", &given["predicted"]), ("target", &taught["tokens"])];
        let end = forward(&mut *loss, at, [pair[0], pair[1], ("hidden", hidden)]);
        losses.push(end["loss"].to_f32()[0]);
        let one = Frame::f32([1], [1.0]);
        let arrived = back(&mut *loss, at, "loss", &one);
        let arrived = back(&mut *guess, at, "predicted", &arrived["predicted"]);
        back(&mut *student, at, "tokens", &arrived["tokens"]);
        for node in [&mut student, &mut guess] {
            let update = Update { step, lr: 3e-3, scale: 1.0 };
            node.update(&update).unwrap_or_else(fail);
        }
    }
    assert!(losses[149] < 0.6 * losses[0], "{losses:?}");
}

#[test]
fn a_pooler_learns_to_tell_clips_apart() {
    let sides = [("B", 2), ("N", 6), ("D", 32), ("C", 2)];
    let options = json!({ "depth": 1, "heads": 4, "classes": 2, "sigma": 0.1 });
    let mut pooler = make("models/attentive_pooler", options, &sides, &["tokens"], &[], true);
    let wired = ["logits", "label"];
    let mut judge = make("losses/cross_entropy", json!({}), &sides, &wired, &["logits"], false);
    let tokens = Frame::f32([2, 6, 32], (0..384).map(|i| (0.7 * i as f32).sin()));
    let label = Frame::i64([2], [0, 1]);
    let mut losses = Vec::new();
    for step in 0..20 {
        let at = At { step, ..At::default() };
        let given = forward(&mut *pooler, at, [("tokens", &tokens)]);
        let end = forward(&mut *judge, at, [("logits", &given["logits"]), ("label", &label)]);
        losses.push(end["loss"].to_f32()[0]);
        let arrived = back(&mut *judge, at, "loss", &Frame::f32([1], [1.0]));
        back(&mut *pooler, at, "logits", &arrived["logits"]);
        pooler.update(&Update { step, lr: 1e-3, scale: 1.0 }).unwrap_or_else(fail);
    }
    assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
}

#[test]
fn a_run_of_text_layers_learns_as_a_predictor() {
    let sides = [("B", 2), ("L", 12), ("M", 12), ("D", 64)];
    let options = json!({ "first": 2, "count": 2, "near": 2 });
    let mut layers = make("text/modern_bert", options, &sides, &["hidden"], &["hidden"], true);
    let wired = ["predicted", "target"];
    let mut loss = make("losses/smooth_l1", json!({}), &sides, &wired, &["predicted"], false);
    let wave = |by: f32| Frame::f32([2, 12, 64], (0..1536).map(|i| (by * i as f32).sin()));
    let (hidden, target) = (wave(0.7), wave(1.3));
    let mut losses = Vec::new();
    for step in 0..20 {
        let at = At { step, ..At::default() };
        let given = forward(&mut *layers, at, [("hidden", &hidden)]);
        let pair = [("predicted", &given["tokens"]), ("target", &target)];
        losses.push(forward(&mut *loss, at, pair)["loss"].to_f32()[0]);
        let arrived = back(&mut *loss, at, "loss", &Frame::f32([1], [1.0]));
        let arrived = back(&mut *layers, at, "tokens", &arrived["predicted"]);
        assert_eq!(arrived["hidden"].shape(), [2, 12, 64]);
        layers.update(&Update { step, lr: 3e-3, scale: 1.0 }).unwrap_or_else(fail);
    }
    assert!(losses[19] < 0.6 * losses[0], "{losses:?}");
}

#[test]
fn a_student_with_class_tokens_learns_to_predict_a_frozen_teacher() {
    let clip = [("B", 2), ("T", 4), ("H", 32), ("W", 32)];
    let options = json!({ "patch": 8, "blocks": 1, "area": [0.4, 0.4], "hidden": "rest" });
    let mut mask = make("masks/multiblock", options, &clip, &["video"], &[], false);
    let size = json!({
        "size": { "patch": 8, "depth": 2, "width": 48 }, "table_frames": 2, "layer_scale": 1.0,
    });
    let kind = "models/internvideo_next";
    let mut teacher = make(kind, size.clone(), &clip, &["video"], &[], false);
    let mut student = make(kind, size, &clip, &["video", "visible"], &[], true);
    let (video, at) = (video(2, 4, 32), At::default());
    let places = forward(&mut *mask, at, [("video", &video)]);
    let (visible, hidden) = (&places["visible"], &places["hidden"]);
    let taught = forward(&mut *teacher, at, [("video", &video)]);
    assert_eq!(taught["tokens"].shape(), [2, 4 + 64, 48]);
    let seen = visible.shape()[1];
    let lattice = [("B", 2), ("t", 4), ("h", 4), ("w", 4), ("D", 48), ("V", seen), ("S", 4 + seen)];
    let lattice = [lattice.as_slice(), &[("M", 64 - seen)]].concat();
    let wired = ["tokens", "visible", "hidden"];
    let options = json!({ "head": true, "table_frames": 2, "near": 8 });
    let kind = "models/latent_predictor";
    let mut guess = make(kind, options, &lattice, &wired, &["tokens"], true);
    let lattice = [lattice.as_slice(), &[("N", 68)]].concat();
    let wired = ["predicted", "target", "hidden"];
    let mut loss = make("losses/cosine", json!({}), &lattice, &wired, &["predicted"], false);
    let mut losses = Vec::new();
    for step in 0..40 {
        let at = At { step, ..at };
        let seen = forward(&mut *student, at, [("video", &video), ("visible", visible)]);
        let inputs = [("tokens", &seen["tokens"]), ("visible", visible), ("hidden", hidden)];
        let given = forward(&mut *guess, at, inputs);
        let pair = [("predicted", &given["predicted"]), ("target", &taught["tokens"])];
        let end = forward(&mut *loss, at, [pair[0], pair[1], ("hidden", hidden)]);
        losses.push(end["loss"].to_f32()[0]);
        let arrived = back(&mut *loss, at, "loss", &Frame::f32([1], [1.0]));
        let arrived = back(&mut *guess, at, "predicted", &arrived["predicted"]);
        back(&mut *student, at, "tokens", &arrived["tokens"]);
        for node in [&mut student, &mut guess] {
            let update = Update { step, lr: 2e-3, scale: 1.0 };
            node.update(&update).unwrap_or_else(fail);
        }
    }
    assert!(losses[39] < 0.4 * losses[0], "{losses:?}");
}
