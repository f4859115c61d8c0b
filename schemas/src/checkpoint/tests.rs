//! What is written comes back, and what was changed since is not taken.

use super::*;

fn part() -> Part {
    let mut part = Part::default();
    part.tensors.insert("w".into(), Frame::f32([2, 2], [1.0, 2.0, 3.0, 4.0]));
    part.words.insert("steps".into(), "3".into());
    part
}

fn write(folder: &Path, step: u64) -> Manifest {
    let aside = aside(folder, "s", step, 0);
    let entry = write_part(&aside, "n", &part()).unwrap();
    let manifest = Manifest {
        format: FORMAT,
        stage: "s".into(),
        step,
        graph: "g".into(),
        metrics_bytes: 0,
        version: "0".into(),
        parts: BTreeMap::from([("n".into(), entry)]),
    };
    commit(folder, &aside, &manifest).unwrap();
    manifest
}

#[test]
fn what_is_committed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write(folder.path(), 5);
    let (found, path) = list(folder.path()).pop().unwrap();
    assert_eq!(found, manifest);
    let back = read_part(&path, &found.parts["n"]).unwrap();
    assert_eq!(back.tensors["w"].to_f32(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(back.words["steps"], "3");
}

#[test]
fn a_part_without_tensors_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut part = Part::default();
    for words in [BTreeMap::new(), BTreeMap::from([("cursor".to_owned(), "7".to_owned())])] {
        part.words = words;
        let entry = write_part(folder.path(), "n", &part).unwrap();
        let back = read_part(folder.path(), &entry).unwrap();
        assert!(back.tensors.is_empty());
        assert_eq!(back.words, part.words);
    }
}

#[test]
fn what_is_not_committed_does_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    write_part(&aside(folder.path(), "s", 1, 0), "n", &part()).unwrap();
    assert!(list(folder.path()).is_empty());
    sweep(folder.path()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_checkpoint_may_be_replaced_and_a_broken_manifest_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 5);
    let (_, path) = list(folder.path()).pop().unwrap();
    fs::write(path.join("manifest.json"), "{").unwrap();
    assert!(list(folder.path()).is_empty());
    assert!(broken(folder.path())[0].to_string().contains("s-00000005/manifest.json"));
    write(folder.path(), 5);
    assert_eq!(list(folder.path()).len(), 1);
}

/// Changes the manifest of the only checkpoint; gives why it is none any more.
fn after(folder: &Path, change: impl Fn(&str) -> String) -> String {
    write(folder, 5);
    let path = folder.join("s-00000005").join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text);
    fs::write(&path, changed).unwrap();
    assert!(list(folder).is_empty());
    broken(folder).pop().unwrap().to_string()
}

#[test]
fn a_manifest_that_was_changed_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    type Change = fn(&str) -> String;
    let changes: [Change; 3] = [
        |text| text.replace("\"step\": 5", "\"step\": 4"),
        |text| text.replace("\"metrics_bytes\": 0", "\"metrics_bytes\": 1"),
        |text| {
            let mut manifest: Manifest = serde_json::from_str(text).unwrap();
            manifest.parts.clear();
            serde_json::to_string_pretty(&manifest).unwrap()
        },
    ];
    for change in changes {
        let error = after(folder.path(), change);
        assert!(error.contains("s-00000005/manifest.json: has another checksum"), "{error}");
    }
}

#[test]
fn a_manifest_without_checksum_or_in_the_folder_of_another_step_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 5);
    let (there, elsewhere) = (folder.path().join("s-00000005"), folder.path().join("s-00000009"));
    fs::rename(&there, &elsewhere).unwrap();
    assert!(list(folder.path()).is_empty());
    let error = broken(folder.path())[0].to_string();
    assert!(error.contains("s-00000009/manifest.json: belongs to `s-00000005`"), "{error}");
    fs::rename(&elsewhere, &there).unwrap();
    assert_eq!(list(folder.path()).len(), 1);
    fs::remove_file(there.join(CHECKSUM)).unwrap();
    assert!(list(folder.path()).is_empty());
    let error = broken(folder.path())[0].to_string();
    assert!(error.contains("cannot read") && error.contains("manifest.sha256"), "{error}");
}

#[test]
fn other_folders_are_no_broken_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("notes")).unwrap();
    fs::write(folder.path().join("s-00000005"), "a file").unwrap();
    assert!(broken(folder.path()).is_empty());
    fs::create_dir(folder.path().join("s-00000006")).unwrap();
    assert_eq!(broken(folder.path()).len(), 1);
}

#[test]
fn a_changed_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 5);
    let (manifest, path) = list(folder.path()).pop().unwrap();
    let file = path.join("n.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = read_part(&path, &manifest.parts["n"]).unwrap_err();
    assert!(error.to_string().contains("another checksum"), "{error}");
}

#[test]
fn only_the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for step in [1, 20, 3] {
        write(folder.path(), step);
    }
    prune(folder.path(), 2, &BTreeSet::new()).unwrap();
    let steps: Vec<u64> = list(folder.path()).iter().map(|(m, _)| m.step).collect();
    assert_eq!(steps, [3, 20]);
    prune(folder.path(), 0, &BTreeSet::from([3])).unwrap();
    let steps: Vec<u64> = list(folder.path()).iter().map(|(m, _)| m.step).collect();
    assert_eq!(steps, [3, 20], "a checkpoint between two stages stays");
}
