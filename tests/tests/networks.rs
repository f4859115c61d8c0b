//! Networks as nodes: a masked student learns from a frozen teacher.

use std::collections::BTreeMap;

use modules::REGISTRY;
use schemas::dims::Dims;
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, NodeSpec, Update};
use serde_json::{Value, json};

struct Made {
    node: Box<dyn Node>,
}

fn make(
    kind: &str,
    options: Value,
    dims: &[(&str, usize)],
    wired: &[&str],
    wants: &[&str],
    more: &Value,
) -> Made {
    let entry = find(REGISTRY, kind).expect("the kind exists");
    let options = (entry.resolve)(&options).expect("the options are right");
    let dims: Dims = dims.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let problems = (entry.check)(&options, &dims);
    assert!(problems.is_empty(), "{problems:?}");
    let trains = kind != "models/internvl_clip" && !kind.starts_with("masks/");
    let optimizer = json!({ "lr": 1e-3, "weight_decay": 0.05 });
    let mut spec = json!({
        "name": kind, "kind": kind, "options": options, "dims": dims, "wired": wired,
        "wants": wants, "backward": trains, "optimizer": trains.then_some(optimizer),
        "frozen": [], "seed": 3, "device": "flex", "precision": "f32", "checkpointing": false,
        "weights": null, "ema": null,
    });
    for (name, value) in more.as_object().expect("settings of a node") {
        spec[name] = value.clone();
    }
    let spec: NodeSpec = serde_json::from_value(spec).expect("a spec");
    Made { node: (entry.build)(&spec).unwrap_or_else(|error| panic!("{error}")) }
}

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

fn frames<const N: usize>(pairs: [(&str, &Frame); N]) -> Frames {
    pairs.into_iter().map(|(name, frame)| (name.to_owned(), frame.clone())).collect()
}

fn video(batch: usize, frames: usize, side: usize) -> Frame {
    let shape = [batch, 3, frames, side, side];
    let wave = |i: usize| (0.37 * i as f32).sin() + (0.011 * i as f32).cos();
    Frame::f32(shape, (0..shape.iter().product()).map(wave))
}

/// Losses of some steps; `more` is set on both networks.
fn losses(batch: usize, side: usize, steps: u64, more: Value) -> Vec<f64> {
    let grid = side / 16;
    let (all, kept) = (8 * grid * grid, 8 * schemas::dims::keep(grid * grid, 0.8));
    let clip = [("B", batch), ("T", 8), ("H", side), ("W", side)];
    let mut teacher = make("models/internvl_clip", json!({}), &clip, &["video"], &[], &more);
    let mask_dims = [("B", batch), ("T", 8), ("P", grid * grid), ("h", grid), ("w", grid)];
    let mut mask = make("masks/attention", json!({}), &mask_dims, &["attention"], &[], &json!({}));
    let seen = [clip.as_slice(), &[("V", kept)]].concat();
    let wired = ["video", "visible"];
    let options = json!({ "drop_path": 0.1 });
    let mut student = make("models/internvideo2", options, &seen, &wired, &[], &more);
    let pair = [
        ("K", 4),
        ("B", batch),
        ("S", 1 + kept),
        ("D", 96),
        ("L", 4),
        ("M", 1 + all),
        ("E", 96),
        ("V", kept),
        ("t", 8),
        ("h", grid),
        ("w", grid),
    ];
    let wired = ["student", "teacher", "visible"];
    let mut loss =
        make("losses/feature_alignment", json!({}), &pair, &wired, &["student"], &json!({}));
    let clip = video(batch, 8, side);
    let mut found = Vec::new();
    for step in 0..steps {
        let at = At { step, ..At::default() };
        let taught =
            teacher.node.forward(at, frames([("video", &clip)])).unwrap_or_else(fail).frames;
        let attention = frames([("attention", &taught["attention"])]);
        let visible = mask.node.forward(at, attention).unwrap_or_else(fail).frames;
        let inputs = frames([("video", &clip), ("visible", &visible["visible"])]);
        let given = student.node.forward(at, inputs).unwrap_or_else(fail).frames;
        let inputs = frames([
            ("student", &given["layers"]),
            ("teacher", &taught["layers"]),
            ("visible", &visible["visible"]),
        ]);
        let end = loss.node.forward(at, inputs).unwrap_or_else(fail).frames;
        found.push(f64::from(end["loss"].to_f32()[0]));
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = loss.node.backward(at, one).unwrap_or_else(fail);
        let arrived = vec![("layers".to_owned(), back["student"].clone())];
        student.node.backward(at, arrived).unwrap_or_else(fail);
        let update = Update { step, lr: 1e-3, scale: 1.0 };
        for made in [&mut student, &mut loss] {
            made.node.update(&update).unwrap_or_else(fail);
        }
    }
    found
}

#[test]
fn a_masked_student_learns_the_features_of_a_frozen_teacher() {
    let found = losses(2, 32, 12, json!({}));
    assert!((found[0] - 2.0).abs() < 0.5, "{found:?}");
    assert!(found[11] < found[0] - 0.3, "{found:?}");
    assert_eq!(found, losses(2, 32, 12, json!({})), "the same seed gives the same losses");
}

/// bf16 has 8 bits of mantissa: a loss of 2 is off by some thousandths. Updates are far smaller
/// than that (1e-3 of weights near 1), so that it learns only when parameters stay f32.
#[test]
fn a_student_in_bf16_learns_as_one_in_f32() {
    let (exact, found) =
        (losses(2, 32, 12, json!({})), losses(2, 32, 12, json!({ "precision": "bf16" })));
    assert_ne!(exact, found);
    for (a, b) in exact.iter().zip(&found) {
        assert!((a - b).abs() < 0.03, "{exact:?} {found:?}");
    }
    assert_eq!(
        found,
        losses(2, 32, 12, json!({ "precision": "bf16" })),
        "the same seed gives the same losses"
    );
}

#[test]
fn blocks_that_are_computed_again_give_the_same_gradients() {
    let (kept, again) =
        (losses(2, 32, 12, json!({})), losses(2, 32, 12, json!({ "checkpointing": true })));
    for (a, b) in kept.iter().zip(&again) {
        assert!((a - b).abs() < 1e-5, "{kept:?} {again:?}"); // sums of gradients have another order
    }
}

#[test]
fn every_kind_has_a_schema_and_resolves_or_names_what_it_needs() {
    let mut needs = BTreeMap::new();
    for (name, _, entry) in REGISTRY {
        assert!((entry.schema)().is_object(), "{name}");
        match (entry.resolve)(&json!({})) {
            Ok(full) => {
                assert_eq!((entry.resolve)(&full).as_ref(), Ok(&full), "{name}");
            }
            Err(problem) => {
                needs.insert(*name, problem.message);
            }
        }
    }
    for (name, message) in needs {
        assert!(message.contains("missing field"), "{name}: {message}");
    }
}

/// `cargo nextest run -p tests --run-ignored all tiny_step --no-capture`
#[test]
#[ignore = "measures; run it on a quiet machine"]
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn a_tiny_step_takes_a_fraction_of_a_second() {
    let start = std::time::Instant::now();
    losses(16, 64, 1, json!({}));
    let one = start.elapsed();
    let start = std::time::Instant::now();
    losses(16, 64, 4, json!({}));
    println!("seconds per step: {}", (start.elapsed() - one).as_secs_f64() / 3.0);
}
