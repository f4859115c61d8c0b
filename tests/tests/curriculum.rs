//! Stages of many kinds: media drawn step by step, vertices on shared weights, losses that begin and end, gates,
//! and what one stage hands to the next. Whatever the placement and the interruptions, the numbers are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use experiments::plain::Plain;
use schemas::checkpoint;
use schemas::entry::find;
use schemas::frame::Frame;
use schemas::graph::Graph;
use schemas::layers::Layer;
use tests::runs::{Going, Place, exits, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_playhouse-test");
const EXPERIMENT: &str = include_str!("../src/curriculum.yaml");

fn place() -> Place {
    let place = Place::new(PROGRAM);
    place.write("experiment.yaml", EXPERIMENT);
    place
}

fn checked(text: &str) -> Result<Graph, String> {
    let layer = Layer::File { name: "x.yaml".into(), text: text.into() };
    match experiments::read::check(&[layer], Path::new("")) {
        Ok(checked) => Ok(checked.graph),
        Err(problems) => {
            let lines = problems.iter().map(|p| format!("{}: {} ({})", p.path, p.message, p.hint));
            Err(lines.collect::<Vec<_>>().join("\n"))
        }
    }
}

/// Parameters of a node in the newest checkpoint of a run at a step.
fn parameters(run: &Path, step: u64, node: &str) -> BTreeMap<String, Frame> {
    let all = checkpoint::list(&run.join("checkpoints"));
    let (manifest, folder) = all.iter().find(|(m, _)| m.step == step).expect("a checkpoint");
    let part = checkpoint::read_part(folder, &manifest.parts[node]).unwrap();
    let own = part.tensors.into_iter();
    own.filter_map(|(name, frame)| Some((name.strip_prefix("parameter.")?.to_owned(), frame)))
        .collect()
}

#[test]
fn media_vertices_and_gates_give_one_series_of_numbers() {
    let place = place();
    exits(0, place.run("calm", ""));
    let numbers = place.metrics("calm");
    let rows = |stage: &str, metric: &str| -> Vec<(u64, String)> {
        let lines = numbers.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let found =
            lines.filter(|row| row[0] == stage && format!("{}.{}", row[2], row[3]) == metric);
        found.map(|row| (row[1].parse().unwrap(), row[4].to_owned())).collect()
    };
    // Two clips and a picture in each round of three steps; the average counts for three quarters of the stage.
    let (clips, pictures) = (rows("learn", "moves.loss"), rows("learn", "looks.loss"));
    assert_eq!(clips.len() + pictures.len(), 8);
    assert!(clips.iter().all(|(step, _)| pictures.iter().all(|(other, _)| step != other)));
    assert!((2..=3).contains(&pictures.len()), "{pictures:?}");
    assert!(rows("learn", "self.loss").iter().all(|(step, _)| *step < 6));
    // The gate opens after three steps, and the next stage begins where it always does.
    assert_eq!(rows("still", "moves.loss").len(), 3);
    let judged: Vec<u64> = rows("grow", "judge.loss").into_iter().map(|(step, _)| step).collect();
    assert_eq!(judged, [58, 59, 60, 61]);

    for (name, overlay) in [
        (
            "ipc",
            "hosts: { far: { transport: ipc } }\nplace: { look: far, average: far, head: far }\n",
        ),
        (
            "tcp",
            "hosts: { far: { transport: tcp } }\nplace: { vision: far, moves: far, pictures: far }\n",
        ),
    ] {
        exits(0, place.run(name, overlay));
        assert_eq!(place.metrics(name), numbers, "{name}");
    }
    let mut command = place.run("ahead", "");
    command.args(["--set", "run.prefetch=5"]);
    exits(0, command);
    assert_eq!(place.metrics("ahead"), numbers);

    for step in [3, 6, 8, 58] {
        let run = format!("killed-{step}");
        let going = Going::start(place.run(&run, ""), &place.path("log"));
        until("the step", || (place.steps(&run) >= step.min(11)).then_some(()));
        going.signal("KILL");
        going.wait();
        exits(0, place.resume(&run));
        assert_eq!(place.metrics(&run), numbers, "killed at {step}");
        let last = |run: &str| parameters(&place.path(run), 62, "longer");
        assert_eq!(last(&run).len(), last("calm").len());
        for (name, frame) in last(&run) {
            assert_eq!(frame.bytes(), last("calm")[&name].bytes(), "{name}");
        }
    }
}

#[test]
fn a_stage_takes_over_what_it_says() {
    let place = place();
    exits(0, place.run("calm", ""));
    let run = place.path("calm");
    let (before, after) = (parameters(&run, 8, "vision"), parameters(&run, 62, "longer"));
    let table = |of: &BTreeMap<String, Frame>| of["pos_embed"].shape().to_vec();
    assert_eq!(table(&before)[1] - 1, 4 * 4);
    assert_eq!(table(&after)[1] - 1, 8 * 4);
    // What is excepted does not move.
    let drawn = checked(EXPERIMENT).unwrap();
    let spec = &drawn.stages[0].nodes["vision"].spec;
    let drawn = (find(modules::REGISTRY, &spec.kind).unwrap().build)(spec).unwrap().weights();
    for (name, frame) in &before {
        let moved = frame.bytes() != drawn[name].bytes();
        assert!(!moved || !name.starts_with("patch_embed"), "{name}");
        assert!(moved || !name.ends_with("fc1.weight"), "{name}");
    }

    // One stage alone, from a checkpoint that was carried elsewhere.
    let carried = place.path("carried");
    let own = run.join("checkpoints/grow-00000058");
    fs::create_dir_all(carried.join("grow-00000058")).unwrap();
    for file in fs::read_dir(&own).unwrap().flatten() {
        fs::copy(file.path(), carried.join("grow-00000058").join(file.file_name())).unwrap();
    }
    let mut command = place.run("alone", "");
    command.args(["--stage", "grow", "--from", "carried"]);
    // `from: learn` goes back behind the carried checkpoint, which has the same state of these nodes.
    let mut cut = String::from(EXPERIMENT);
    cut = cut.replace("    from: learn\n", "");
    place.write("experiment.yaml", &cut);
    exits(0, command);
    let tail: Vec<String> = place
        .metrics("calm")
        .lines()
        .filter(|l| l.starts_with("grow,"))
        .map(str::to_owned)
        .collect();
    let alone: Vec<String> = place.metrics("alone").lines().skip(1).map(str::to_owned).collect();
    assert_eq!(alone, tail);
    let mut command = place.run("nothing", "");
    command.args(["--stage", "grow"]);
    let text = exits(2, command);
    assert!(text.contains("`--from`"), "{text}");
}

#[test]
fn what_nobody_gives_and_what_nobody_takes_is_refused() {
    let without = |line: &str| checked(&EXPERIMENT.replace(line, "")).unwrap_err();
    let text = without("    takes: { longer: vision, scores: head }\n");
    assert!(text.contains("`scores` is new in stage `grow` and nothing gives"), "{text}");
    assert!(text.contains("`head.weight`") && text.contains("fresh: [scores]"), "{text}");
    let rule = "    rules: { longer.pos_embed: { resize_time: { from: 4, to: 8, leading: 1 } } }\n";
    let text = without(rule);
    assert!(text.contains("`pos_embed [1, 33, 96], there [1, 17, 96]`"), "{text}");
    let bad = EXPERIMENT.replace("from: 4, to: 8", "from: 5, to: 8");
    let text = checked(&bad).unwrap_err();
    assert!(text.contains("the rule does not fit `longer.pos_embed`"), "{text}");
    // A layer less: what it held must be dropped by name.
    let less = EXPERIMENT.replace("longer:   { kind: models/internvideo2, in: { video: clips.video }, preset: tiny, size: { depth: 2", "longer:   { kind: models/internvideo2, in: { video: clips.video }, preset: tiny, size: { depth: 1").replace("taps: 2, drop_path: 0.2, positions: picture }", "taps: 1, drop_path: 0.2, positions: picture }");
    let text = checked(&less).unwrap_err();
    assert!(text.contains("nobody takes over parameters of `vision`"), "{text}");
    assert!(text.contains("drop: [vision.blocks.1]"), "{text}");
    let dropped = less.replace("    takes:", "    drop: [vision.blocks.1]\n    takes:");
    let graph = checked(&dropped).unwrap();
    let waiver = graph.waivers.iter().find(|w| w.what == "drop").unwrap();
    assert_eq!((waiver.node.as_str(), waiver.stage.as_str()), ("vision", "grow"));
    assert!(waiver.parameters.iter().all(|name| name.starts_with("blocks.1.")));
}

#[test]
fn words_of_a_stage_must_mean_something() {
    for (from, to, expected) in [
        ("on: [picture]", "on: [pictur]", "the stage draws no `pictur` (did you mean `picture`?)"),
        ("from: learn", "from: lern", "no earlier stage is named `lern`"),
        ("moments: [scores]", "moments: [score]", "no node is named `score`"),
        ("over: 3 }", "over: 0 }", "`over` is 0 steps"),
        ("above: 0, over", "over", "a gate has one of `above`, `below` and `plateau`"),
        ("same: vision,", "same: visio,", "no other node is named `visio`"),
        ("same: head, in", "same: head, frozen: true, in", "`frozen` belongs to `head`"),
        ("train: [head, self,", "train: [head_2, self,", "`head_2` has the weights of `head`"),
        (
            "except: [patch_embed]",
            "except: [nothing]",
            "no parameter of `vision` is under `nothing`",
        ),
        ("except: [patch_embed]", "only: [nothing]", "no parameter of `vision` is under `nothing`"),
        ("to: 0.75", "to: 1.5", "`to` is 1.5, not a share from 0 to 1"),
    ] {
        let text = EXPERIMENT.replace(from, to);
        assert_ne!(text, EXPERIMENT, "{from}");
        let found = checked(&text).unwrap_err();
        assert!(found.contains(expected), "{from}: {found}");
    }
}

#[test]
fn actors_compute_what_plain_calls_compute() {
    let text = EXPERIMENT.replace("    accumulate: 2\n", "");
    let place = place();
    place.write("experiment.yaml", &text);
    exits(0, place.run("calm", ""));
    let graph = checked(&text).unwrap();
    let mut plain = Plain::new(&graph.stages[0]).unwrap();
    let numbers = place.metrics("calm");
    for step in 0..8 {
        for (end, loss) in plain.step(step).unwrap() {
            let row = format!("learn,{step},{},{},{}\n", end.node, end.port, f64::from(loss));
            assert!(numbers.contains(&row), "{row}");
        }
    }
}

/// Two vertices, each on half of a batch, learn what one learns on all of it.
#[test]
fn gradients_of_vertices_add_up() {
    let whole = "
seed: 3
graph:
  clips: { kind: data/moving_shapes, batch: 4, frames: 2, size: 32 }
  eye:   { kind: models/videomae_v2, in: { video: clips.video }, preset: tiny, size: { depth: 1, patch: 16 }, taps: 1, frozen: true }
  head:  { kind: models/head, in: { features: eye.pooled }, classes: 8 }
  judge: { kind: losses/cross_entropy, in: { logits: head.logits, label: clips.motion } }
curriculum:
  - name: learn
    steps: 3
    train: [head]
    losses: { judge.loss: 1 }
    optimizer: { kind: adamw, lr: 1.0e-2, clip: 0.5 }
observers: [{ kind: checkpoint, every: 3 }]
";
    let halves = "
seed: 3
graph:
  clips: { kind: data/moving_shapes, batch: 4, frames: 2, size: 32 }
  eye:   { kind: models/videomae_v2, in: { video: clips.video }, preset: tiny, size: { depth: 1, patch: 16 }, taps: 1, frozen: true }
  left:  { kind: select/part, in: { rows: eye.pooled }, of: vectors, to: 1 }
  right: { kind: select/part, in: { rows: eye.pooled }, of: vectors, from: 1 }
  one:   { kind: select/part, in: { rows: clips.motion }, of: numbers, to: 1 }
  two:   { kind: select/part, in: { rows: clips.motion }, of: numbers, from: 1 }
  head:  { kind: models/head, in: { features: left.part }, classes: 8 }
  also:  { same: head, in: { features: right.part } }
  judge: { kind: losses/cross_entropy, in: { logits: head.logits, label: one.part } }
  other: { kind: losses/cross_entropy, in: { logits: also.logits, label: two.part } }
curriculum:
  - name: learn
    steps: 3
    train: [head]
    losses: { judge.loss: 0.5, other.loss: 0.5 }
    optimizer: { kind: adamw, lr: 1.0e-2, clip: 0.5 }
observers: [{ kind: checkpoint, every: 3 }]
";
    let place = place();
    let run = |name: &str, text: &str| {
        place.write("experiment.yaml", text);
        exits(0, place.run(name, ""));
        parameters(&place.path(name), 3, "head")
    };
    let (whole, halves) = (run("whole", whole), run("halves", halves));
    assert_eq!(whole.keys().collect::<Vec<_>>(), halves.keys().collect::<Vec<_>>());
    for (name, frame) in &whole {
        let pairs = frame.to_f32().into_iter().zip(halves[name].to_f32());
        let apart = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        // AdamW divides by the root of tiny second moments, so the last bits of sums show.
        assert!(apart < 2e-4, "{name}: {apart}");
    }
}
