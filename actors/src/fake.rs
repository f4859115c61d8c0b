//! A node for tests: it does what its script says and writes down what it is asked.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use schemas::frame::{DType, DeviceTensor, Frame, Frames};
use schemas::graph::{Edge, End, Graph, StageGraph, StageNode};
use schemas::handoff::Takeover;
use schemas::node::{At, Forwarded, Gradients, Measures, Node, NodeError, NodeSpec, Part, Update};
use schemas::port::Ports;
use schemas::stage::LossWeight;
use schemas::timetable::When;

use crate::clock::{Clock, Moment};
use crate::node_actor::Factory;

/// What happens before each forward pass; and, as `NAME is written`, while a part is written.
pub(crate) type Script = Arc<dyn Fn(&str, At) + Send + Sync>;

/// What nodes were asked, in order.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// One scalar at every port.
pub(crate) struct Fake {
    spec: NodeSpec,
    outputs: Vec<String>,
    weight: f32,
    script: Script,
    log: Log,
}

/// A factory of fakes.
pub(crate) fn factory(script: Script, log: Log) -> Factory {
    Arc::new(move |spec| {
        let outputs = serde_json::from_value(spec.options.clone()).expect("names of ports");
        let (spec, script, log) = (spec.clone(), script.clone(), log.clone());
        Ok(Box::new(Fake { spec, outputs, weight: 1.0, script, log }))
    })
}

impl Fake {
    fn note(&self, text: String) {
        self.log.lock().expect("a log").push(text);
    }
}

/// A tensor that tells the script when it is written.
struct Slow {
    weight: f32,
    name: String,
    script: Script,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.weight)
    }
}

impl DeviceTensor for Slow {
    fn to_host(&self) -> Bytes {
        (self.script)(&self.name, At::default());
        Bytes::copy_from_slice(&self.weight.to_le_bytes())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Node for Fake {
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError> {
        (self.script)(&self.spec.name, at);
        let sum: f32 = inputs.values().map(|frame| frame.to_f32()[0]).sum();
        self.note(format!("forward {} {}", at.step, at.microbatch));
        let value = if inputs.is_empty() { at.step as f32 } else { sum * self.weight };
        let frame = |port: &String| (port.clone(), Frame::f32([1], [value]));
        let frames = self.outputs.iter().map(frame).collect();
        Ok(Forwarded { frames, ..Forwarded::default() })
    }

    fn backward(&mut self, at: At, gradients: Gradients) -> Result<Frames, NodeError> {
        let values: Vec<String> =
            gradients.iter().map(|(port, frame)| format!("{port}={}", frame.to_f32()[0])).collect();
        self.note(format!("backward {} {} {}", at.step, at.microbatch, values.join(" ")));
        let frame = |port: &String| (port.clone(), Frame::f32([1], [1.0]));
        Ok(self.spec.wants.iter().map(frame).collect())
    }

    fn squared_norm(&mut self) -> Result<f64, NodeError> {
        Ok(1.0)
    }

    fn update(&mut self, update: &Update) -> Result<Measures, NodeError> {
        self.weight *= 1.0 - update.lr as f32;
        Ok(Measures::new())
    }

    fn weights(&self) -> Frames {
        Frames::from([("w".to_owned(), Frame::f32([1], [self.weight]))])
    }

    fn adopt(&mut self, weights: Frames) -> Result<(), NodeError> {
        self.follow(weights)
    }

    fn follow(&mut self, weights: Frames) -> Result<(), NodeError> {
        self.weight = weights["w"].to_f32()[0];
        Ok(())
    }

    fn save(&self) -> Part {
        let (name, script) = (format!("{} is written", self.spec.name), self.script.clone());
        let slow = Slow { weight: self.weight, name, script };
        let frame = Frame::device(DType::F32, vec![1], Arc::new(slow));
        Part { tensors: Frames::from([("w".to_owned(), frame)]), ..Part::default() }
    }

    fn load(&mut self, part: &Part) -> Result<(), NodeError> {
        self.follow(part.tensors.clone())
    }

    fn take_over(&mut self, part: &Part, _: &Takeover) -> Result<(), NodeError> {
        self.load(part)
    }

    fn rewind(&mut self) {}
}

/// The spec of a fake.
pub(crate) fn spec(name: &str, wired: &[&str], outputs: &[&str], trains: bool) -> NodeSpec {
    let wants: &[&str] = if wired == ["x"] { &[] } else { wired };
    let optimizer = trains.then(|| serde_json::json!({ "lr": 0.01 }));
    serde_json::from_value(serde_json::json!({
        "name": name, "kind": "fake", "options": outputs, "dims": {}, "wired": wired,
        "wants": wants, "backward": !wired.is_empty(), "optimizer": optimizer,
        "frozen": [], "seed": 0, "device": "none", "precision": "f32", "checkpointing": false,
        "weights": null, "ema": null,
    }))
    .expect("a spec")
}

/// A source, a node that trains, and a loss.
pub(crate) fn graph(steps: u64) -> Graph {
    let node = |spec: NodeSpec| {
        let (source, name) = (spec.wired.is_empty(), spec.name.clone());
        let (ports, outputs) = (Ports::default(), BTreeMap::new());
        let (works, takeover) = (When::always(), Takeover::default());
        let backs = if spec.backward { When::always() } else { When::default() };
        let node = StageNode {
            spec,
            ports,
            outputs,
            host: None,
            source,
            same: None,
            works,
            backs,
            takeover,
        };
        (name, node)
    };
    let edge = |from: End, to: End, gradient: bool| Edge { from, to, shape: None, gradient };
    let stage = StageGraph {
        name: "only".to_owned(),
        steps,
        first_step: 0,
        mixture: None,
        until: Vec::new(),
        from: None,
        accumulate: 2,
        optimizer: serde_json::from_str(r#"{ "lr": 0.01 }"#).expect("an optimizer"),
        losses: BTreeMap::from([(End::new("loss", "loss"), LossWeight::constant(1.0))]),
        nodes: BTreeMap::from([
            node(spec("clips", &[], &["x"], false)),
            node(spec("model", &["x"], &["y"], true)),
            node(spec("loss", &["y"], &["loss"], false)),
        ]),
        edges: vec![
            edge(End::new("clips", "x"), End::new("model", "x"), false),
            edge(End::new("model", "y"), End::new("loss", "y"), true),
        ],
    };
    let experiment = schemas::experiment::Experiment::default();
    Graph { experiment, stages: vec![stage], waivers: Vec::new() }
}

/// A clock that is set by hand, in seconds.
#[derive(Default)]
pub(crate) struct HandClock(pub(crate) AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> Moment {
        Moment::at(self.0.load(Ordering::SeqCst) as f64)
    }
}
