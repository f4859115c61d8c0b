//! Every file of `broken/` has something wrong with it; its snapshot is all that `playhouse check`
//! says. A line `#   playhouse check FILE --set …` in the file gives more arguments.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use tests::command::{Ran, playhouse};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("broken")
}

fn files() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the folder").map(|entry| entry.unwrap().path());
    let yaml = entries.filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    let mut names: Vec<String> =
        yaml.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs `playhouse check` in a copy of the folder, where the weights files are too.
fn check(folder: &Path, file: &str) -> Ran {
    let text = fs::read_to_string(folder.join(file)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("#   playhouse check "));
    let mut arguments = vec!["check", file];
    arguments.extend(line.into_iter().flat_map(|line| line.split(' ').skip(1)));
    let mut ran = playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder, &arguments);
    // Builds with more features have more devices.
    ran.err = ran.err.replace("`flex`, `tch`, `tch:cuda:N`", "`flex`");
    ran
}

fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files() {
        fs::copy(folder().join(&file), copy.path().join(&file)).unwrap();
    }
    fs::create_dir(copy.path().join("weights")).unwrap();
    let save = |name: &str, tensors: &[(&str, &[usize])]| {
        let bytes = vec![0; 4096];
        let view = |shape: &[usize]| {
            let size = 4 * shape.iter().product::<usize>();
            TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..size]).unwrap()
        };
        let views: BTreeMap<_, _> =
            tensors.iter().map(|(key, shape)| (*key, view(shape))).collect();
        let file = copy.path().join("weights").join(name);
        safetensors::serialize_to_file(views, None, &file).unwrap();
    };
    let norm: [(&str, &[usize]); 2] = [("fc_norm.weight", &[96]), ("fc_norm.bias", &[96])];
    let [weight, bias] = norm;
    save("shapes.safetensors", &[weight, bias, ("head.weight", &[4, 96]), ("head.bias", &[4])]);
    save("keys.safetensors", &[weight, bias, ("fc.weight", &[8, 96]), ("fc.bias", &[8])]);
    let adapters = |name: &str, target: &str, tensors: &[(&str, &[usize])]| {
        let folder = copy.path().join("weights").join(name);
        fs::create_dir(&folder).unwrap();
        let words = format!(
            r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["{target}"]}}"#
        );
        fs::write(folder.join("adapter_config.json"), words).unwrap();
        save(&format!("{name}/adapter_model.safetensors"), tensors);
    };
    let (a, b) = ("base_model.model.head.lora_A.weight", "base_model.model.head.lora_B.weight");
    let [left, right]: [(&str, &[usize]); 2] = [(a, &[4, 96]), (b, &[8, 4])];
    adapters("good", "head", &[left, right]);
    adapters("target", "q_proj", &[left, right]);
    adapters("shape", "head", &[(a, &[2, 96]), right]);
    adapters("more", "head", &[left, right, ("base_model.model.tail.lora_A.weight", &[4, 96])]);
    copy
}

#[test]
fn every_message_of_check_is_as_agreed() {
    let copy = copy();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("../broken/messages");
    for file in files() {
        let ran = check(copy.path(), &file);
        let name = file.trim_end_matches(".yaml").to_owned();
        settings.bind(|| insta::assert_snapshot!(name, ran.shown()));
    }
}

#[test]
fn every_problem_has_a_place_and_says_what_to_write() {
    let copy = copy();
    for file in files() {
        let ran = check(copy.path(), &file);
        assert_eq!(ran.code, 1, "{file}: {}", ran.shown());
        let problems: Vec<&str> = ran.err.split("error[").skip(1).collect();
        assert!(!problems.is_empty(), "{file}: {}", ran.shown());
        for problem in problems {
            let lines: Vec<&str> = problem.lines().collect();
            let place = lines[1].strip_prefix("  --> ").expect(problem);
            let placed = place.starts_with(&format!("{file}:")) || place.starts_with("--set ");
            assert!(placed, "{file}: {problem}");
            assert!(lines[2].starts_with("  hint: "), "{file}: {problem}");
        }
    }
}

#[test]
fn problems_are_in_the_order_of_the_file() {
    let copy = copy();
    let ran = check(copy.path(), "many.yaml");
    let places = ran.err.lines().filter_map(|line| line.strip_prefix("  --> many.yaml:"));
    let lines: Vec<usize> =
        places.map(|place| place.split(':').next().unwrap().parse().unwrap()).collect();
    assert!(lines.len() >= 12, "{}", ran.shown());
    assert!(lines.is_sorted(), "{}", ran.shown());
}
