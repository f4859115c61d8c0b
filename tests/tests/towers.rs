//! Image and text towers as nodes: they learn together, and each image tower can be the teacher of
//! stage 1.

use std::fs;

use modules::REGISTRY;
use schemas::dims::Dims;
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, NodeSpec, Update};
use serde_json::{Value, json};
use tests::command::{playhouse, root};

const BATCH: usize = 6;

fn make(kind: &str, options: Value, dims: &[(&str, usize)], ports: [&[&str]; 2]) -> Box<dyn Node> {
    let entry = find(REGISTRY, kind).unwrap_or_else(|| panic!("{kind}"));
    let options = (entry.resolve)(&options).unwrap();
    let dims: Dims = dims.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let problems = (entry.check)(&options, &dims);
    assert!(problems.is_empty(), "{kind}: {problems:?}");
    let [wired, wants] = ports;
    let spec = json!({
        "name": kind, "kind": kind, "options": options, "dims": dims, "wired": wired,
        "wants": wants, "backward": true, "optimizer": { "lr": 1e-3, "weight_decay": 0.05 },
        "frozen": [], "seed": 3, "device": "flex", "precision": "f32", "checkpointing": false,
        "weights": null, "ema": null,
    });
    let spec: NodeSpec = serde_json::from_value(spec).unwrap();
    (entry.build)(&spec).unwrap_or_else(fail)
}

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

fn frames<const N: usize>(pairs: [(&str, &Frame); N]) -> Frames {
    pairs.into_iter().map(|(name, frame)| (name.to_owned(), frame.clone())).collect()
}

/// Losses of some steps on one batch of clips and texts.
fn losses(vision: &str, text: &str, loss: &str, options: Value) -> Vec<f64> {
    let clip = [("B", BATCH), ("T", 2), ("H", 32), ("W", 32)];
    let side = [2, 32, 32].iter().product::<usize>() * 3;
    let wave = |i: usize| (0.37 * i as f32 + (i / side) as f32).sin() * (1.0 + (i / side) as f32);
    let video = Frame::f32([BATCH, 3, 2, 32, 32], (0..BATCH * side).map(wave));
    // 511 ends a text.
    let word = |i: usize| if i % 5 == 3 { 511 } else { (i * 37 % 400) as i64 };
    let ids = Frame::i64([BATCH, 5], (0..BATCH * 5).map(word));
    let mut vision = make(vision, json!({ "drop_path": 0.1 }), &clip, [&["video"], &[]]);
    let mut text = make(text, json!({}), &[("B", BATCH), ("L", 5)], [&["ids"], &[]]);
    let sides = ["left", "right"];
    let mut judge = make(loss, options, &[("B", BATCH), ("D", 96)], [&sides, &sides]);
    let mut found = Vec::new();
    for step in 0..15 {
        let at = At { step, ..At::default() };
        let seen = vision.forward(at, frames([("video", &video)])).unwrap_or_else(fail).frames;
        let read = text.forward(at, frames([("ids", &ids)])).unwrap_or_else(fail).frames;
        let inputs = frames([("left", &seen["pooled"]), ("right", &read["pooled"])]);
        let end = judge.forward(at, inputs).unwrap_or_else(fail).frames;
        found.push(f64::from(end["loss"].to_f32()[0]));
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = judge.backward(at, one).unwrap_or_else(fail);
        for (node, side) in [(&mut vision, "left"), (&mut text, "right")] {
            node.backward(at, vec![("pooled".to_owned(), back[side].clone())]).unwrap_or_else(fail);
        }
        for node in [&mut vision, &mut text, &mut judge] {
            node.update(&Update { step, lr: 1e-3, scale: 1.0 }).unwrap_or_else(fail);
        }
    }
    found
}

#[test]
fn towers_learn_which_text_belongs_to_which_clip() {
    let temp = json!({ "temperature": "temp" });
    let sigmoid = json!({ "tile": 4 });
    for (vision, text, loss, options) in [
        ("models/clip", "text/clip", "losses/info_nce", json!({})),
        ("models/intern_vit", "text/clip", "losses/info_nce", temp),
        ("models/siglip", "text/siglip", "losses/pairwise_sigmoid", sigmoid),
        ("models/siglip2", "text/siglip", "losses/pairwise_sigmoid", json!({})),
    ] {
        let found = losses(vision, text, loss, options.clone());
        assert!(found[14] < 0.7 * found[0], "{vision}: {found:?}");
        assert_eq!(found, losses(vision, text, loss, options), "{vision}: the same again");
    }
}

#[test]
fn projections_learn_a_space_in_which_both_sides_meet() {
    let wave = |i: usize, of: usize| (0.7 * i as f32 + (i / of * i % 5) as f32).sin();
    let given = |of: usize| Frame::f32([BATCH, of], (0..BATCH * of).map(|i| wave(i, of)));
    let clips = (given(8), "left");
    let texts = (given(12), "right");
    let project = |width: usize, side: &str| {
        let options = json!({ "width": 6, "side": side });
        make("models/projection", options, &[("B", BATCH), ("D", width)], [&["features"], &[]])
    };
    let mut both = [(project(8, "vision"), clips), (project(12, "text"), texts)];
    let sides = ["left", "right"];
    let dims = [("B", BATCH), ("D", 6)];
    let mut judge = make("losses/info_nce", json!({}), &dims, [&sides, &sides]);
    let mut found = Vec::new();
    for step in 0..60 {
        let at = At { step, ..At::default() };
        let mut inputs = Frames::new();
        for (node, (given, side)) in &mut both {
            let projected = node.forward(at, frames([("features", &*given)]));
            let projected = projected.unwrap_or_else(fail).frames["projected"].clone();
            inputs.insert((*side).to_owned(), projected);
        }
        let end = judge.forward(at, inputs).unwrap_or_else(fail).frames;
        found.push(f64::from(end["loss"].to_f32()[0]));
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = judge.backward(at, one).unwrap_or_else(fail);
        for (node, (_, side)) in &mut both {
            let arrived = vec![("projected".to_owned(), back[*side].clone())];
            node.backward(at, arrived).unwrap_or_else(fail);
            node.update(&Update { step, lr: 1e-2, scale: 1.0 }).unwrap_or_else(fail);
        }
    }
    assert!(found[59] < 0.5 * found[0], "{found:?}");
}

/// Stage 1 with another semantic teacher.
fn swapped(kind: &str, more: &str, size: &str) -> tests::command::Ran {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_playhouse-test");
    let stage1 = root().join("experiments/internvideo2/stage1.yaml");
    let overlay = format!("graph:\n  semantic:\n    kind: {kind}\n{more}    size: {{ {size} }}\n");
    fs::write(folder.path().join("swap.yaml"), overlay).unwrap();
    let arguments = ["check", stage1.to_str().unwrap(), "--with", "swap.yaml"];
    playhouse(program, folder.path(), &arguments)
}

#[test]
fn every_tower_can_be_the_semantic_teacher_of_stage_1() {
    let plain = "    layer_scale: null\n";
    // A video encoder cuts tubelets of all frames, as the student does.
    let video = "    layer_scale: null\n    in: { video: clips.video }\n";
    for (kind, more, size) in [
        ("models/clip", plain, ""),
        ("models/siglip", plain, ""),
        ("models/siglip2", plain, ""),
        ("models/intern_vit", "", ""),
        ("models/vjepa2", video, "pooled: null, "),
    ] {
        let ran = swapped(kind, more, size);
        assert_eq!(ran.code, 0, "{kind}: {}", ran.shown());
        let ran = swapped(kind, more, &format!("{size} patch: 14"));
        assert_ne!(ran.code, 0, "{kind}: {}", ran.shown());
        let shown = ran.shown();
        let named = shown.contains("not a multiple of 14") || shown.contains("token lattice");
        assert!(named, "{kind}: {shown}");
    }
    let ran = swapped("models/vjepa2", plain, "pooled: null");
    assert!(ran.shown().contains("`student` is [8, 4, 4]"), "{}", ran.shown());
}

#[test]
fn pixels_in_other_colours_are_refused() {
    let ran = swapped("models/clip", "    layer_scale: null\n    input: own\n", "");
    assert_ne!(ran.code, 0);
    assert!(ran.shown().contains("pixels"), "{}", ran.shown());
}
