//! The Python side of `playhouse bench`: what it refuses, and with a Python that has torch and
//! pyzmq, named by `PLAYHOUSE_PYTHON`, that it computes as much as our side.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tests::command::{Ran, playhouse};

const EXPERIMENT: &str = "
seed: 1
graph:
  clips:    { kind: data/moving_shapes, batch: 2, frames: 4, size: 32 }
  semantic: { kind: models/internvl_clip, in: { video: clips.sparse }, preset: tiny, size: { depth: 1 }, frozen: true }
  motion:   { kind: models/videomae_v2, in: { video: clips.video }, preset: tiny, size: { depth: 2 }, taps: 1, frozen: true }
  mask:     { kind: masks/attention, in: { attention: semantic.attention }, ratio: 0.5 }
  student:  { kind: models/internvideo2, in: { video: clips.video, visible: mask.visible }, preset: tiny, size: { tubelet: 2, depth: 2 } }
  align_s:  { kind: losses/feature_alignment, in: { student: student.layers, teacher: semantic.layers, visible: mask.visible } }
  align_p:  { kind: losses/feature_alignment, in: { student: student.pooled, teacher: semantic.pooled }, of: pooled }
  align_m:  { kind: losses/feature_alignment, in: { student: student.layers, teacher: motion.layers, visible: mask.visible }, head: mlp }
curriculum:
  - name: reconstruct
    steps: 4
    train: [student, align_s, align_p, align_m]
    losses: { align_s.loss: 1, align_p.loss: 1, align_m.loss: 2 }
    optimizer: { kind: adamw, lr: 1.0e-3, weight_decay: 0.05, clip: 3.0 }
";

fn bench(folder: &Path, python: &str) -> Ran {
    fs::write(folder.join("stage.yaml"), EXPERIMENT).unwrap();
    let arguments = ["bench", "step", "stage.yaml", "--rounds", "1", "--steps", "2", "--json"];
    let arguments = [&arguments[..], &["--python", python]].concat();
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder, &arguments)
}

/// A program that answers with one line, in place of a Python.
fn answering(folder: &Path, line: &str) -> String {
    let path = folder.join("python");
    fs::write(&path, format!("#!/bin/sh\nread -r stage\necho '{line}'\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_python_without_torch_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let python = answering(folder.path(), r#"{"error": "no module named torch"}"#);
    let ran = bench(folder.path(), &python);
    assert_eq!(ran.code, 2, "{}", ran.shown());
    assert!(ran.err.contains("no module named torch"), "{}", ran.shown());
    let ran = bench(folder.path(), "no-such-python");
    assert_eq!(ran.code, 2, "{}", ran.shown());
    assert!(ran.err.contains("cannot start `no-such-python`"), "{}", ran.shown());
}

#[test]
fn another_number_of_parameters_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let answer = r#"{"parameters": {"align_m": 5, "align_p": 5}, "torch": "2"}"#;
    let ran = bench(folder.path(), &answering(folder.path(), answer));
    assert_eq!(ran.code, 2, "{}", ran.shown());
    assert!(ran.err.contains("parameters here, but 5 in PyTorch"), "{}", ran.shown());
}

#[test]
#[ignore = "needs PLAYHOUSE_PYTHON, a Python with torch"]
fn pytorch_takes_turns_with_the_same_step() {
    let python = std::env::var("PLAYHOUSE_PYTHON").expect("PLAYHOUSE_PYTHON is set");
    let folder = tempfile::tempdir().unwrap();
    let found: serde_json::Value =
        serde_json::from_str(&bench(folder.path(), &python).done()).unwrap();
    let of: Vec<_> = found["ratios"].as_array().unwrap().iter().map(|r| &r["of"]).collect();
    assert_eq!(of.len(), 3, "{found:#}");
    assert!(found["ratios"].as_array().unwrap().iter().all(|r| r["best"].as_f64() > Some(0.0)));
}

#[test]
#[ignore = "needs PLAYHOUSE_PYTHON, a Python with pyzmq"]
fn pyzmq_takes_turns_with_the_same_messages() {
    let python = std::env::var("PLAYHOUSE_PYTHON").expect("PLAYHOUSE_PYTHON is set");
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["bench", "transport", "--rounds", "1", "--only", "ipc", "--json"];
    let arguments = [&arguments[..], &["--python", &python]].concat();
    let ran = playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder.path(), &arguments);
    assert!(ran.done().contains("pyzmq"));
}
