//! What the book says works: its commands run, its experiments check, its links lead somewhere,
//! and the files of `how_to/` are compiled and train.

use std::fs;
use std::path::{Path, PathBuf};

use schemas::entry::{Against, Entry};
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeSpec, Update};
use serde_json::{Value, json};
use tests::command::{files, playhouse, root};
use tests::examples::{gated_mean, gratings, huber, text};

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs/src").join(name)).unwrap()
}

/// Blocks of a page between fences of a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let parts = page.split(&fence).skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

fn pages() -> Vec<(PathBuf, String)> {
    let pages = files("docs/src", "md").into_iter().chain([PathBuf::from("README.md")]);
    pages.map(|file| (file.clone(), fs::read_to_string(root().join(file)).unwrap())).collect()
}

#[test]
fn quick_commands_of_the_book_work() {
    const QUICK: [&str; 6] = ["check", "plan", "graph", "explain", "list", "schema"];
    let mut ran = 0;
    for (file, page) in pages() {
        for line in blocks(&page, "sh").iter().flat_map(|block| block.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [program, command, ..] = words.as_slice() else { continue };
            if *program != "playhouse" || !QUICK.contains(command) {
                continue;
            }
            let done = playhouse(env!("CARGO_BIN_EXE_playhouse-test"), &root(), &words[1..]);
            assert_eq!(done.code, 0, "{}: {line}\n{}", file.display(), done.shown());
            ran += 1;
        }
    }
    assert!(ran >= 10, "only {ran} commands were found");
}

#[test]
fn the_reference_of_kinds_is_that_of_this_program() {
    let program = env!("CARGO_BIN_EXE_playhouse-test");
    let printed = playhouse(program, &root(), &["explain", "--all"]).done();
    let how = "run `playhouse explain --all > docs/src/reference.md`";
    assert!(page("reference.md") == printed, "docs/src/reference.md is out of date; {how}");
}

#[test]
fn the_first_run_by_hand_is_the_demo() {
    let demo = fs::read_to_string(root().join("tools/demo.sh")).unwrap();
    let line = demo.lines().find_map(|line| line.strip_prefix("\"$playhouse\" data "));
    let by_hand = format!("playhouse data {}\n", line.expect("the demo makes data"));
    assert!(page("first_run.md").contains(&by_hand), "docs/src/first_run.md: {by_hand}");
}

#[test]
fn every_command_of_the_book_exists() {
    let help = playhouse(env!("CARGO_BIN_EXE_playhouse-test"), &root(), &["--help"]).done();
    let known: Vec<&str> = help.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for (file, page) in pages() {
        for line in blocks(&page, "sh").iter().flat_map(|block| block.lines()) {
            let Some(rest) = line.strip_prefix("playhouse ") else { continue };
            let command = rest.split_whitespace().next().unwrap();
            assert!(known.contains(&command), "{}: {line}", file.display());
        }
    }
}

#[test]
fn whole_experiments_of_the_book_check() {
    let folder = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for (file, page) in pages() {
        for block in blocks(&page, "yaml") {
            if !block.contains("graph:\n") || !block.contains("curriculum:\n") {
                continue;
            }
            // Weights that a page only names are not there.
            let text = block.replace(", weights: semantic.safetensors", "");
            fs::write(folder.path().join("page.yaml"), text).unwrap();
            let ran = playhouse(
                env!("CARGO_BIN_EXE_playhouse-test"),
                folder.path(),
                &["check", "page.yaml"],
            );
            assert_eq!(ran.code, 0, "{}: {}", file.display(), ran.shown());
            checked += 1;
        }
    }
    assert!(checked >= 2);
}

#[test]
fn links_lead_somewhere() {
    let summary = page("SUMMARY.md");
    for (file, page) in pages() {
        let folder = root().join(file.parent().unwrap());
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            let outside = link.contains("://") || path.is_empty();
            assert!(outside || folder.join(path).exists(), "{}: {link}", file.display());
        }
        let Ok(inside) = file.strip_prefix("docs/src") else { continue };
        let listed = summary.contains(&format!("({})", inside.display()));
        assert!(
            listed || inside == Path::new("SUMMARY.md"),
            "{} is not in SUMMARY.md",
            inside.display()
        );
    }
}

#[test]
fn files_of_the_how_to_pages_are_the_compiled_ones() {
    for (page_name, example) in [
        ("how_to/add_a_module.md", "gated_mean"),
        ("how_to/add_a_loss.md", "huber"),
        ("how_to/add_a_dataset.md", "gratings"),
        ("text.md", "text"),
    ] {
        let source = fs::read_to_string(root().join(format!("tests/src/examples/{example}.rs")));
        let same = blocks(&page(page_name), "rust") == [source.unwrap()];
        assert!(same, "the block of {page_name} must be tests/src/examples/{example}.rs");
    }
}

/// A node of an example, as the graph makes it.
fn make(entry: &Entry, options: Value, dims: Value, ports: [&[&str]; 2]) -> Box<dyn Node> {
    let options = (entry.resolve)(&options).unwrap();
    let [wired, wants] = ports;
    let spec = json!({
        "name": "example", "kind": "example", "options": options, "dims": dims, "wired": wired,
        "wants": wants, "backward": !wants.is_empty(), "frozen": [], "seed": 1, "device": "flex",
        "optimizer": (!wants.is_empty()).then_some(json!({ "lr": 0.1 })), "precision": "f32",
        "checkpointing": false, "weights": null, "ema": null,
    });
    let spec: NodeSpec = serde_json::from_value(spec).unwrap();
    (entry.build)(&spec).unwrap()
}

fn tokens(shift: f32) -> Frame {
    Frame::f32([2, 3, 4], (0..24).map(|i| (0.7 * i as f32 + shift).sin()))
}

#[test]
fn the_loss_of_the_book_has_the_gradient_of_its_value() {
    let dims = json!({ "B": 2, "N": 3, "D": 4 });
    let wired = ["predicted", "target"];
    let mut node = make(&huber::ENTRY, json!({ "delta": 0.5 }), dims, [&wired, &["predicted"]]);
    let mut loss = |predicted: Frame, at: u64| {
        let inputs = [("predicted", predicted), ("target", tokens(1.0))];
        let inputs = Frames::from(inputs.map(|(name, frame)| (name.to_owned(), frame)));
        let at = At { step: at, ..At::default() };
        let given = node.forward(at, inputs).unwrap();
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = node.backward(at, one).unwrap();
        assert!(!back.contains_key("target"), "the target stops gradients");
        (given.frames["loss"].to_f32()[0], back["predicted"].to_f32())
    };
    let (_, gradient) = loss(tokens(0.0), 0);
    let values = tokens(0.0).to_f32();
    for index in [0, 5, 23] {
        let mut moved = |by: f32| {
            let mut values = values.clone();
            values[index] += by;
            loss(Frame::f32([2, 3, 4], values), 1).0
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        // Central differences in f32 of a piecewise quadratic function.
        assert!((gradient[index] - slope).abs() < 2e-4, "{index}: {} {slope}", gradient[index]);
    }
}

#[test]
fn the_module_of_the_book_trains_as_a_node() {
    let entry = gated_mean::ENTRY;
    let ports = (entry.ports)(&(entry.resolve)(&json!({})).unwrap(), &["tokens".to_owned()]);
    assert_eq!(ports.find_output("pooled").unwrap().dims, "B D");
    let wrong = (entry.check)(&json!({ "temperature": 0.0 }), &schemas::dims::Dims::new());
    assert_eq!(wrong[0].option, "temperature");
    let dims = json!({ "B": 2, "N": 3, "D": 4 });
    let mut node = make(&entry, json!({}), dims, [&["tokens"], &["tokens"]]);
    let inputs = || Frames::from([("tokens".to_owned(), tokens(0.0))]);
    let at = At::default();
    let before = node.forward(at, inputs()).unwrap().frames["pooled"].clone();
    assert_eq!(before.shape(), [2, 4]);
    let up =
        vec![("pooled".to_owned(), Frame::f32([2, 4], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]))];
    let back = node.backward(at, up).unwrap();
    assert_eq!(back["tokens"].shape(), [2, 3, 4]);
    assert!(node.squared_norm().unwrap() > 0.0, "the gate has a gradient");
    node.update(&Update { step: 0, lr: 0.1, scale: 1.0 }).unwrap();
    let at = At { step: 1, ..at };
    let after = node.forward(at, inputs()).unwrap().frames["pooled"].to_f32();
    let moved = |i: usize| before.to_f32()[i] - after[i];
    assert!(moved(0) + moved(4) > 0.0, "a step goes down: {}", moved(0) + moved(4));
}

#[test]
fn the_module_that_was_brought_meets_the_references_of_its_script() {
    let folder = root().join("tests/conform/gated_mean");
    let against = Against { folder: folder.clone(), ..Against::default() };
    let script = fs::read_to_string(folder.join("references.py")).unwrap();
    assert!(blocks(&page("how_to/bring_your_own.md"), "python") == [script], "the script");
    let entry = gated_mean::ENTRY;
    let spec = NodeSpec::alone("models/gated_mean", json!({}), schemas::dims::Dims::new());
    let found = (entry.conform)(&spec, &against).unwrap();
    assert!(found.left.is_empty(), "{:?}", found.left);
    let names: Vec<&str> = found.compared.iter().map(|one| one.name.as_str()).collect();
    let gate = ["grad_param.gate.bias", "grad_param.gate.weight"];
    assert_eq!(names, ["pooled", "grad_input.tokens", gate[0], gate[1]]);
    for one in &found.compared {
        assert!(one.share < 1.0, "{one:?}");
    }
    // Another temperature is another function.
    let options = json!({ "temperature": 1.0 });
    let spec = NodeSpec::alone("models/gated_mean", options, schemas::dims::Dims::new());
    let found = (entry.conform)(&spec, &against).unwrap();
    assert!(found.compared[0].share > 100.0, "{:?}", found.compared);
}

#[test]
fn the_data_set_of_the_book_gives_equal_frames_for_equal_steps() {
    let options = json!({ "batch": 2, "frames": 4, "size": 8 });
    let ports = (gratings::ENTRY.ports)(&(gratings::ENTRY.resolve)(&options).unwrap(), &[]);
    assert!(ports.inputs.is_empty() && ports.find_output("direction").is_some());
    let mut node = make(&gratings::ENTRY, options, json!({}), [&[], &[]]);
    let mut step = |step| {
        let at = At { step, ..At::default() };
        node.forward(at, Frames::new()).unwrap().frames
    };
    let (first, second, again) = (step(0), step(1), step(0));
    assert_eq!(first["video"].shape(), [2, 3, 4, 8, 8]);
    assert_eq!(first["video"].bytes(), again["video"].bytes());
    assert_ne!(first["video"].bytes(), second["video"].bytes());
    assert!(first["direction"].to_i64().iter().all(|direction| (0..4).contains(direction)));
}

#[test]
fn the_text_of_the_book_becomes_ids_and_text_again() {
    let golden = root().join("tests/golden");
    let said = ["A man is riding a bicycle.", "Two dogs, playing!"];
    let (batch, corrupted) = text::captions(&golden.join("tokenizer_wordpiece"), &said).unwrap();
    assert_eq!(batch.shape, [2, 32]);
    assert!(corrupted.ids.contains(&4) && corrupted.labels.iter().any(|&label| label > 4));
    let folder = golden.join("tokenizer_llama_bpe");
    let dialogue = text::dialogue(&folder, "What happens?", "A dog runs.").unwrap();
    let labels: Vec<i64> = dialogue.labels.into_iter().filter(|&label| label >= 0).collect();
    let tokenizer = modules::tokenizer::Tokenizer::open(&folder).unwrap();
    assert_eq!(text::answer(&tokenizer, &labels).unwrap(), "A dog runs.");
    assert_eq!(labels.last().copied(), tokenizer.id("</s>"));
}
