//! Nodes that fail on purpose: any kind, wrapped, when `PLAYHOUSE_FAULT` says so.
//!
//! The variable holds `{ "node": …, "step": …, "what": … }`, and `"marker"`, a file. With a marker
//! the fault happens once: the file is made when it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actors::node_actor::Factory;
use schemas::frame::{Frame, Frames};
use schemas::handoff::Takeover;
use schemas::node::{At, Forwarded, Gradients, Measures, Node, NodeError, Part, Update};
use serde::Deserialize;

/// Name of the variable.
pub const VARIABLE: &str = "PLAYHOUSE_FAULT";

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The computation panics.
    Panic,
    /// It never returns.
    Hang,
    /// It waits until the marker's neighbour `<marker>.go` exists.
    Pause,
    /// The loss is NaN.
    Nan,
}

/// One fault.
#[derive(Debug, Clone, Deserialize)]
pub struct Fault {
    /// Which node.
    pub node: String,
    /// At which step.
    pub step: u64,
    /// What goes wrong.
    pub what: What,
    /// Made when it happens; while it exists the fault does not happen.
    #[serde(default)]
    pub marker: Option<PathBuf>,
}

/// The real kinds, one of them faulty when the environment says so.
pub fn factory() -> Factory {
    let real = experiments::compose::factory();
    let Ok(text) = std::env::var(VARIABLE) else { return real };
    let fault: Fault = serde_json::from_str(&text).expect("a fault");
    Arc::new(move |spec| {
        let node = real(spec)?;
        let faulty = spec.name == fault.node;
        Ok(if faulty { Box::new(Faulty { node, fault: fault.clone() }) } else { node })
    })
}

struct Faulty {
    node: Box<dyn Node>,
    fault: Fault,
}

fn wait() {
    std::thread::park_timeout(Duration::from_millis(5));
}

impl Faulty {
    fn happens(&self, at: At) -> bool {
        if at.step != self.fault.step || at.microbatch > 0 {
            return false;
        }
        let Some(marker) = &self.fault.marker else { return true };
        std::fs::File::create_new(marker).is_ok()
    }
}

impl Node for Faulty {
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError> {
        let happens = self.happens(at);
        match self.fault.what {
            What::Panic if happens => panic!("the sky fell at step {}", at.step),
            What::Hang if happens => loop {
                wait();
            },
            What::Pause if happens => {
                let go = self.fault.marker.as_ref().expect("a marker").with_extension("go");
                while !go.exists() {
                    wait();
                }
            }
            _ => {}
        }
        let mut forwarded = self.node.forward(at, inputs)?;
        if self.fault.what == What::Nan && happens {
            forwarded.frames.insert("loss".to_owned(), Frame::f32([1], [f32::NAN]));
        }
        Ok(forwarded)
    }

    fn backward(&mut self, at: At, gradients: Gradients) -> Result<Frames, NodeError> {
        self.node.backward(at, gradients)
    }

    fn squared_norm(&mut self) -> Result<f64, NodeError> {
        self.node.squared_norm()
    }

    fn update(&mut self, update: &Update) -> Result<Measures, NodeError> {
        self.node.update(update)
    }

    fn weights(&self) -> Frames {
        self.node.weights()
    }

    fn adopt(&mut self, weights: Frames) -> Result<(), NodeError> {
        self.node.adopt(weights)
    }

    fn follow(&mut self, weights: Frames) -> Result<(), NodeError> {
        self.node.follow(weights)
    }

    fn save(&self) -> Part {
        self.node.save()
    }

    fn load(&mut self, part: &Part) -> Result<(), NodeError> {
        self.node.load(part)
    }

    fn take_over(&mut self, part: &Part, takeover: &Takeover) -> Result<(), NodeError> {
        self.node.take_over(part, takeover)
    }

    fn take_gradients(&mut self) -> Frames {
        self.node.take_gradients()
    }

    fn add_gradients(&mut self, gradients: Frames) -> Result<(), NodeError> {
        self.node.add_gradients(gradients)
    }

    fn rewind(&mut self) {
        self.node.rewind();
    }
}
