//! `playhouse score`: the examples of the book by hand, safetensors, several files, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tests::command::{Ran, playhouse, root};

fn score(folder: &Path, arguments: &[&str]) -> Ran {
    let arguments = [&["score"], arguments].concat();
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder, &arguments)
}

/// Scores a value and gives its metrics.
fn metrics(kind: &str, file: &Value) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file.json"), file.to_string()).unwrap();
    let printed = score(folder.path(), &[kind, "file.json", "--json"]).done();
    serde_json::from_str::<Value>(&printed).unwrap()["metrics"].take()
}

/// What is said of a value that is refused.
fn refused(kind: &str, file: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file.json"), file).unwrap();
    let ran = score(folder.path(), &[kind, "file.json"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.shown());
    let said = ran.err.strip_prefix("error: cannot score file.json: ");
    said.unwrap_or_else(|| panic!("{}", ran.err)).trim_end().to_owned()
}

/// Files of the page by name.
fn examples() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/src/metrics.md")).unwrap();
    let mut found = BTreeMap::new();
    for part in page.split("`\n\n```json\n").collect::<Vec<_>>().windows(2) {
        let name = part[0].rsplit('`').next().unwrap();
        let (text, _) = part[1].split_once("```").unwrap();
        found.insert(name.to_owned(), text.to_owned());
    }
    found
}

fn example(kind: &str) -> Value {
    serde_json::from_str(&examples()[&format!("{kind}.json")]).unwrap()
}

#[track_caller]
fn near(metrics: &Value, expected: &[(&str, f64)]) {
    for (name, expected) in expected {
        let found = metrics[*name].as_f64().unwrap_or_else(|| panic!("{name}: {metrics}"));
        assert!((found - expected).abs() < 1e-9, "{name}: {found}, expected {expected}");
    }
}

#[test]
fn examples_of_the_page_have_the_values_worked_out_by_hand() {
    assert_eq!(examples().len(), 6);
    let third = 100.0 / 3.0;
    let by_hand: [(&str, &[(&str, f64)]); 6] = [
        (
            "retrieval",
            &[
                ("sim.v2t.R@1", 2.0 * third),
                ("sim.v2t.R@5", 100.0),
                ("sim.v2t.MdR", 1.0),
                ("sim.v2t.MnR", 4.0 / 3.0),
                ("sim.t2v.R@1", 100.0),
                ("sim.r_mean", (100.0 + (200.0 + 2.0 * third) / 3.0) / 2.0),
                ("match.v2t.R@1", 100.0),
            ],
        ),
        (
            "classification",
            &[("top-1", 2.0 * third), ("top-5", 100.0), ("mean_class_accuracy", 75.0)],
        ),
        ("detection", &[("mAP@0.3", 75.0), ("mAP@0.7", 75.0), ("average_mAP", 75.0)]),
        ("grounding", &[("R1@0.5", 50.0), ("R5@0.7", 100.0), ("mIoU", 37.5)]),
        (
            "tracking",
            &[
                ("AUC", 500.0 / 21.0),
                ("mean_overlap", 25.0),
                ("SR@0.5", 0.0),
                ("J", 2.0 * third),
                ("F", 100.0),
            ],
        ),
        (
            "answers",
            &[
                ("accuracy", 2.0 * third),
                ("mean_of_kinds", 75.0),
                ("majority", 100.0),
                ("accuracy[motion]", 50.0),
            ],
        ),
    ];
    for (kind, expected) in by_hand {
        near(&metrics(kind, &example(kind)), expected);
    }
}

#[test]
fn every_option_of_the_page_is_taken() {
    let mut file = example("retrieval");
    file["right_videos"] = json!([0, 1, [1, 2]]);
    file.as_object_mut().unwrap().remove("right");
    file["dual_softmax"] = json!({ "scale": 10 });
    file["rerank"]["by"] = json!("dual_softmax");
    file["back"] = json!([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5, 0.5, 0.5]]);
    file["rerank"]["back"] = file["back"].clone();
    let found = metrics("retrieval", &file);
    near(&found, &[("sim.v2t.R@1", 200.0 / 3.0), ("sim.t2v.R@1", 100.0 / 3.0)]);
    file["directions"] = json!(["t2v"]);
    let found = metrics("retrieval", &file);
    assert!(found.get("sim.v2t.R@1").is_none() && found.get("sim.r_mean").is_none());

    let file = json!({ "scores": [[0.9, 0.1, 0.6, 0.6]], "class": [0, 0, 1, 1], "labels": [1] });
    near(&metrics("classification", &file), &[("top-1", 100.0)]);
    let file = json!({
        "scores": [[9.0, -9.0], [0.0, 1.0], [-9.0, 9.0]], "labels": [[0], []],
        "video": [0, 1, 1], "activation": "sigmoid",
    });
    near(&metrics("classification", &file), &[("mAP", 100.0)]);

    let mut file = example("detection");
    file["soft_nms"] = json!({ "sigma": 0.5, "least": 0.001, "keep": 2 });
    file["thresholds"] = json!([0.5]);
    near(&metrics("detection", &file), &[("mAP@0.5", 50.0)]);
    file["thresholds"] = json!("activitynet");
    assert_eq!(metrics("detection", &file).as_object().unwrap().len(), 11);
}

#[test]
fn matrices_may_be_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let scores = bytes(&[0.9, 0.2, 0.4, 0.6, 0.3, 0.5, 0.1, 0.2, 0.8]);
    let matching = bytes(&[2.0, -1.0, 0.5, 0.1, 3.0, 0.2, 0.0, 0.5, 4.0]);
    let halves: Vec<u8> = [0_i32, 2, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let f64s = |data| TensorView::new(Dtype::F64, vec![3, 3], data).unwrap();
    let tensors = [
        ("scores", f64s(&scores)),
        ("rerank.scores", f64s(&matching)),
        ("rerank.k", TensorView::new(Dtype::I32, vec![], &halves[4..8]).unwrap()),
        ("right", TensorView::new(Dtype::I32, vec![3], &halves).unwrap()),
    ];
    let whole = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("scores.safetensors"), whole).unwrap();
    let mut file = example("retrieval");
    file["scores"] = json!({ "safetensors": "scores.safetensors", "tensor": "scores" });
    fs::write(folder.path().join("refers.json"), file.to_string()).unwrap();
    let printed = score(folder.path(), &["retrieval", "refers.json", "--json"]).done();
    let found: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(found["metrics"], metrics("retrieval", &example("retrieval")));

    file = example("retrieval");
    file["right"] = json!([0, 2, 2]);
    file["directions"] = json!(["v2t"]);
    // Text 1 has no video, so both directions are refused.
    let ran = score(folder.path(), &["retrieval", "scores.safetensors"]);
    let words = "`right_videos` is without anything right for text 1 in t2v";
    assert!(ran.code == 2 && ran.err.contains(words), "{}", ran.shown());
    file["scores"] = json!({ "safetensors": "scores.safetensors", "tensor": "right" });
    fs::write(folder.path().join("refers.json"), file.to_string()).unwrap();
    let ran = score(folder.path(), &["retrieval", "refers.json"]);
    assert!(ran.err.contains("`scores` has the shape [3]"), "{}", ran.shown());

    let nan = bytes(&[0.5, 0.5, 0.5, f64::NAN]);
    let labels = [0_u8, 1];
    let tensors = [
        ("scores", TensorView::new(Dtype::F64, vec![2, 2], &nan).unwrap()),
        ("labels", TensorView::new(Dtype::U8, vec![2], &labels).unwrap()),
    ];
    let whole = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("nan.safetensors"), whole).unwrap();
    let ran = score(folder.path(), &["classification", "nan.safetensors"]);
    assert!(ran.err.contains("`scores[1][1]` is NaN; give finite numbers"), "{}", ran.shown());
}

#[test]
fn several_files_have_a_mean_and_an_interval() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, predicted) in [("1", 0), ("2", 1), ("3", 1)] {
        let file = json!({ "items": [{ "predicted": predicted, "right": 1 }] });
        fs::write(folder.path().join(seed), file.to_string()).unwrap();
    }
    let printed = score(folder.path(), &["answers", "1", "2", "3", "--json"]).done();
    let found: Value = serde_json::from_str(&printed).unwrap();
    let accuracy = &found["metrics"]["accuracy"];
    let deviation = (10_000.0_f64 / 3.0).sqrt();
    // Student's t with two degrees of freedom has a closed form.
    let t = 0.95 * (2.0 / (1.0 - 0.95_f64.powi(2))).sqrt();
    let half = t * deviation / 3.0_f64.sqrt();
    let mean = 200.0 / 3.0;
    near(accuracy, &[("mean", mean), ("deviation", deviation), ("low", mean - half)]);
    let table = score(folder.path(), &["answers", "1", "2", "3"]).done();
    assert!(table.contains("66.6667 ± 143.4218 (n = 3)"), "{table}");
    let other = json!({ "items": [{ "kind": "motion", "predicted": 1, "right": 1 }] });
    fs::write(folder.path().join("4"), other.to_string()).unwrap();
    let ran = score(folder.path(), &["answers", "1", "4"]);
    assert!(ran.code == 2 && ran.err.contains("4 has other metrics than 1"), "{}", ran.shown());
}

/// Kind, file, and what is said of it.
const REFUSED: &[(&str, &str, &str)] = &[
    ("retrieval", r#"{ "scores": [[1, 2], [3]], "right": [0, 0] }"#, "`scores[1]` has 1 entries"),
    (
        "retrieval",
        r#"{ "scores": [[1, null]], "right": [0] }"#,
        "`scores[0][1]`: invalid type: null",
    ),
    ("retrieval", r#"{ "scores": [[1, 2]], "right": [[0, -1]] }"#, "`right[0][1]`: invalid value"),
    (
        "retrieval",
        r#"{ "scores": [[1, 2]], "right": [7] }"#,
        "`right[0][0]` is 7, but must be below 2",
    ),
    ("retrieval", r#"{ "scores": [[1]] }"#, "give `right`"),
    ("retrieval", r#"{ "scores": [], "right": [] }"#, "`scores` is empty"),
    (
        "retrieval",
        r#"{ "scores": [[1]], "right": [0], "rerank": { "scores": [[1]], "k": 0 } }"#,
        "`rerank.k` is 0, but must be at least 1",
    ),
    (
        "retrieval",
        r#"{ "scores": [[1]], "right": [0], "rerank": { "scores": [[1, 2]] } }"#,
        "`rerank.scores` has 2 entries, but must have 1",
    ),
    (
        "retrieval",
        r#"{ "scores": { "safetensors": "no.safetensors", "tensor": "a" }, "right": [0] }"#,
        "`scores`",
    ),
    (
        "classification",
        r#"{ "scores": [[1, 2]], "labels": [2] }"#,
        "`labels[0]` is 2, but must be below 2",
    ),
    (
        "classification",
        r#"{ "scores": [[1], [2]], "labels": [0, [0]] }"#,
        "`labels[1]` is of another form",
    ),
    (
        "classification",
        r#"{ "scores": [[1]], "labels": [] }"#,
        "`labels` has 0 entries, but must have 1",
    ),
    (
        "classification",
        r#"{ "scores": [[1]], "labels": [0], "label": 1 }"#,
        "unknown field `label`",
    ),
    (
        "classification",
        r#"{ "scores": [[1e999]], "labels": [0] }"#,
        "`scores[0][0]`: number out of range",
    ),
    (
        "detection",
        r#"{ "truth": [], "predictions": [], "thresholds": "thumos14" }"#,
        "`truth` is empty",
    ),
    (
        "detection",
        r#"{ "truth": [], "predictions": [], "thresholds": "thumos" }"#,
        "`thresholds`: expected `thumos14`, `activitynet` or a list",
    ),
    (
        "detection",
        r#"{ "truth": [{ "video": 1.5, "label": 1, "start": 0, "end": 1 }] }"#,
        "`truth[0].video`: `1.5` is no name",
    ),
    (
        "detection",
        r#"{ "truth": [{ "video": "a", "label": 1, "start": 0 }] }"#,
        "`truth[0]`: missing field `end`",
    ),
    (
        "grounding",
        r#"{ "queries": [{ "truth": [0, 1], "predicted": [[1, 0]] }] }"#,
        "`queries[0].predicted[0].end` is 0",
    ),
    ("grounding", r#"{ "queries": [{ "truth": [0], "predicted": [] }] }"#, "`queries[0].truth`"),
    ("tracking", r#"{ "objects": [] }"#, "`objects` is empty"),
    ("tracking", r#"{ "objects": [{}] }"#, "`objects[0]` is without either"),
    (
        "tracking",
        r#"{ "objects": [{ "boxes": { "predicted": [[1, 0, 0, 1]], "truth": [null] } }] }"#,
        "`objects[0].boxes.predicted[0][2]` is 0, but must be at least 1",
    ),
    (
        "tracking",
        r#"{ "objects": [{ "masks": { "size": [2, 2], "predicted": [[9]], "truth": [[4]] } }] }"#,
        "`objects[0].masks.predicted[0]` is a mask of 9 pixels",
    ),
    (
        "answers",
        r#"{ "items": [{ "predicted": 4, "right": 1, "choices": 4 }] }"#,
        "`items[0].predicted` is 4, but must be below 4",
    ),
    (
        "answers",
        r#"{ "items": [{ "predicted": true, "right": 1 }] }"#,
        "`items[0].predicted`: expected words or the number",
    ),
    ("answers", r#"{ "items": [] } x"#, "something follows the JSON"),
];

#[test]
fn what_is_wrong_is_named_by_its_path() {
    for (kind, file, words) in REFUSED {
        let said = refused(kind, file);
        assert!(said.contains(words), "{kind} {file}\n{said}");
    }
}
