//! Training through actors equals training by plain calls: same losses bit for bit, and the
//! gradients of the unsplit model.
//!
//! The graph has a node that feeds two losses (the student) and a frozen node in the gradient
//! path (the head). The plain side keeps one autodiff graph over all modules. `PLAYHOUSE_DEVICE`
//! names another device than `flex`.

use std::collections::BTreeMap;
use std::fs;

use burn::module::Module as _;
use burn::tensor::{Device, Tensor};
use modules::init::Init;
use modules::kind::{Call, Kind};
use modules::kind_node::KindNode;
use modules::losses::{cross_entropy, feature_alignment};
use modules::models::{head, internvideo2, videomae_v2};
use modules::optimizer::{AdamW, Rates};
use modules::parameters;
use modules::rng::Key;
use modules::tensors::{AnyTensor, Tensors};
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::graph::{Graph, StageNode};
use schemas::node::{At, Node as _};

const EXPERIMENT: &str = "
seed: 5
graph:
  clips:   { kind: data/moving_shapes, batch: 2, frames: 4, size: 32 }
  teacher: { kind: models/videomae_v2, in: { video: clips.video }, preset: tiny, size: { depth: 2, patch: 16 }, taps: 1, frozen: true }
  student: { kind: models/internvideo2, in: { video: clips.sparse }, preset: tiny, size: { depth: 2, patch: 16 }, taps: 1, layer_scale: 0.1, drop_path: 0.2 }
  align:   { kind: losses/feature_alignment, in: { student: student.layers, teacher: teacher.layers }, head: mlp }
  head:    { kind: models/head, in: { features: student.mean }, classes: 8, frozen: true }
  judge:   { kind: losses/cross_entropy, in: { logits: head.logits, label: clips.motion } }
curriculum:
  - name: learn
    steps: 4
    train: [student, align]
    losses: { align.loss: 1, judge.loss: 0.5 }
    optimizer: { kind: adamw, lr: 1.0e-3, weight_decay: 0.05, clip: 1.0 }
observers: [{ kind: checkpoint, every: 100 }]
";

fn graph() -> Graph {
    read(EXPERIMENT)
}

fn read(text: &str) -> Graph {
    let layer = schemas::layers::Layer::File { name: "plain.yaml".into(), text: text.into() };
    let mut graph = match experiments::read::check(&[layer], std::path::Path::new("")) {
        Ok(checked) => checked.graph,
        Err(problems) => panic!("{problems:#?}"),
    };
    for node in graph.stages.iter_mut().flat_map(|stage| stage.nodes.values_mut()) {
        node.spec.device = tests::device::name();
    }
    graph
}

/// One trained module with its optimiser.
struct Part<K: Kind> {
    kind: K,
    name: String,
    module: K::Module,
    optimizer: Option<AdamW>,
}

impl<K: Kind> Part<K> {
    fn new(name: &str, node: &StageNode, device: &Device) -> Self {
        let kind: K = serde_json::from_value(node.spec.options.clone()).unwrap();
        let init = Init::new(node.spec.seed, name, device);
        let module = kind.init(&node.spec.dims, &init);
        let optimizer = node.spec.optimizer.as_ref().map(AdamW::new);
        let trains = optimizer.is_some();
        let module = parameters::activate(module, &|_| trains);
        Self { kind, name: name.to_owned(), module, optimizer }
    }

    fn call(&self, step: u64, inputs: Tensors) -> Tensors {
        let at = At { stage: 0, step, microbatch: 0 };
        let key = Key::new(5, &self.name).with_number(0).with_number(step).with_number(0);
        let call = Call { training: self.optimizer.is_some(), ..Call::new(key, at) };
        self.kind.forward(&self.module, inputs, &call).unwrap()
    }

    fn step(&mut self, gradients: BTreeMap<String, AnyTensor>, lr: f64, scale: f64) {
        let (mut gradients, optimizer) = (gradients, self.optimizer.as_mut().unwrap());
        let kind = &self.kind;
        self.module = parameters::map(self.module.clone(), &mut |parameter, value| {
            let Some(gradient) = gradients.remove(&parameter.path) else { return value };
            let gradient = if scale == 1.0 { gradient } else { gradient.times(scale) };
            let decays = kind.decays(&parameter.path, &parameter.shape);
            optimizer.step(&parameter.path, value, gradient, Rates { lr, decays })
        });
    }
}

struct PlainStep {
    losses: [f32; 2],
    gradients: BTreeMap<String, AnyTensor>,
}

/// The whole model in one autodiff graph.
fn train_plainly(graph: &Graph, steps: u64) -> Vec<PlainStep> {
    let stage = &graph.stages[0];
    let plain = tests::device::device();
    let device = plain.clone().autodiff();
    let node = |name: &str| &stage.nodes[name];
    let mut clips =
        (find(modules::REGISTRY, "data/moving_shapes").unwrap().build)(&node("clips").spec)
            .unwrap();
    let teacher = Part::<videomae_v2::Config>::new("teacher", node("teacher"), &plain);
    let mut student = Part::<internvideo2::Config>::new("student", node("student"), &device);
    let mut align = Part::<feature_alignment::Config>::new("align", node("align"), &device);
    let head = Part::<head::Config>::new("head", node("head"), &device);
    let judge = Part::<cross_entropy::Config>::new("judge", node("judge"), &device);
    let mut done = Vec::new();
    for step in 0..steps {
        let at = At { stage: 0, step, microbatch: 0 };
        let frames = clips.forward(at, Default::default()).unwrap().frames;
        let input = |port: &str| AnyTensor::from_frame(&frames[port], &plain).unwrap();
        let of = |port: &str, tensor: AnyTensor| {
            let mut tensors = Tensors::new();
            tensors.put(port, tensor);
            tensors
        };
        let mut taught = teacher.call(step, of("video", input("video")));
        let mut seen = student.call(step, of("video", input("sparse")));
        let layers: Tensor<4> = seen.take("layers").unwrap();
        let mean: Tensor<2> = seen.take("mean").unwrap();
        let target: Tensor<4> = taught.take("layers").unwrap();
        let inputs = Tensors::of("student", layers).with("teacher", target);
        let first: Tensor<1> = align.call(step, inputs).take("loss").unwrap();
        let logits: Tensor<2> =
            head.call(step, Tensors::of("features", mean)).take("logits").unwrap();
        let mut inputs = of("label", input("motion"));
        inputs.put("logits", logits.into());
        let second: Tensor<1> = judge.call(step, inputs).take("loss").unwrap();
        let losses = [first.clone().into_scalar::<f32>(), second.clone().into_scalar::<f32>()];
        let mut all = (first + second.mul_scalar(0.5)).backward();
        let of_student = parameters::gradients(&student.module, &mut all);
        let of_align = parameters::gradients(&align.module, &mut all);
        let squares =
            |g: &BTreeMap<String, AnyTensor>| g.values().map(AnyTensor::squared_norm).sum::<f64>();
        let norm = (squares(&of_align) + squares(&of_student)).sqrt();
        let scale = (1.0 / (norm + 1e-6)).min(1.0);
        let gradients = of_student.clone();
        student.step(of_student, 1.0e-3, scale);
        align.step(of_align, 1.0e-3, scale);
        done.push(PlainStep { losses, gradients });
    }
    assert!(student.module.num_params() > 0);
    done
}

#[test]
fn losses_through_actors_are_those_of_plain_calls_bit_for_bit() {
    let graph = graph();
    let plain = train_plainly(&graph, 4);
    let run = tempfile::tempdir().unwrap();
    let outcome = experiments::compose::run(graph, run.path()).unwrap();
    assert_eq!(outcome, actors::supervisor::Outcome::Done);
    let record = fs::read_to_string(run.path().join("metrics.csv")).unwrap();
    for (step, expected) in plain.iter().enumerate() {
        for (node, loss) in ["align", "judge"].iter().zip(expected.losses) {
            let line = format!("learn,{step},{node},loss,{}", f64::from(loss));
            assert!(record.lines().any(|l| l == line), "no line `{line}` in\n{record}");
        }
    }
}

/// A moving average that first works in the second stage, after its student has trained.
const AVERAGE: &str = "
seed: 5
graph:
  clips:   { kind: data/moving_shapes, batch: 2, frames: 4, size: 32 }
  student: { kind: models/internvideo2, in: { video: clips.sparse }, preset: tiny, size: { depth: 2, patch: 16 }, taps: 1 }
  average: { kind: models/internvideo2, in: { video: clips.sparse, weights: student.weights }, preset: tiny, size: { depth: 2, patch: 16 }, taps: 1, frozen: true, ema: 0.75 }
  head:    { kind: models/head, in: { features: student.mean }, classes: 8 }
  judge:   { kind: losses/cross_entropy, in: { logits: head.logits, label: clips.motion } }
  echo:    { kind: models/head, in: { features: average.mean }, classes: 8 }
  verdict: { kind: losses/cross_entropy, in: { logits: echo.logits, label: clips.motion } }
curriculum:
  - name: alone
    steps: 2
    train: [student, head]
    losses: { judge.loss: 1 }
    optimizer: { kind: adamw, lr: 1.0e-2 }
  - name: followed
    steps: 1
    train: [student, head, echo]
    fresh: [echo]
    losses: { judge.loss: 1, verdict.loss: 1 }
    optimizer: { kind: adamw, lr: 1.0e-2 }
observers: [{ kind: checkpoint, every: 100 }]
";

#[test]
fn a_moving_average_begins_as_a_copy_of_what_it_follows() {
    let graph = read(AVERAGE);
    let run = tempfile::tempdir().unwrap();
    let outcome = experiments::compose::run(graph, run.path()).unwrap();
    assert_eq!(outcome, actors::supervisor::Outcome::Done);
    let parameters = |step: u64, node: &str| {
        let all = schemas::checkpoint::list(&run.path().join("checkpoints"));
        let (manifest, folder) = all.iter().find(|(manifest, _)| manifest.step == step).unwrap();
        let part = schemas::checkpoint::read_part(folder, &manifest.parts[node]).unwrap();
        let own = part.tensors.into_iter().filter(|(name, _)| name.starts_with("parameter."));
        own.map(|(name, frame)| (name, frame.to_f32())).collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (parameters(2, "student"), parameters(3, "student"));
    let average = parameters(3, "average");
    assert_eq!(average.len(), before.len());
    for (name, values) in &average {
        let pairs = before[name].iter().zip(&after[name]);
        let expected = pairs.map(|(before, after)| before * 0.75 + after * 0.25);
        let apart = values.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart <= 1e-6, "{name}: {apart}");
    }
    assert!(before != after);
}

/// Frames of one port under another name.
fn frame(frames: &mut Frames, from: &str, to: &str) -> (String, Frame) {
    (to.to_owned(), frames.remove(from).unwrap())
}

#[test]
fn gradients_through_the_cuts_are_those_of_the_unsplit_model() {
    let graph = graph();
    let plain = train_plainly(&graph, 1);
    let node = |name: &str| &graph.stages[0].nodes[name].spec;
    let build = |name: &str| {
        (find(modules::REGISTRY, &node(name).kind).unwrap().build)(node(name)).unwrap()
    };
    let at = At::default();
    let mut clips = build("clips").forward(at, Frames::new()).unwrap().frames;
    let video = frame(&mut clips, "video", "video");
    let mut taught = build("teacher").forward(at, Frames::from([video])).unwrap().frames;
    let mut student = KindNode::<internvideo2::Config>::build(node("student")).unwrap();
    let sparse = frame(&mut clips, "sparse", "video");
    let mut seen = student.forward(at, Frames::from([sparse])).unwrap().frames;
    let (mut align, mut head, mut judge) = (build("align"), build("head"), build("judge"));
    let layers = frame(&mut seen, "layers", "student");
    let target = frame(&mut taught, "layers", "teacher");
    align.forward(at, Frames::from([layers, target])).unwrap();
    let mean = frame(&mut seen, "mean", "features");
    let mut scores = head.forward(at, Frames::from([mean])).unwrap().frames;
    let logits = frame(&mut scores, "logits", "logits");
    let label = frame(&mut clips, "motion", "label");
    judge.forward(at, Frames::from([logits, label])).unwrap();

    let weight = |w: f32| vec![("loss".to_owned(), Frame::f32([1], [w]))];
    let mut of_align = align.backward(at, weight(1.0)).unwrap();
    let mut of_judge = judge.backward(at, weight(0.5)).unwrap();
    let mut of_head = head.backward(at, vec![frame(&mut of_judge, "logits", "logits")]).unwrap();
    assert_eq!(head.squared_norm().unwrap(), 0.0, "a frozen node keeps no gradients");
    let arrived =
        vec![frame(&mut of_align, "student", "layers"), frame(&mut of_head, "features", "mean")];
    student.backward(at, arrived).unwrap();

    let expected = &plain[0].gradients;
    assert_eq!(student.gradients().len(), expected.len());
    for (path, gradient) in student.gradients() {
        let (found, expected) = (gradient.to_data(), expected[path].to_data());
        let pairs = found.iter::<f32>().zip(expected.iter::<f32>());
        let largest = expected.iter::<f32>().fold(0f32, |m, v| m.max(v.abs()));
        let apart = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart <= 1e-6 * largest.max(1e-6), "{path}: {apart} of {largest}");
    }
}
