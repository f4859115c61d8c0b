//! Every fixture folder: the numbers of the published code, within the tolerance they come with.
//!
//! `PLAYHOUSE_GOLDEN` names another folder of fixtures, `PLAYHOUSE_DEVICE` another device.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use schemas::dims::Dims;
use schemas::entry::{Against, find};
use schemas::node::NodeSpec;
use serde_json::json;
use tests::golden;

fn folders() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let root = std::env::var_os("PLAYHOUSE_GOLDEN").map_or(here, PathBuf::from);
    let entries = std::fs::read_dir(&root).expect("the folder of fixtures is readable");
    let mut folders: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn every_golden_fixture_is_met() {
    let (mut failures, mut met) = (Vec::new(), 0);
    for folder in folders() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match catch_unwind(|| golden::check(&folder)) {
            Ok(Some(report)) => {
                println!("{report}");
                met += 1;
                failures.extend(report.problems.iter().map(|problem| format!("{name}: {problem}")));
            }
            Ok(None) => failures.push(format!("{name}: no program checks it")),
            // The message is above; the other fixtures are still checked.
            Err(_) => failures.push(format!("{name}: stopped")),
        }
    }
    assert!(met > 0, "no fixture was found");
    for name in golden::KNOWN {
        let other = std::env::var_os("PLAYHOUSE_GOLDEN").is_some();
        let there = folders().iter().any(|folder| folder.ends_with(name));
        assert!(other || there, "the fixture {name} is missing");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Arrays by port that `playhouse conform` is told, and the least number of arrays that it then compares.
type Told = (&'static [(&'static str, &'static str)], usize);

/// Kinds and the references in which they find their arrays.
const CONFORM: &[(&str, &str, Told)] = &[
    ("audio/beats", "conform/beats_patch_bias", (&[], 10)),
    ("models/attentive_pooler", "golden/vjepa2", (&[], 2)),
    ("models/intern_vit", "golden/internvit", (&[], 11)),
    ("models/internvideo2", "golden/internvideo2_ap", (&[], 5)),
    ("models/internvideo2", "golden/internvideo2_cls", (&[], 5)),
    ("models/internvideo2", "golden/internvideo2_pretrain", (&[], 4)),
    ("models/internvideo2", "golden/internvideo2_pretrain_separable", (&[], 3)),
    ("models/internvl_clip", "golden/internvl_clip_teacher", (&[], 3)),
    ("models/projection", "golden/internvideo2_stage2", (PROJECTION, 1)),
    ("models/videomae_v2", "golden/videomae_model", (&[], 2)),
    ("models/videomae_v2", "golden/videomae_model_without_biases", (&[], 2)),
    ("models/videomae_v2", "golden/videomaev2_finetune", (&[], 1)),
    ("models/vjepa2", "golden/vjepa2", (&[], 1)),
    ("models/vjepa2", "golden/vjepa2_without_biases", (&[], 1)),
    ("text/bert", "golden/bert", (&[], 2)),
    ("text/bert", "golden/bert_cross", (&[], 1)),
    ("text/bert", "golden/bert_relu", (&[], 2)),
    ("text/causal_lm", "golden/llama", (&[], 2)),
    ("text/causal_lm", "golden/llama3_rope", (&[], 2)),
    ("text/causal_lm", "golden/llama_lora", (&[("logits", "base.logits")], 1)),
    ("text/causal_lm", "golden/mistral", (&[], 2)),
    ("text/causal_lm", "golden/qwen2", (&[], 2)),
    ("text/modern_bert", "golden/modernbert", (&[], 2)),
    ("text/modern_bert", "golden/modernbert_biases", (&[], 2)),
];

/// The contrast's projection of clips, of the two that stand in the checkpoint.
const PROJECTION: &[(&str, &str)] =
    &[("features", "pooled_vision_embeds"), ("projected", "vision_proj")];

#[test]
fn kinds_conform_to_the_references() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (kind, folder, (names, least)) in CONFORM {
        let entry = find(modules::REGISTRY, kind).unwrap();
        let spec = NodeSpec::alone(kind, json!({}), Dims::new());
        let names = names.iter().map(|(port, array)| ((*port).into(), (*array).into())).collect();
        let against = Against { folder: here.join(folder), names, ..Against::default() };
        let found = (entry.conform)(&spec, &against);
        let found = found.unwrap_or_else(|error| panic!("{kind}, {folder}: {error}"));
        let off: Vec<_> = found.compared.iter().filter(|one| one.share > 4.0).collect();
        assert!(off.is_empty(), "{kind}, {folder}: {off:?}");
        let compared: Vec<_> = found.compared.iter().map(|one| one.name.as_str()).collect();
        assert!(compared.len() >= *least, "{kind}, {folder}: only {compared:?}");
    }
}
