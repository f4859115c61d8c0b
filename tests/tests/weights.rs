//! Published checkpoints: into our own paths and back, whatever their layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use modules::REGISTRY;
use modules::archive::{Archive, Dtype};
use modules::weights::convert::{self, Imported};
use safetensors::SafeTensors;
use schemas::entry::find;
use schemas::node::NodeSpec;
use serde_json::json;
use tests::command::root;

/// What import says of the tensors that no kind takes; all others belong to kinds.
const REASONS: [(&str, &[&str]); 4] = [
    // Two layers on which an optimiser is tried are no kind.
    ("adamw_cosine", &["no kind knows this checkpoint"]),
    ("beats", &["the same as `encoder.layers.0.self_attn.relative_attention_bias.weight`"]),
    (
        "internvideo2_stage2",
        &[
            "a buffer that is computed",
            "the same as `text_encoder.bert.embeddings.word_embeddings.weight`",
            "the same as `text_encoder.cls.predictions.bias`",
        ],
    ),
    (
        "internvideo_next_stage2",
        &[
            "a head of stage 2 without loss or output",
            "the table of stage 1's heads, which are not here",
        ],
    ),
];

fn golden() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/golden")).expect("there are fixtures");
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

fn weights(folder: &Path) -> Option<PathBuf> {
    let names = ["model.safetensors", "weights.safetensors"];
    names.into_iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

type Held = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn held(path: &Path) -> Held {
    let archive = Archive::open(path).unwrap_or_else(|error| panic!("{error}"));
    let one = |(key, info): (&str, modules::archive::Info<'_>)| {
        let bytes = archive.get(key).unwrap_or_else(|error| panic!("{error}")).bytes.into_owned();
        (key.to_owned(), (info.dtype, info.shape.to_vec(), bytes))
    };
    archive.keys().map(one).collect()
}

fn import(file: &Path, folder: &Path, out: &Path) -> Imported {
    let wanted = convert::recognise(REGISTRY, folder).unwrap_or_else(|error| panic!("{error}"));
    let archive = Archive::open(file).unwrap_or_else(|error| panic!("{error}"));
    convert::import(REGISTRY, &archive, &wanted, file, out)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_fixture_comes_back_as_it_was() {
    let mut known = BTreeSet::new();
    for folder in golden() {
        let Some(file) = weights(&folder) else { continue };
        let out = tempfile::tempdir().unwrap();
        let imported = import(&file, &folder, out.path());
        let back = out.path().join("back.safetensors");
        convert::export(REGISTRY, out.path(), None, &back).unwrap_or_else(|e| panic!("{e}"));
        let (before, after) = (held(&file), held(&back));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (key, tensor) in &before {
            assert!(after[key] == *tensor, "{}: `{key}` differs", folder.display());
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let allowed = REASONS.iter().find(|(fixture, _)| *fixture == name);
        let allowed: BTreeSet<&str> =
            allowed.into_iter().flat_map(|(_, all)| *all).copied().collect();
        let given: BTreeSet<&str> = imported.rest.values().map(String::as_str).collect();
        assert_eq!(given, allowed, "{name}: {:?}", imported.rest);
        known.insert(name);
    }
    for (name, _) in REASONS {
        assert!(known.contains(name), "the fixture {name} is there");
    }
}

/// A tensor that repeats another one is kept with its own values where the two differ.
#[test]
fn a_tensor_that_should_repeat_another_one_and_differs_is_named() {
    let folder = root().join("tests/golden/beats");
    let mut bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let table =
        |number: usize| format!("encoder.layers.{number}.self_attn.relative_attention_bias.weight");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let place = tensors.tensor(&table(1)).unwrap().data().as_ptr() as usize;
    let at = place - bytes.as_ptr() as usize;
    bytes[at] ^= 1;
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("changed.safetensors");
    std::fs::write(&file, bytes).unwrap();
    let imported = import(&file, &folder, &out.path().join("in"));
    let first = table(0);
    assert_eq!(imported.rest[&table(2)], format!("the same as `{first}`"));
    let differs = format!("differs from `{first}`, which is used in its place");
    assert_eq!(imported.rest[&table(1)], differs);
    let back = out.path().join("back.safetensors");
    convert::export(REGISTRY, &out.path().join("in"), None, &back).unwrap();
    assert!(held(&file) == held(&back), "nothing is lost");
}

/// Two nodes of a kind that a checkpoint holds twice each find their own part in the folder.
#[test]
fn an_imported_folder_gives_each_node_the_part_that_its_options_name() {
    let folder = root().join("tests/golden/internvideo2_stage2");
    let file = folder.join("model.safetensors");
    let out = tempfile::tempdir().unwrap();
    let imported = import(&file, &folder, out.path());
    let published = held(&file);
    let projections = imported.parts.iter().filter(|part| part.kind == "models/projection");
    let mut sides = Vec::new();
    for part in projections {
        let mut spec = NodeSpec::alone(&part.kind, part.options.clone(), part.dims.clone());
        spec.weights = Some(out.path().to_owned());
        spec.device = tests::device::name();
        let node = (find(REGISTRY, &part.kind).unwrap().build)(&spec);
        let node = node.unwrap_or_else(|error| panic!("{error}"));
        let bias = node.weights()["proj.bias"].to_f32();
        let bytes: Vec<u8> = bias.into_iter().flat_map(f32::to_le_bytes).collect();
        let side = part.options["side"].as_str().unwrap().to_owned();
        assert!(published[&format!("{side}_proj.bias")].2 == bytes, "{side}");
        sides.push(side);
    }
    assert_eq!(json!(sides), json!(["vision", "text"]));
}

#[test]
fn a_part_of_a_checkpoint_that_does_not_fit_is_refused_by_name() {
    let folder = root().join("tests/golden/videomaev2_pretrain");
    let archive = Archive::open(&folder.join("model.safetensors")).unwrap();
    let mut wanted = convert::recognise(REGISTRY, &folder).unwrap();
    wanted[0].options["size"]["hidden"] = 61.into();
    let out = tempfile::tempdir().unwrap();
    let error = convert::import(REGISTRY, &archive, &wanted, &folder, &out.path().join("x"));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("mlp.fc1") && message.contains("61"), "{message}");
    assert!(!out.path().join("x").exists(), "nothing is left behind");
}

/// A file in one of a kind's layouts can be written in another, and read in either.
#[test]
fn a_checkpoint_changes_its_layout() {
    let folder = root().join("tests/golden/videomaev2_pretrain");
    let file = folder.join("model.safetensors");
    let out = tempfile::tempdir().unwrap();
    import(&file, &folder, out.path());
    let hf = out.path().join("hf.safetensors");
    convert::export(REGISTRY, out.path(), Some("hf"), &hf).unwrap();
    let keys = held(&hf);
    assert!(keys.contains_key("videomae.encoder.layer.0.attention.attention.query.weight"));
    assert!(keys.contains_key("decoder.decoder_layers.1.output.dense.bias"));
    let again = tempfile::tempdir().unwrap();
    import(&hf, &folder, again.path());
    for name in ["models.videomae_v2.safetensors", "models.videomae_decoder.safetensors"] {
        assert!(held(&out.path().join(name)) == held(&again.path().join(name)), "{name}");
    }
    let error = convert::export(REGISTRY, out.path(), Some("keras"), &hf).unwrap_err();
    assert!(error.to_string().contains("it has official, hf, playhouse"), "{error}");
}
