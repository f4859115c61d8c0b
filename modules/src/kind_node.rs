//! Any kind as a node: device, autodiff cut, optimiser, freezing, state.

use std::collections::BTreeMap;

use burn::module::Module as _;
use burn::tensor::Device;
use schemas::frame::{Frame, Frames};
use schemas::node::{
    At, Forwarded, Gradients, Measures, Node, NodeError, NodeSpec, Part, Precision, Update,
};

use crate::host_node::call_key;
use crate::init::Init;
use crate::kind::{Call, Kind, read};
use crate::optimizer::{AdamW, Rates};
use crate::rng::Key;
use crate::tensors::{AnyTensor, Tensors};
use crate::{device, parameters, vjp, weights};

/// What a backward pass needs from its forward pass.
struct Live {
    leaves: Vec<(String, AnyTensor)>,
    outputs: BTreeMap<String, AnyTensor>,
}

/// A node around a [`Kind`].
pub struct KindNode<K: Kind> {
    kind: K,
    spec: NodeSpec,
    device: Device,
    module: K::Module,
    key: Key,
    live: BTreeMap<At, Live>,
    /// Inputs kept instead of activations, when the forward pass is recomputed.
    kept: BTreeMap<At, Frames>,
    gradients: BTreeMap<String, AnyTensor>,
    optimizer: Option<AdamW>,
}

impl<K: Kind> KindNode<K> {
    /// Makes the node: parameters drawn, then loaded when the spec names a file.
    pub fn build(spec: &NodeSpec) -> Result<Self, NodeError> {
        let kind: K = read(spec)?;
        if spec.precision != Precision::F32 {
            let (option, reason) =
                ("precision".to_owned(), "only f32 is computed so far".to_owned());
            return Err(NodeError::Option { option, reason });
        }
        let device = device::by_name(&spec.device)?;
        let home = if spec.backward { device.clone().autodiff() } else { device.clone() };
        let module = kind.init(&spec.dims, &Init::new(spec.seed, &spec.name, &home));
        let trains =
            |path: &str| spec.optimizer.is_some() && !spec.frozen.iter().any(|f| covers(f, path));
        let module = parameters::activate(module, &trains);
        let module = match &spec.weights {
            Some(file) => weights::load_into(&kind, module, file)?.0,
            None => module,
        };
        parameters::values(&module); // draws those that are not drawn yet, here and now
        Ok(Self {
            optimizer: spec.optimizer.as_ref().map(AdamW::new),
            key: Key::new(spec.seed, &spec.name),
            spec: spec.clone(),
            kind,
            device,
            module,
            live: BTreeMap::new(),
            kept: BTreeMap::new(),
            gradients: BTreeMap::new(),
        })
    }

    /// Gradients of the step so far, by parameter path.
    pub fn gradients(&self) -> &BTreeMap<String, AnyTensor> {
        &self.gradients
    }

    fn inputs(&self, frames: &Frames, tracked: bool) -> Result<Tensors, NodeError> {
        let mut tensors = Tensors::new();
        for (port, frame) in frames {
            let tensor = AnyTensor::from_frame(frame, &self.device)?;
            let leaf = tracked && self.spec.wants.contains(port);
            tensors.put(port, if leaf { tensor.leaf() } else { tensor });
        }
        Ok(tensors)
    }

    fn run(&mut self, at: At, frames: &Frames, tracked: bool) -> Result<Tensors, NodeError> {
        let training = self.spec.optimizer.is_some();
        let call = Call { key: call_key(&self.key, at), training, at };
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
        self.live.insert(at, Live { leaves, outputs: live });
        Ok(detached)
    }

    fn rates(&self, path: &str, shape: &[usize], lr: f64) -> Rates {
        let (layer, blocks) = (self.kind.layer(path), self.kind.layers());
        let optimizer = self.spec.optimizer.as_ref();
        let factor = optimizer.map_or(1.0, |o| o.layer_factor(layer, blocks));
        Rates { lr: lr * factor, decays: self.kind.decays(path, shape) }
    }
}

impl<K: Kind> Node for KindNode<K> {
    fn forward(&mut self, at: At, inputs: Frames) -> Result<Forwarded, NodeError> {
        let tracked = self.spec.backward && !self.spec.checkpointing;
        let mut outputs = self.run(at, &inputs, tracked)?;
        if self.spec.backward && self.spec.checkpointing {
            self.kept.insert(at, inputs);
        }
        let mut forwarded = Forwarded::default();
        for (name, value) in std::mem::take(&mut outputs.measures) {
            let value = value.inner().into_scalar::<f32>();
            forwarded.measures.insert(name, f64::from(value));
        }
        for (port, tensor) in outputs.into_map() {
            forwarded.frames.insert(port, tensor.into_frame());
        }
        Ok(forwarded)
    }

    fn backward(&mut self, at: At, gradients: Gradients) -> Result<Frames, NodeError> {
        if let Some(inputs) = self.kept.remove(&at) {
            self.run(at, &inputs, true)?;
        }
        let mut live = self.live.remove(&at).ok_or(NodeError::NoForward { at })?;
        let mut arrived: BTreeMap<String, AnyTensor> = BTreeMap::new();
        for (port, frame) in gradients {
            let gradient = AnyTensor::from_frame(&frame, &self.device)?;
            let sum = match arrived.remove(&port) {
                Some(sum) => sum.plus(gradient),
                None => gradient,
            };
            arrived.insert(port, sum);
        }
        let mut ends = Vec::new();
        for (port, gradient) in arrived {
            let output = live
                .outputs
                .remove(&port)
                .ok_or_else(|| NodeError::MissingInput { port: port.clone() })?;
            ends.push((output, gradient));
        }
        let Some(mut all) = vjp::backward(ends) else { return Ok(Frames::new()) };
        for (path, gradient) in parameters::gradients(&self.module, &mut all) {
            let sum = match self.gradients.remove(&path) {
                Some(sum) => sum.plus(gradient),
                None => gradient,
            };
            self.gradients.insert(path, sum);
        }
        let mut upstream = Frames::new();
        for (port, leaf) in live.leaves {
            let gradient = leaf_gradient(leaf, &mut all);
            upstream.insert(port, gradient.into_frame());
        }
        Ok(upstream)
    }

    fn squared_norm(&mut self) -> Result<f64, NodeError> {
        Ok(self.gradients.values().map(AnyTensor::squared_norm).sum())
    }

    fn update(&mut self, update: &Update) -> Result<Measures, NodeError> {
        let norm = self.squared_norm()?.sqrt();
        let mut gradients = std::mem::take(&mut self.gradients);
        let Some(mut optimizer) = self.optimizer.take() else { return Ok(Measures::new()) };
        let module = self.module.clone();
        let module = parameters::map(module, &mut |parameter, value| {
            let Some(gradient) = gradients.remove(&parameter.path) else { return value };
            let scaled = update.scale != 1.0;
            let gradient = if scaled { gradient.times(update.scale) } else { gradient };
            let rates = self.rates(&parameter.path, &parameter.shape, update.lr);
            optimizer.step(&parameter.path, value, gradient, rates)
        });
        self.module = module;
        self.optimizer = Some(optimizer);
        Ok(Measures::from([("gradient_norm".to_owned(), norm)]))
    }

    fn weights(&self) -> Frames {
        parameters::values(&self.module)
            .into_iter()
            .map(|(path, tensor)| (path, tensor.into_frame()))
            .collect()
    }

    fn follow(&mut self, weights: Frames) -> Result<(), NodeError> {
        let decay = self.spec.ema.unwrap_or(0.0);
        let mut incoming = self.read_all(&weights)?;
        let module = self.module.clone();
        self.module = parameters::map(module, &mut |parameter, value| match incoming
            .remove(&parameter.path)
        {
            None => value,
            Some(new) if decay == 0.0 => new,
            Some(new) => value.times(decay).plus(new.times(1.0 - decay)),
        });
        Ok(())
    }

    fn save(&self) -> Part {
        let mut part = Part::default();
        for (path, tensor) in parameters::values(&self.module) {
            part.tensors.insert(format!("parameter.{path}"), tensor.into_frame());
        }
        if let Some(optimizer) = &self.optimizer {
            optimizer.save(&mut part);
        }
        part
    }

    fn load(&mut self, part: &Part) -> Result<(), NodeError> {
        let frames: Frames = part
            .tensors
            .iter()
            .filter_map(|(k, f)| Some((k.strip_prefix("parameter.")?.to_owned(), f.clone())))
            .collect();
        let mut saved = self.read_all(&frames)?;
        let mut missing = Vec::new();
        let module = parameters::map(self.module.clone(), &mut |parameter, value| match saved
            .remove(&parameter.path)
        {
            Some(new) if new.shape() == parameter.shape => new,
            _ => {
                missing.push(parameter.path.clone());
                value
            }
        });
        if !missing.is_empty() || !saved.is_empty() {
            let unknown: Vec<_> = saved.keys().cloned().collect();
            let reason = format!("missing or of another shape: {missing:?}; unknown: {unknown:?}");
            return Err(NodeError::State { reason });
        }
        self.module = module;
        self.rewind();
        let device = self.device.clone();
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.load(part, &|frame| AnyTensor::from_frame(frame, &device))?;
        }
        Ok(())
    }

    fn rewind(&mut self) {
        self.live.clear();
        self.kept.clear();
        self.gradients.clear();
    }
}

impl<K: Kind> KindNode<K> {
    fn read_all(&self, frames: &Frames) -> Result<BTreeMap<String, AnyTensor>, NodeError> {
        let read = |(path, frame): (&String, &Frame)| {
            Ok((path.clone(), AnyTensor::from_frame(frame, &self.device)?))
        };
        frames.iter().map(read).collect()
    }
}

/// Whether a frozen prefix covers a parameter path: whole names only.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn leaf_gradient(leaf: AnyTensor, all: &mut burn::tensor::Gradients) -> AnyTensor {
    use crate::tensors::each_float;
    each_float!(leaf, t => {
        match t.grad_remove(all) {
            Some(gradient) => gradient.inner().into(),
            None => t.inner().zeros_like().into(), // the port did not reach the output
        }
    }, _other => unreachable!("gradients are wanted at float ports only"))
}
