//! Any kind as a node: device, autodiff cut, optimiser, freezing, state.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module as _;
use burn::tensor::{Device, FloatDType};
use schemas::frame::{Frame, Frames};
use schemas::handoff::Takeover;
use schemas::node::{
    At, Forwarded, Gradients, Measures, Node, NodeError, NodeSpec, Optimizer, Part, Precision,
    Update, covers,
};

use crate::archive::rules;
use crate::host_node::call_key;
use crate::kind::{Call, Kind, make, read};
use crate::optimizer::{AdamW, Rates};
use crate::parameters::Parameter;
use crate::rng::Key;
use crate::segments::Segments;
use crate::tensors::{AnyTensor, Tensors};
use crate::{device, parameters, vjp, weights};

/// What a backward pass needs from its forward pass.
struct Live {
    leaves: Vec<(String, AnyTensor)>,
    segments: Segments,
    outputs: BTreeMap<String, AnyTensor>,
}

/// A node around a [`Kind`].
pub struct KindNode<K: Kind> {
    kind: K,
    spec: NodeSpec,
    device: Device,
    /// What is computed with, in the node's precision.
    module: K::Module,
    /// f32 values of parameters that change but compute in bf16, by path: a small update would be
    /// rounded away in bf16.
    masters: BTreeMap<String, AnyTensor>,
    key: Key,
    live: BTreeMap<At, Live>,
    gradients: BTreeMap<String, AnyTensor>,
    /// Sum of squares of these gradients, once it is asked for.
    squares: Option<f64>,
    optimizer: Option<AdamW>,
}

impl<K: Kind> KindNode<K> {
    /// Makes the node: parameters drawn, then loaded when the spec names a file.
    pub fn build(spec: &NodeSpec) -> Result<Self, NodeError> {
        let kind: K = read(spec)?;
        let device = device::by_name(&spec.device)?;
        let dtype = float(spec.precision);
        if !device.supports_dtype(dtype) {
            let reason = format!("device `{}` does not compute in {dtype:?}", spec.device);
            return Err(NodeError::Option { option: "precision".to_owned(), reason });
        }
        let home = if spec.backward { device.clone().autodiff() } else { device.clone() };
        let module = make(&kind, spec, &home);
        let trains = |path: &str| {
            let chosen = spec.lora.is_none() || path.contains(".lora.");
            spec.optimizer.is_some() && chosen && spec.trains(path)
        };
        let module = parameters::activate(module, &trains);
        let module = match &spec.weights {
            Some(file) => weights::load_into(&kind, module, (&spec.kind, file))?.0,
            None => module,
        };
        let module = match spec.lora.as_ref().and_then(|lora| lora.from.as_ref()) {
            Some(folder) => weights::adapters::load(&kind, module, folder)?,
            None => module,
        };
        let mut node = Self {
            optimizer: spec.optimizer.as_ref().map(AdamW::new),
            key: Key::new(spec.seed, &spec.name),
            spec: spec.clone(),
            kind,
            device,
            module,
            masters: BTreeMap::new(),
            live: BTreeMap::new(),
            gradients: BTreeMap::new(),
            squares: None,
        };
        node.change(&mut |_, value| value); // draws what is not drawn yet, here and now
        Ok(node)
    }

    /// Gradients of the step so far, by parameter path.
    pub fn gradients(&self) -> &BTreeMap<String, AnyTensor> {
        &self.gradients
    }

    /// Replaces the f32 value of each parameter; what is computed with is rounded from it.
    fn change(&mut self, change: &mut dyn FnMut(&Parameter, AnyTensor) -> AnyTensor) {
        let dtype = float(self.spec.precision);
        let changes = self.spec.optimizer.is_some() || self.spec.ema.is_some();
        let keeps = changes && dtype != FloatDType::F32;
        let masters = &mut self.masters;
        self.module = parameters::map(self.module.clone(), &mut |parameter, value| {
            let value = masters.remove(&parameter.path).unwrap_or(value);
            let value = change(parameter, value.cast(FloatDType::F32));
            if keeps {
                masters.insert(parameter.path.clone(), value.clone());
            }
            value.cast(dtype)
        });
    }

    /// Values of all parameters; in f32 when they change.
    fn values(&self) -> BTreeMap<String, AnyTensor> {
        if self.masters.is_empty() {
            parameters::values(&self.module)
        } else {
            self.masters.clone()
        }
    }

    fn inputs(&self, frames: &Frames, tracked: bool) -> Result<Tensors, NodeError> {
        let mut tensors = Tensors::new();
        for (port, frame) in frames {
            let tensor = AnyTensor::from_frame(frame, &self.device)?;
            let tensor = tensor.cast(float(self.spec.precision));
            let leaf = tracked && self.spec.wants.contains(port);
            tensors.put(port, if leaf { tensor.leaf() } else { tensor });
        }
        Ok(tensors)
    }

    fn run(&mut self, at: At, frames: &Frames, tracked: bool) -> Result<Tensors, NodeError> {
        let training = self.spec.optimizer.is_some();
        let segments = Segments::default();
        let recomputes = tracked && self.spec.checkpointing;
        let key = call_key(&self.key, at);
        let call = Call {
            training,
            accumulate: self.spec.accumulate,
            segments: recomputes.then(|| segments.clone()),
            ..Call::new(key, at)
        };
        let inputs = self.inputs(frames, tracked)?;
        let leaves: Vec<_> = if tracked {
            let wanted = |(port, _): &(&String, &AnyTensor)| self.spec.wants.contains(port);
            inputs.iter().filter(wanted).map(|(p, t)| (p.clone(), t.clone())).collect()
        } else {
            Vec::new()
        };
        if !tracked {
            let module = if self.spec.backward { &self.module.valid() } else { &self.module };
            return self.kind.forward(module, inputs, &call);
        }
        let mut outputs = self.kind.forward(&self.module, inputs, &call)?;
        let measures = std::mem::take(&mut outputs.measures);
        let live = outputs.into_map();
        let mut detached = Tensors::new();
        detached.measures = measures;
        for (port, tensor) in &live {
            detached.put(port, tensor.clone().inner());
        }
        self.live.insert(at, Live { leaves, segments, outputs: live });
        Ok(detached)
    }
}

impl<K: Kind> Node for KindNode<K> {
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError> {
        let mut outputs = self.run(at, &inputs, self.spec.backward)?;
        let mut forwarded = Forwarded::default();
        for (name, value) in std::mem::take(&mut outputs.measures) {
            let value = value.inner().cast(FloatDType::F32).into_scalar::<f32>();
            forwarded.measures.insert(name, f64::from(value));
        }
        for (port, tensor) in outputs.into_map() {
            forwarded.frames.insert(port, tensor.into_frame());
        }
        Ok(forwarded)
    }

    fn backward(&mut self, at: At, gradients: Gradients) -> Result<Frames, NodeError> {
        let mut live = self.live.remove(&at).ok_or(NodeError::NoForward { at })?;
        let mut arrived: BTreeMap<String, AnyTensor> = BTreeMap::new();
        for (port, frame) in gradients {
            let gradient = AnyTensor::from_frame(&frame, &self.device)?.cast(FloatDType::F32);
            add(&mut arrived, port, gradient);
        }
        let mut ends = Vec::new();
        for (port, gradient) in arrived {
            let output = live
                .outputs
                .remove(&port)
                .ok_or_else(|| NodeError::MissingInput { port: port.clone() })?;
            ends.push((output, gradient));
        }
        self.squares = None;
        let Some(all) = vjp::backward(ends) else { return Ok(Frames::new()) };
        let mut upstream: BTreeMap<&String, AnyTensor> = BTreeMap::new();
        live.segments.backward(all, &mut |part| {
            for (path, gradient) in parameters::gradients(&self.module, part) {
                add(&mut self.gradients, path, gradient.cast(FloatDType::F32));
            }
            for (port, leaf) in &live.leaves {
                if let Some(gradient) = leaf.gradient(part) {
                    add(&mut upstream, port, gradient);
                }
            }
        });
        let frame = |(port, leaf): &(String, AnyTensor)| {
            // A port that did not reach the output has no gradient.
            let gradient = upstream.remove(port).unwrap_or_else(|| leaf.clone().zeros());
            (port.clone(), gradient.into_frame())
        };
        Ok(live.leaves.iter().map(frame).collect())
    }

    fn squared_norm(&mut self) -> Result<f64, NodeError> {
        let sum = || self.gradients.values().map(AnyTensor::squared_norm).sum();
        Ok(*self.squares.get_or_insert_with(sum))
    }

    fn update(&mut self, update: &Update) -> Result<Measures, NodeError> {
        let norm = self.squared_norm()?.sqrt();
        let mut gradients = std::mem::take(&mut self.gradients);
        self.squares = None;
        let Some(mut optimizer) = self.optimizer.take() else { return Ok(Measures::new()) };
        let (kind, spec) = (self.kind.clone(), self.spec.optimizer.clone());
        self.change(&mut |parameter, value| {
            let Some(gradient) = gradients.remove(&parameter.path) else { return value };
            let scaled = update.scale != 1.0;
            let gradient = if scaled { gradient.times(update.scale) } else { gradient };
            let rates = rates(&kind, spec.as_ref(), parameter, update.lr);
            optimizer.step(&parameter.path, value, gradient, rates)
        });
        self.optimizer = Some(optimizer);
        Ok(Measures::from([("gradient_norm".to_owned(), norm)]))
    }

    fn weights(&self) -> Frames {
        self.values().into_iter().map(|(path, tensor)| (path, tensor.into_frame())).collect()
    }

    fn adopt(&mut self, weights: Frames) -> Result<(), NodeError> {
        let mut incoming = self.read_all(&weights)?;
        self.change(&mut |parameter, value| incoming.remove(&parameter.path).unwrap_or(value));
        Ok(())
    }

    fn follow(&mut self, weights: Frames) -> Result<(), NodeError> {
        let Some(decay) = self.spec.ema else { return self.adopt(weights) };
        let mut incoming = self.read_all(&weights)?;
        self.change(&mut |parameter, value| match incoming.remove(&parameter.path) {
            None => value,
            Some(new) => value.times(decay).plus(new.times(1.0 - decay)),
        });
        Ok(())
    }

    fn save(&self) -> Part {
        let mut part = Part::default();
        for (path, tensor) in self.values() {
            part.tensors.insert(format!("parameter.{path}"), tensor.into_frame());
        }
        if let Some(optimizer) = &self.optimizer {
            optimizer.save(&mut part);
        }
        part
    }

    fn load(&mut self, part: &Part) -> Result<(), NodeError> {
        self.take_over(part, &Takeover { moments: true, ..Takeover::default() })
    }

    fn take_over(&mut self, part: &Part, takeover: &Takeover) -> Result<(), NodeError> {
        let frames: Frames = part
            .tensors
            .iter()
            .filter_map(|(k, f)| Some((k.strip_prefix("parameter.")?.to_owned(), f.clone())))
            .collect();
        let mut saved = self.read_all(&frames)?;
        for (path, rule) in &takeover.rules {
            let Some(value) = saved.remove(path) else { continue };
            let made = rules::apply(rule, value, &self.device);
            let made = made.map_err(|reason| NodeError::State { reason })?;
            saved.insert(path.clone(), made);
        }
        // Adapters come with a stage that asks for them.
        let new_adapters = self.spec.lora.is_some() && !saved.keys().any(|k| k.contains(".lora."));
        let mut missing = Vec::new();
        let mut taken = BTreeSet::new();
        self.change(&mut |parameter, value| {
            let path = &parameter.path;
            match saved.get(path) {
                _ if takeover.starts_fresh(path) => value,
                Some(new) if new.shape() == parameter.shape => {
                    taken.insert(path.clone());
                    new.clone()
                }
                None if new_adapters && path.contains(".lora.") => value,
                _ => {
                    missing.push(path.clone());
                    value
                }
            }
        });
        let left = |path: &&String| {
            let dropped = takeover.dropped.iter().any(|prefix| covers(prefix, path));
            !taken.contains(*path) && !takeover.starts_fresh(path) && !dropped
        };
        let unknown: Vec<_> = saved.keys().filter(left).collect();
        if !missing.is_empty() || !unknown.is_empty() {
            let reason = format!("missing or of another shape: {missing:?}; unknown: {unknown:?}");
            return Err(NodeError::State { reason });
        }
        self.rewind();
        let device = self.device.clone();
        if let Some(optimizer) = self.optimizer.as_mut().filter(|_| takeover.moments) {
            optimizer.load(part, &|frame| AnyTensor::from_frame(frame, &device))?;
            optimizer.retain(|path| taken.contains(path) && !takeover.rules.contains_key(path));
        }
        Ok(())
    }

    fn take_gradients(&mut self) -> Frames {
        self.squares = None;
        let gradients = std::mem::take(&mut self.gradients);
        gradients.into_iter().map(|(path, tensor)| (path, tensor.into_frame())).collect()
    }

    fn add_gradients(&mut self, gradients: Frames) -> Result<(), NodeError> {
        let incoming = self.read_all(&gradients)?;
        self.squares = None;
        for (path, gradient) in incoming {
            add(&mut self.gradients, path, gradient);
        }
        Ok(())
    }

    fn rewind(&mut self) {
        self.live.clear();
        self.gradients.clear();
        self.squares = None;
    }
}

impl<K: Kind> KindNode<K> {
    fn read_all(&self, frames: &Frames) -> Result<BTreeMap<String, AnyTensor>, NodeError> {
        let read = |(path, frame): (&String, &Frame)| {
            let tensor = AnyTensor::from_frame(frame, &self.device)?;
            Ok((path.clone(), tensor.cast(FloatDType::F32)))
        };
        frames.iter().map(read).collect()
    }
}

fn float(precision: Precision) -> FloatDType {
    match precision {
        Precision::F32 => FloatDType::F32,
        Precision::Bf16 => FloatDType::BF16,
    }
}

fn rates<K: Kind>(kind: &K, optimizer: Option<&Optimizer>, of: &Parameter, lr: f64) -> Rates {
    let factor = optimizer.map_or(1.0, |o| o.layer_factor(kind.layer(&of.path), kind.layers()));
    Rates { lr: lr * factor, decays: kind.decays(&of.path, &of.shape) }
}

fn add<P: Ord>(sums: &mut BTreeMap<P, AnyTensor>, name: P, gradient: AnyTensor) {
    let sum = match sums.remove(&name) {
        Some(sum) => sum.plus(gradient),
        None => gradient,
    };
    sums.insert(name, sum);
}
