//! Published adapters through the command: written by a run, named by another one, merged on import.

use std::fs;
use std::path::Path;

use modules::archive::Archive;
use tests::command::{Ran, playhouse, root};

fn run(folder: &Path, arguments: &[&str]) -> Ran {
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder, arguments)
}

fn experiment(lora: &str) -> String {
    format!(
        "seed: 1
graph:
  clips: {{ kind: data/moving_shapes, batch: 2, frames: 4, size: 32 }}
  encoder: {{ kind: models/videomae_v2, in: {{ video: clips.video }}, classes: 8, lora: {lora} }}
  judge: {{ kind: losses/cross_entropy, in: {{ logits: encoder.logits, label: clips.motion }} }}
curriculum:
  - name: learn
    steps: 2
    train: [encoder]
    losses: {{ judge.loss: 1 }}
    optimizer: {{ kind: adamw, lr: 1.0e-2 }}
"
    )
}

fn values(file: &Path) -> Vec<(String, Vec<f32>)> {
    let archive = Archive::open(file).unwrap_or_else(|error| panic!("{error}"));
    let one = |(key, _): (&str, _)| (key.to_owned(), archive.get(key).unwrap().to_f32());
    archive.keys().map(one).collect()
}

/// The first layout of this kind stores q, k and v as one matrix, so that the adapters are written in
/// the second one, that of transformers.
#[test]
fn a_run_goes_on_with_the_adapters_of_another_one() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("here")).unwrap();
    fs::write(at("here/first.yaml"), experiment("{ rank: 2, alpha: 4, on: [q, fc1, head] }"))
        .unwrap();
    run(place.path(), &["run", "here/first.yaml", "--out", "one"]).done();
    let wrote =
        run(place.path(), &["weights", "export", "one", "encoder", "here/out", "--adapters"]);
    assert!(wrote.done().contains("as of step 2"));
    let first = values(&at("here/out/adapter_model.safetensors"));
    assert!(first.iter().any(|(key, values)| {
        key == "base_model.model.videomae.encoder.layer.0.attention.attention.query.lora_B.weight"
            && values.iter().any(|v| *v != 0.0)
    }));

    // The folder is found from the experiment's.
    fs::write(at("here/second.yaml"), experiment("{ from: out }")).unwrap();
    run(place.path(), &["check", "here/second.yaml"]).done();
    run(place.path(), &["run", "here/second.yaml", "--out", "two"]).done();
    run(place.path(), &["weights", "export", "two", "encoder", "again", "--adapters"]).done();
    let second = values(&at("again/adapter_model.safetensors"));
    for ((key, before), (_, after)) in first.iter().zip(&second) {
        let moved = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.0 && moved < 0.1, "`{key}` trains on from what it was: {moved}");
    }
    let origin = fs::read_to_string(at("two/origin.json")).unwrap();
    assert!(origin.contains("adapter_model.safetensors"), "{origin}");

    run(place.path(), &["weights", "export", "two", "encoder", "merged.safetensors", "--merge"])
        .done();
    let merged = values(&at("merged.safetensors"));
    assert!(merged.iter().all(|(key, _)| !key.contains("lora")));
    let plain = experiment("null").replace("classes: 8", "classes: 8, weights: merged.safetensors");
    fs::write(at("plain.yaml"), plain).unwrap();
    run(place.path(), &["check", "plain.yaml"]).done();

    let both = ["weights", "export", "two", "encoder", "x", "--merge", "--adapters"];
    assert_eq!(run(place.path(), &both).code, 2);
    let none = run(place.path(), &["weights", "export", "two", "x", "--merge"]);
    assert!(none.err.contains("name it"), "{}", none.shown());
}

#[test]
fn rules_merge_adapters_and_start_gates_at_zero() {
    let golden = root().join("tests/golden/llama_lora");
    let place = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "config.json"] {
        fs::copy(golden.join(name), place.path().join(name)).unwrap();
    }
    let rule = format!("*={{\"merge_lora\":{{\"from\":{:?}}}}}", golden.to_str().unwrap());
    let import = |out: &str, rules: &[&str]| {
        let mut words = vec!["weights", "import", "model.safetensors", out];
        rules.iter().for_each(|rule| words.extend(["--rule", rule]));
        run(place.path(), &words)
    };
    import("in", &[&rule]).done();
    run(place.path(), &["weights", "export", "in", "back.safetensors"]).done();
    let back = values(&place.path().join("back.safetensors"));
    let expected = values(&golden.join("merged.safetensors"));
    assert!(!expected.is_empty());
    for (key, expected) in expected {
        let (_, merged) = back.iter().find(|(other, _)| *other == key).expect(&key);
        let off = expected.iter().zip(merged).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "`{key}`: {off}");
    }

    let gone = r#"*.0.mlp.down_proj.weight={"remove":{}}"#;
    let lacks = import("lacks", &[gone]);
    assert!(
        lacks.code != 0 && lacks.err.contains("down_proj.weight` is missing"),
        "{}",
        lacks.shown()
    );
    let zero = r#"*.0.mlp.down_proj.weight={"start_at_zero":{}}"#;
    import("zero", &[gone, zero]).done();
    let held = values(&place.path().join("zero/text.causal_lm.safetensors"));
    let is_zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
    for (path, values) in held {
        let gate = path == "blocks.0.mlp.fc2.weight";
        assert_eq!(is_zero(&values), gate, "{path}");
    }
    let idle = import("idle", &[r#"*.gate={"start_at_zero":{}}"#]);
    assert!(idle.err.contains("no absent parameter fits `*.gate`"), "{}", idle.shown());
}
