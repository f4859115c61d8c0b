//! Every experiment that is meant for a laptop runs: two steps of each stage, with small batches,
//! on a few clips.

use std::fs;
use std::path::{Path, PathBuf};

use experiments::read::{self, Overrides};
use schemas::diagnostic::Report;
use schemas::layers::{self, Layer};
use tests::command::{experiments, overlays, playhouse, root};

/// A folder with a small `data/shapes`, made with the options that the experiment's header names.
fn data(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let command = text.split('`').find_map(|code| code.strip_prefix("playhouse data shapes "));
    let words = command.unwrap_or("data/shapes").split_whitespace();
    let few = ["--train", "16", "--test", "16", "--untrimmed", "0"];
    let arguments: Vec<&str> = ["data", "shapes"].into_iter().chain(words).chain(few).collect();
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder.path(), &arguments).done();
    folder
}

/// `--set` arguments that make an experiment under an overlay small.
fn small(file: &Path, overlay: Option<&Path>) -> Vec<String> {
    let layer = |file: &Path| Layer::File {
        name: file.display().to_string(),
        text: fs::read_to_string(file).unwrap(),
    };
    let files: Vec<Layer> = [Some(file), overlay].into_iter().flatten().map(layer).collect();
    let tree = layers::merge(&files, &mut Report::default()).unwrap();
    let mut set = Vec::new();
    for (name, node) in tree.get("graph").unwrap().entries() {
        if node.get("kind").and_then(|kind| kind.text()).is_some_and(|k| k.starts_with("data/")) {
            set.push(format!("graph.{name}.batch=2"));
        }
        // Weights that another experiment makes are not in the repository.
        let weights = node.get("weights").and_then(|weights| weights.text());
        if weights.is_some_and(|weights| !file.with_file_name(weights).exists()) {
            set.push(format!("graph.{name}.weights=null"));
        }
    }
    for (index, stage) in tree.get("curriculum").unwrap().items().iter().enumerate() {
        set.push(format!("curriculum.{index}.steps=2"));
        for (path, _) in stage.get("with").map_or(&[][..], |with| with.entries()) {
            if path.ends_with(".batch") {
                set.push(format!("curriculum.{index}.with.{path}=2"));
            }
        }
    }
    set
}

fn read_text(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

/// Experiments for a laptop, and stage 1 under each overlay that changes what is trained.
fn laptop() -> Vec<(PathBuf, Option<PathBuf>)> {
    let plain = experiments().into_iter().map(|file| (file, None));
    let plain = plain.filter(|(file, _)| !read_text(file).contains("Not for a laptop"));
    let stage1 = PathBuf::from("experiments/internvideo2/stage1.yaml");
    let overlays = overlays().into_iter().filter(|file| read_text(file).contains("\ncurriculum:"));
    plain.chain(overlays.map(|file| (stage1.clone(), Some(file)))).collect()
}

#[test]
fn every_laptop_experiment_runs_two_steps_of_each_stage() {
    let files = laptop();
    assert!(files.len() >= 3, "{files:?}");
    for (file, overlay) in files {
        let path = root().join(&file);
        let data = data(&read_text(&file));
        let out = overlay.as_ref().unwrap_or(&file).file_stem().unwrap().to_str().unwrap();
        let with: Vec<PathBuf> = overlay.iter().map(|file| root().join(file)).collect();
        let set = small(&path, with.first().map(PathBuf::as_path));
        let mut arguments = vec!["run", path.to_str().unwrap(), "--out", out];
        arguments.extend(with.iter().flat_map(|file| ["--with", file.to_str().unwrap()]));
        arguments.extend(set.iter().flat_map(|value| ["--set", value.as_str()]));
        let ran = playhouse(env!("CARGO_BIN_EXE_playhouse-test"), data.path(), &arguments);
        assert_eq!(ran.code, 0, "{}: {}", file.display(), ran.shown());
        let overrides = Overrides { with, set };
        let checked = read::experiment(&path, &overrides).unwrap().unwrap();
        let metrics = fs::read_to_string(data.path().join(out).join("metrics.csv")).unwrap();
        for (index, stage) in checked.graph.stages.iter().enumerate() {
            for loss in stage.losses.keys() {
                // A loss of one medium counts in its steps only.
                let mut steps = (stage.first_step..stage.first_step + 2).rev();
                let Some(last) = steps.find(|step| stage.weight(loss, *step).is_some()) else {
                    continue;
                };
                assert_eq!(stage.first_step, 2 * index as u64);
                let row = format!("{},{last},{},{},", stage.name, loss.node, loss.port);
                let value = metrics.lines().find_map(|line| line.strip_prefix(&row));
                let value: f64 =
                    value.unwrap_or_else(|| panic!("{row} in {metrics}")).parse().unwrap();
                assert!(value.is_finite(), "{}: {row}{value}", file.display());
            }
        }
    }
}

#[test]
fn every_experiment_says_what_it_asks_costs_and_expects() {
    let overlays = overlays().into_iter().filter(|file| read_text(file).contains("\nquestion: "));
    for file in experiments().into_iter().chain(overlays) {
        let text = read_text(&file);
        let header: Vec<&str> = text
            .lines()
            .take_while(|line| line.starts_with("# ") || line.starts_with("#  "))
            .collect();
        let shown = file.display();
        assert!(header.len() >= 3, "{shown}: begin with question, cost and expected result");
        assert!(header[0].ends_with('?'), "{shown}: the first line is a question");
        assert!(text.to_lowercase().contains("expect"), "{shown}: say what to expect");
        assert!(header.iter().any(|line| line.contains("playhouse ")), "{shown}: name the command");
        assert!(text.contains("\nquestion: "), "{shown}");
    }
}
