//! Published checkpoints: into our own paths and back, whatever their layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use modules::REGISTRY;
use modules::archive::{Archive, Dtype};
use modules::weights::convert::{self, Imported};
use tests::command::root;

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
    let mut covered = Vec::new();
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
        if imported.rest.is_empty() {
            covered.push(folder.file_name().unwrap().to_string_lossy().into_owned());
        } else {
            println!("{}: {:?}", folder.display(), imported.rest);
        }
    }
    for name in ["internvideo2_pretrain", "videomaev2_pretrain", "mar_diffloss"] {
        assert!(covered.iter().any(|other| other == name), "{name} belongs to kinds: {covered:?}");
    }
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
