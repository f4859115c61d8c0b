//! The diffusion loss learns, and the decoder draws with the weights that it exported.

use modules::REGISTRY;
use schemas::dims::Dims;
use schemas::entry::{Entry, Export, find};
use schemas::frame::{Frame, Frames};
use schemas::node::{At, Node, NodeError, NodeSpec, Update};
use serde_json::{Value, json};

/// Vectors of a step; every second one has the other condition.
const VECTORS: usize = 128;
/// Means of the two modes.
const MODES: [[f32; 2]; 2] = [[0.8, -0.4], [-0.6, 0.6]];

fn fail<T>(error: NodeError) -> T {
    panic!("{error}")
}

fn spec(kind: &str, options: Value, trains: bool) -> (&'static Entry, NodeSpec) {
    let entry = find(REGISTRY, kind).expect("the kind exists");
    let options = (entry.resolve)(&options).expect("the options are right");
    let sides = [("B", 2), ("M", VECTORS / 2), ("Z", 2), ("C", 2)];
    let dims: Dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
    assert_eq!((entry.check)(&options, &dims), []);
    let optimizer = json!({ "lr": 1e-3, "weight_decay": 0.0 });
    let spec = json!({
        "name": kind, "kind": kind, "options": options, "dims": dims, "wired": [],
        "wants": if trains { vec!["condition"] } else { Vec::new() }, "backward": trains,
        "optimizer": trains.then_some(optimizer), "frozen": [], "seed": 3, "device": "flex",
        "precision": "f32", "checkpointing": false, "weights": null, "ema": null,
    });
    (entry, serde_json::from_value(spec).expect("a spec"))
}

/// One-hot conditions, alternating.
fn conditions() -> Frame {
    let values = (0..VECTORS).flat_map(|i| if i % 2 == 0 { [1.0, 0.0] } else { [0.0, 1.0] });
    Frame::f32([2, VECTORS / 2, 2], values)
}

/// Draws around the mode of each condition, with deviation 0.1.
fn targets(step: u64) -> Frame {
    let mut rng = modules::rng::Key::new(1, "targets").with_number(step).rng();
    let mut draw = |i: usize| MODES[i % 2].map(|mean| mean + 0.1 * rng.normal() as f32);
    let values: Vec<f32> = (0..VECTORS).flat_map(&mut draw).collect();
    Frame::f32([2, VECTORS / 2, 2], values)
}

fn train(node: &mut dyn Node, steps: u64) -> Vec<f32> {
    let mut losses = Vec::new();
    for step in 0..steps {
        let at = At { step, ..At::default() };
        let inputs = [("condition", conditions()), ("target", targets(step))];
        let inputs: Frames = inputs.map(|(port, frame)| (port.to_owned(), frame)).into();
        let given = node.forward(at, inputs).unwrap_or_else(fail);
        losses.push(given.measures["mse"] as f32);
        let one = vec![("loss".to_owned(), Frame::f32([1], [1.0]))];
        let back = node.backward(at, one).unwrap_or_else(fail);
        assert_eq!(back["condition"].shape(), [2, VECTORS / 2, 2]);
        // A chain of 1000 steps has rare steps with large losses; gradients are clipped to 1.
        let norm = node.squared_norm().unwrap_or_else(fail).sqrt();
        let update = Update { step, lr: 3e-3, scale: 1.0 / norm.max(1.0) };
        node.update(&update).unwrap_or_else(fail);
    }
    losses
}

/// Mean and deviation over the samples of one condition, each over both channels.
fn moments(samples: &[f32], mode: usize) -> [[f32; 2]; 2] {
    [0, 1].map(|channel| {
        let chosen: Vec<f32> = samples
            .chunks(2)
            .enumerate()
            .filter(|(i, _)| i % 2 == mode)
            .map(|(_, vector)| vector[channel])
            .collect();
        let mean = chosen.iter().sum::<f32>() / chosen.len() as f32;
        let squares = chosen.iter().map(|v| (v - mean).powi(2)).sum::<f32>();
        [mean, (squares / chosen.len() as f32).sqrt()]
    })
}

#[test]
fn in_bf16_the_loss_is_nearly_that_in_f32() {
    let options = json!({ "size": { "width": 32, "depth": 2 } });
    let [full, half] = ["f32", "bf16"].map(|precision| {
        let (entry, mut spec) = spec("losses/diffusion", options.clone(), true);
        spec.precision = serde_json::from_value(json!(precision)).unwrap();
        let mut node = (entry.build)(&spec).unwrap_or_else(fail);
        train(&mut *node, 20)
    });
    for (full, half) in full.iter().zip(&half) {
        assert!((full - half).abs() < 0.05, "{full} {half}");
    }
    assert_ne!(full, half);
}

#[test]
fn samples_lie_at_the_mode_of_their_condition_after_training() {
    let shared = json!({ "size": { "width": 64, "depth": 2 } });
    let (entry, loss) = spec("losses/diffusion", shared.clone(), true);
    let mut node = (entry.build)(&loss).unwrap_or_else(fail);
    let losses = train(&mut *node, 400);
    let late = losses[350..].iter().sum::<f32>() / 50.0;
    assert!(late < 0.5, "the mean squared error is still {late}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("denoiser.safetensors");
    (entry.export)(&loss, &node.save(), Export::Parameters, &file).unwrap_or_else(fail);

    // The last step of a cosine chain divides by 5e-5: after so little training, x_0 is clamped.
    let ancestral = json!({ "steps": 50, "clamp": true });
    for sampling in [ancestral, json!({ "steps": "ddim25", "eta": 0.0, "clamp": true })] {
        let mut options = shared.clone();
        options["channels"] = json!(2);
        options["sampling"] = sampling.clone();
        let (entry, mut decoder) = spec("models/diffusion_decoder", options, false);
        decoder.weights = Some(file.clone());
        let mut node = (entry.build)(&decoder).unwrap_or_else(fail);
        let inputs = Frames::from([("condition".to_owned(), conditions())]);
        let frames = node.forward(At::default(), inputs).unwrap_or_else(fail).frames;
        let samples = frames["sample"].to_f32();
        for (mode, means) in MODES.into_iter().enumerate() {
            let found = moments(&samples, mode);
            println!("{sampling}: {found:?} for {means:?}");
            for ([mean, deviation], expected) in found.into_iter().zip(means) {
                assert!((mean - expected).abs() < 0.15, "{sampling}: {found:?}, not {means:?}");
                assert!(deviation < 0.3, "{sampling}: {found:?}");
            }
        }
    }
}
