//! What the command line prints, and its exit codes: 0 done, 1 the work failed, 2 usage or
//! unreadable input.

use std::fs;
use std::path::Path;

use tests::command::{Ran, experiments, overlays, playhouse, root};

fn run(arguments: &[&str]) -> Ran {
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), &root(), arguments)
}

fn run_in(folder: &Path, arguments: &[&str]) -> Ran {
    playhouse(env!("CARGO_BIN_EXE_playhouse-test"), folder, arguments)
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("snapshots/cli");
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// The experiment that `playhouse new` writes, which changes rarely.
const SMALLEST: &str = "experiments/templates/smallest.yaml";

#[test]
fn list_names_every_kind_and_observer() {
    snapshot("list", &run(&["list"]).done());
}

#[test]
fn explain_shows_ports_and_options() {
    snapshot("explain_internvideo2", &run(&["explain", "models/internvideo2"]).done());
    snapshot("explain_video_clips", &run(&["explain", "data/video_clips"]).done());
    snapshot("explain_observer", &run(&["explain", "observers/stop_on_nan"]).done());
}

#[test]
fn explain_of_an_unknown_kind_names_the_nearest() {
    snapshot("explain_unknown", &run(&["explain", "models/internvideo3"]).shown());
}

#[test]
fn every_kind_can_be_explained() {
    for (kind, about, _) in modules::REGISTRY {
        let text = run(&["explain", kind]).done();
        assert!(text.contains(about), "{kind}");
        assert!(text.contains("ports"), "{kind}: {text}");
    }
}

#[test]
fn graph_shows_dims_and_gradients() {
    snapshot("graph", &run(&["graph", SMALLEST]).done());
    snapshot("graph_dot", &run(&["graph", SMALLEST, "--dot"]).done());
}

#[test]
fn plan_shows_parameters_memory_and_traffic() {
    snapshot("plan", &run(&["plan", SMALLEST]).done());
    let plan: serde_json::Value =
        serde_json::from_str(&run(&["plan", SMALLEST, "--json"]).done()).unwrap();
    let nodes = plan[0]["nodes"].as_array().unwrap();
    let encoder = nodes.iter().find(|node| node["name"] == "encoder").unwrap();
    assert_eq!(encoder["kind"], "models/videomae_v2");
    assert!(encoder["parameters"].as_u64().unwrap() > 100_000, "{encoder}");
}

#[test]
fn plan_of_the_large_sizes_gives_the_published_parameters() {
    for (file, published) in [("stage1_1b", "1.0"), ("stage1_6b", "5.9")] {
        let file = format!("experiments/internvideo2/{file}.yaml");
        run(&["check", &file]).done();
        let plan: serde_json::Value =
            serde_json::from_str(&run(&["plan", &file, "--json"]).done()).unwrap();
        let nodes = plan[0]["nodes"].as_array().unwrap();
        let student = nodes.iter().find(|node| node["name"] == "student").unwrap();
        let billions = student["parameters"].as_u64().unwrap() as f64 / 1e9;
        assert_eq!(format!("{billions:.1}"), published, "{file}");
    }
}

#[test]
fn new_writes_a_file_that_checks_and_runs_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| run_in(folder.path(), arguments);
    snapshot("new", &run(&["new", "my/first.yaml"]).shown());
    snapshot("new_again", &run(&["new", "my/first.yaml"]).shown());
    snapshot("new_check", &run(&["check", "my/first.yaml"]).shown());
    let small = [
        "graph.clips.batch=2",
        "graph.clips.frames=2",
        "graph.clips.size=16",
        "graph.encoder.size.depth=1",
        "curriculum.0.steps=2",
    ];
    let mut arguments = vec!["run", "my/first.yaml", "--out", "run"];
    arguments.extend(small.iter().flat_map(|value| ["--set", value]));
    let ran = run(&arguments);
    assert_eq!(ran.code, 0, "{}", ran.shown());
    let metrics = fs::read_to_string(folder.path().join("run/metrics.csv")).unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("learn,1,")), "{metrics}");
    let again = run(&["run", "my/first.yaml", "--out", "run"]);
    snapshot("run_again", &again.shown());
    run(&["status", "run", "--json"]).done();
}

#[test]
fn every_experiment_checks() {
    let files = experiments();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let ran = run(&["check", file.to_str().unwrap()]);
        // Weights that another experiment makes are not in the repository.
        let problems = ran.err.matches("error[").count();
        let absent = ran.err.matches("No such file").count();
        assert!(ran.code == 0 || problems == absent, "{}", ran.shown());
    }
}

#[test]
fn overlays_check_over_their_experiment() {
    let overlays = overlays();
    assert!(overlays.len() >= 3, "{overlays:?}");
    for overlay in overlays {
        let overlay = overlay.to_str().unwrap();
        run(&["check", "experiments/internvideo2/stage1.yaml", "--with", overlay]).done();
    }
}

#[test]
fn usage_errors_and_unreadable_files_exit_with_2() {
    snapshot("usage", &run(&["chek", "a.yaml"]).shown());
    snapshot("usage_nothing", &run(&["check"]).shown());
    snapshot("unreadable", &run(&["check", "absent.yaml"]).shown());
    snapshot("unreadable_overlay", &run(&["plan", SMALLEST, "--with", "absent.yaml"]).shown());
    snapshot("not_a_run", &run(&["resume", "absent"]).shown());
    for arguments in [&["chek"][..], &["check"], &["check", "absent.yaml"], &["status", "absent"]] {
        assert_eq!(run(arguments).code, 2, "{arguments:?}");
    }
}

#[test]
fn problems_exit_with_1_and_help_with_0() {
    assert_eq!(run(&["check", "tests/broken/many.yaml"]).code, 1);
    assert_eq!(run(&["plan", "tests/broken/many.yaml"]).code, 1);
    assert_eq!(run(&["run", "tests/broken/many.yaml"]).code, 1);
    snapshot("help", &run(&["--help"]).done());
}

#[test]
fn a_file_that_cannot_be_read_hides_no_other() {
    let ran = run(&["check", "absent.yaml", "tests/broken/lr.yaml", SMALLEST]);
    snapshot("check_several", &ran.shown());
    assert_eq!(ran.code, 2);
}

#[test]
fn several_files_are_all_checked() {
    let files = [SMALLEST, "tests/broken/lr.yaml", "tests/broken/unknown_kind.yaml"];
    let ran = run(&[&["check"][..], &files].concat());
    assert_eq!(ran.code, 1);
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
    assert!(ran.err.contains("lr.yaml: 3 problems") && ran.err.contains("unknown_kind.yaml: 1"));
}

#[test]
fn a_reader_that_leaves_and_variables_that_are_no_text_do_no_harm() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;
    use std::process::{Command, Stdio};

    let program = env!("CARGO_BIN_EXE_playhouse-test");
    for arguments in [&["schema"][..], &["list"], &["plan", SMALLEST], &["check", SMALLEST]] {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root()).env("WORD", OsString::from_vec(vec![0xff]));
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");

        let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let output = command.stdout(full).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors.starts_with("error: cannot write the output"), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_key_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["../evil", ""] {
        let ran = run_in(folder.path(), &["keys", "keys", name]);
        assert_eq!(ran.code, 2, "{name}");
        assert!(ran.err.contains("is not a name of a host"), "{}", ran.err);
    }
}

#[test]
fn a_run_writes_down_what_happened_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let ran =
        run(&["run", SMALLEST, "--set", "curriculum.0.steps=2", "--out", out.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let log = fs::read_to_string(out.join("run.log")).unwrap();
    for words in ["a stage begins", "a checkpoint is written", "the run is over"] {
        assert!(log.contains(words), "no `{words}` in\n{log}");
    }
}

#[test]
fn conform_fails_where_it_compared_too_little() {
    let clip = |more: &[&str]| {
        let mut words = vec!["conform", "text/clip", "--against", "tests/golden/clip"];
        words.extend(more);
        run(&words)
    };
    let none = clip(&[]);
    assert!(none.code == 1 && none.err.contains("`--name` names one"), "{}", none.shown());
    let named = ["--name", "tokens=text_last"];
    let few = clip(&named);
    assert!(few.code == 1 && few.err.contains("more than half"), "{}", few.shown());
    assert!(few.out.contains("ok  text_last"), "{}", few.shown());
    assert!(few.out.contains("compared 1 of 33 arrays; not compared: "), "{}", few.shown());
    clip(&[&named[..], &["--any"]].concat()).done();
    let all = clip(&[&named[..], &["--all"]].concat());
    assert!(all.code == 1 && all.err.contains("32 arrays"), "{}", all.shown());
    let port = clip(&["--name", "token=text_last"]);
    assert!(port.code != 0 && port.err.contains("there are ids"), "{}", port.shown());
    let array = clip(&["--name", "tokens=last"]);
    assert!(array.code != 0 && array.err.contains("text_last"), "{}", array.shown());
}

#[test]
fn conform_does_not_compare_what_stands_at_padding() {
    for fixture in ["llama", "mistral", "qwen2"] {
        let folder = format!("tests/golden/{fixture}");
        run(&["conform", "text/causal_lm", "--against", &folder, "--any"]).done();
    }
}
