//! Weight files made by PyTorch and safetensors (`tools/make_archives.py`), read tensor by tensor;
//! and files that are read no further than to an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use modules::archive::{Archive, Declared, Dtype, Format, Plan, narrow, write};
use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/archives").join(name)
}

fn expected() -> BTreeMap<String, BTreeMap<String, Value>> {
    serde_json::from_slice(&std::fs::read(data("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

/// Compares every tensor of an archive, and that there is no other.
fn compare(archive: &Archive, expected: &BTreeMap<String, Value>, name: &str) {
    let keys: Vec<&str> = archive.keys().map(|(key, _)| key).collect();
    assert_eq!(keys, expected.keys().collect::<Vec<_>>(), "{name}");
    let mut bytes = 0;
    for (key, tensor) in expected {
        let info = archive.info(key).unwrap();
        let stored = archive.get(key).unwrap();
        assert_eq!(info.dtype.name(), tensor["dtype"], "{name} {key}");
        let shape: Vec<f64> = info.shape.iter().map(|n| *n as f64).collect();
        assert_eq!(shape, numbers(&tensor["shape"]), "{name} {key}");
        assert_eq!((stored.dtype, stored.shape), (info.dtype, info.shape));
        let values: Vec<f64> = stored.to_f32().into_iter().map(f64::from).collect();
        assert_eq!(values, numbers(&tensor["values"]), "{name} {key}");
        bytes += stored.bytes.len() as u64;
    }
    assert_eq!(bytes, archive.total_bytes(), "{name}");
}

fn message(path: &Path, part: Option<&str>) -> String {
    Archive::open_at(path, part).unwrap_err().to_string()
}

#[test]
fn every_file_gives_the_tensors_that_were_saved() {
    let expected = expected();
    assert!(expected.len() > 20);
    for (name, tensors) in &expected {
        let part = match name.as_str() {
            "training.pt" => Some("model"),
            "averages.pt" => Some(""),
            _ => None,
        };
        let archive = Archive::open_at(&data(name), part).unwrap();
        compare(&archive, tensors, name);
    }
}

#[test]
fn contiguous_tensors_are_borrowed_and_others_are_gathered() {
    for name in ["views.pt", "views_stream.pt"] {
        let archive = Archive::open(&data(name)).unwrap();
        let borrowed = |key: &str| matches!(archive.get(key).unwrap().bytes, Cow::Borrowed(_));
        for key in ["whole", "row", "scalar", "of_whole", "none"] {
            assert!(borrowed(key), "{key}");
        }
        for key in ["turned", "part", "steps", "expanded", "permuted"] {
            assert!(!borrowed(key), "{key}");
        }
        let start = |key: &str| archive.get(key).unwrap().bytes.as_ptr() as usize;
        assert_eq!(start("row") - start("whole"), 2 * 6 * 4, "they share their storage");
    }
}

#[test]
fn the_only_state_dict_is_taken_and_told() {
    let archive = Archive::open(&data("wrapped.pt")).unwrap();
    let metadata = archive.metadata();
    assert_eq!(metadata.format, Format::Torch);
    assert_eq!(metadata.part.as_deref(), Some("state_dict.module"));
    assert_eq!(metadata.notes, ["took the part `state_dict.module`"]);
    assert_eq!(metadata.skipped[0].path, "state_dict.args");
    assert_eq!(metadata.skipped[0].what, "argparse.Namespace");
    let archive = Archive::open_at(&data("wrapped.pt"), Some("")).unwrap();
    assert!(archive.keys().all(|(key, _)| key.starts_with("state_dict.module.")));
    let archive = Archive::open(&data("settings.pt")).unwrap();
    assert_eq!(archive.metadata().skipped[0].what, "__main__.Settings");
    assert_eq!(archive.metadata().skipped[0].tensors, 1);
}

#[test]
fn of_several_state_dicts_one_must_be_chosen() {
    let text = message(&data("averages.pt"), None);
    assert!(text.contains("holds tensors in `model` (7), `model_ema` (7); say which"), "{text}");
    let text = message(&data("training.pt"), None);
    assert!(text.contains("`model` (7), `optimizer` (12)"), "{text}");
    let archive = Archive::open_at(&data("training.pt"), Some("model")).unwrap();
    assert_eq!(archive.metadata().notes, ["left `optimizer` (12)"]);
    assert_eq!(archive.metadata().words["epoch"], "12");
    assert_eq!(archive.metadata().words["accuracy"], "0.5");
    let moments = Archive::open_at(&data("training.pt"), Some("optimizer.state.0")).unwrap();
    let keys: Vec<&str> = moments.keys().map(|(key, _)| key).collect();
    assert_eq!(keys, ["exp_avg", "exp_avg_sq", "step"]);
    let first = Archive::open_at(&data("model.pt"), Some("0")).unwrap();
    let keys: Vec<&str> = first.keys().map(|(key, _)| key).collect();
    assert_eq!(keys, ["bias", "weight"], "the keys of a flat dict are paths as well");
    let text = message(&data("training.pt"), Some("teacher"));
    assert!(text.contains("has no tensors in `teacher`; it has `model` (7)"), "{text}");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    for (file, words) in [
        ("complex.pt", "`c` has dtype ComplexFloat"),
        ("quantised.pt", "`q` is quantised"),
        ("eighth.pt", "`e` has dtype float8_e4m3fn"),
        ("eighth.safetensors", "`e` has dtype F8_E4M3"),
        ("unsigned.pt", "`u` has dtype uint16"),
        ("sparse.pt", "`s` is sparse"),
        ("negated.pt", "`n` is a conjugate or negated view"),
        ("attack.pt", "it would call `posix.system`"),
        ("module.pt", "holds an object of the class `torch.nn.modules.linear.Linear`"),
        ("nameless.pt", "holds one tensor without a name"),
        ("nothing.pt", "holds no tensors"),
        ("fsdp.pt", "shard of one process of FSDP"),
        ("deepspeed.pt", "DeepSpeed ZeRO"),
        ("plain.pkl", "is a pickle that torch.save did not write"),
        ("script.pt", "TorchScript"),
        ("packed.pt", "is compressed or encrypted"),
    ] {
        let text = message(&data("refused").join(file), None);
        assert!(text.contains(words), "{text}");
        assert!(text.contains(file), "{text}");
    }
    assert!(!Path::new("attacked").exists());
    let hidden = Archive::open(&data("refused/hidden.pt")).unwrap();
    assert_eq!(hidden.metadata().skipped[0].what, "math.gcd");
}

#[test]
fn of_a_folder_safetensors_are_taken_and_it_is_told() {
    let archive = Archive::open(&data("both")).unwrap();
    assert_eq!(archive.metadata().notes, ["took model.safetensors"]);
    let index = data("sharded/model.safetensors.index.json");
    let archive = Archive::open(&index).unwrap();
    let info = archive.info("c").unwrap();
    assert!(info.file.ends_with("model-00002-of-00002.safetensors"));
    assert_eq!(info.dtype, Dtype::F16);
    let text = message(&data("refused"), None);
    assert!(text.contains("eighth.safetensors"), "{text}");
    let text = message(&data("sharded_bin/pytorch_model.bin.index.json.no"), None);
    assert!(text.contains("cannot be opened"), "{text}");
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(data("sharded")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused_with_file_and_key() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let full = format!("\"a\":\"{one}\",\"b\":\"{one}\",\"c\":\"{two}\"");
    for (map, words) in [
        (format!("{full},\"d\":\"{two}\""), format!("`d` is not in {two}")),
        (
            format!("{full},\"d\":\"gone.safetensors\""),
            "gone.safetensors, which is missing (`d`)".into(),
        ),
        (format!("{full},\"a\":\"{one}\""), "`a` appears twice".into()),
        (format!("\"a\":\"{one}\",\"c\":\"{two}\""), "holds `b`, which".into()),
        (full.replace("\"c\":\"model-00002", "\"c\":\"../model-00002"), "no file beside it".into()),
        (full.replacen(one, two, 1), format!("`a` is not in {two}")),
        (String::new(), "names no files".into()),
    ] {
        let text = format!("{{\"weight_map\":{{{map}}}}}");
        let folder = folder(&[("model.safetensors.index.json", &text)]);
        let text = message(folder.path(), None);
        assert!(text.contains(&words), "{words}: {text}");
    }
    let folder = folder(&[]);
    std::fs::copy(folder.path().join(one), folder.path().join(two)).unwrap();
    let text = message(folder.path(), None);
    assert!(text.contains("`a` is in") && text.contains(one), "{text}");
}

#[test]
fn pipes_empty_files_and_folders_without_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(folder.path(), None).contains("holds no .safetensors"));
    let pipe = folder.path().join("pipe.safetensors");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero byte.
    #[expect(unsafe_code, reason = "the standard library makes no pipes")]
    let made = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
    assert_eq!(made, 0);
    assert!(message(&pipe, None).contains("is not a file"));
    let empty = folder.path().join("empty.pt");
    std::fs::write(&empty, "").unwrap();
    assert!(message(&empty, None).contains("is empty"));
    std::fs::write(folder.path().join("a.distcp"), "").unwrap();
    assert!(message(folder.path(), None).contains("distributed checkpoint"));
}

fn plan(archive: &Archive) -> Plan {
    let declared = archive.keys().map(|(key, info)| Declared {
        key: key.to_owned(),
        dtype: info.dtype,
        shape: info.shape.to_vec(),
    });
    Plan::new(declared.collect(), BTreeMap::from([("made".into(), "here".into())])).unwrap()
}

#[test]
fn what_is_written_whole_or_in_shards_is_read_back() {
    for name in ["types.pt", "views.pt", "model.pt", "types.safetensors"] {
        let archive = Archive::open(&data(name)).unwrap();
        let plan = plan(&archive);
        let each = || {
            plan.tensors().iter().map(|tensor| {
                let stored = archive.get(&tensor.key)?;
                Ok((tensor.key.clone(), stored.bytes))
            })
        };
        for limit in [None, Some(64), Some(1)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            for _ in 0..2 {
                let written = write(&path, &plan, each(), limit).unwrap();
                assert_eq!(written.files.len() > 1, limit.is_some());
                assert_eq!(written.bytes, archive.total_bytes());
                let copy = Archive::open(&written.path).unwrap();
                compare(&copy, &expected()[name], name);
                assert_eq!(copy.metadata().words["made"], "here");
                compare(&Archive::open(folder.path()).unwrap(), &expected()[name], name);
            }
            let hidden = std::fs::read_dir(folder.path()).unwrap().filter(|file| {
                file.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')
            });
            assert_eq!(hidden.count(), 0, "nothing is left over");
        }
    }
}

#[test]
fn a_writer_that_is_given_something_else_leaves_no_file() {
    let declare = |key: &str| Declared { key: key.into(), dtype: Dtype::F32, shape: vec![2] };
    let plan = Plan::new(vec![declare("b"), declare("a")], BTreeMap::new()).unwrap();
    let keys: Vec<&str> = plan.tensors().iter().map(|tensor| tensor.key.as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
    let bytes = narrow(Dtype::F32, &[1.0, 2.0]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for (given, words) in [
        (vec![("b", 8)], "is given `b` where `a` follows"),
        (vec![("a", 4)], "`a` has 4 bytes, 8 were declared"),
        (vec![("a", 8)], "is given no `b`"),
        (vec![("a", 8), ("b", 8), ("c", 8)], "more tensors than were declared"),
    ] {
        let given = given.into_iter();
        let tensors = given.map(|(key, n)| Ok((key.to_owned(), Cow::Borrowed(&bytes[..n]))));
        let text = write(&path, &plan, tensors, None).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    assert!(Plan::new(vec![declare("a"), declare("a")], BTreeMap::new()).is_err());
    let wide = Declared { key: "w".into(), dtype: Dtype::F32, shape: vec![usize::MAX, 2] };
    assert!(Plan::new(vec![wide], BTreeMap::new()).is_err());
}

/// Prints how fast the tensors of a gigabyte of half floats become f32, one after another:
/// `cargo nextest run --release --workspace --run-ignored only -E 'test(widening)' --no-capture`.
#[test]
#[ignore = "writes a gigabyte and prints a rate"]
fn widening_a_gigabyte() {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        widen_a_gigabyte(dtype);
    }
}

#[expect(clippy::disallowed_methods, reason = "measures")]
fn widen_a_gigabyte(dtype: Dtype) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let declare = |at: usize| Declared {
        key: format!("blocks.{at:02}.weight"),
        dtype,
        shape: vec![2048, 4096],
    };
    let plan = Plan::new((0..64).map(declare).collect(), BTreeMap::new()).unwrap();
    let values: Vec<f32> = (0..2048 * 4096).map(|at| (at % 1000) as f32).collect();
    let bytes = narrow(dtype, &values).unwrap();
    let each = plan.tensors().iter().map(|tensor| Ok((tensor.key.clone(), Cow::from(&bytes))));
    write(&path, &plan, each, None).unwrap();
    for round in 0..3 {
        let archive = Archive::open(&path).unwrap();
        let (start, mut sum, mut out) = (std::time::Instant::now(), 0.0, Vec::new());
        for (key, _) in archive.keys() {
            archive.get(key).unwrap().f32_into(&mut out);
            sum += f64::from(out[out.len() - 1]);
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = archive.total_bytes() as f64 / seconds / 1e9;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let memory = status.lines().find(|line| line.starts_with("RssAnon")).unwrap_or_default();
        eprintln!("round {round}: {rate:.2} GB/s of {dtype}, {memory} (sum {sum})");
    }
}
