//! AdamW over the parameters of one node, one group of rates per parameter.
//!
//! The update of one tensor is burn's AdamW (Loshchilov and Hutter 2019). State is kept by path,
//! so that it is saved, restored and carried over between stages with the parameters.

use std::collections::BTreeMap;

use burn::optim::{AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer as _};
use burn::tensor::Tensor;
use schemas::frame::Frame;
use schemas::node::{NodeError, Optimizer, Part};

use crate::tensors::{AnyTensor, Ranked, each_float};

/// First and second moment of one parameter.
#[derive(Debug, Clone)]
struct Moments {
    steps: usize,
    first: AnyTensor,
    second: AnyTensor,
}

/// Optimiser state of a node.
#[derive(Debug)]
pub struct AdamW {
    config: Optimizer,
    moments: BTreeMap<String, Moments>,
}

/// Rates of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl AdamW {
    /// No state yet.
    pub fn new(config: &Optimizer) -> Self {
        Self { config: config.clone(), moments: BTreeMap::new() }
    }

    /// The parameter after one update with its gradient.
    pub fn step(
        &mut self,
        path: &str,
        value: AnyTensor,
        gradient: AnyTensor,
        rates: Rates,
    ) -> AnyTensor {
        let decay = if rates.decays { self.config.weight_decay } else { 0.0 };
        let adamw = AdamWConfig::new()
            .with_beta_1(self.config.betas[0] as f32)
            .with_beta_2(self.config.betas[1] as f32)
            .with_epsilon(self.config.eps as f32)
            .with_weight_decay(decay as f32)
            .build();
        let old = self.moments.remove(path);
        let (value, moments) = each_float!(value, v => {
            step_one(&adamw, v, gradient, old, rates.lr)
        }, _other => unreachable!("parameters are floats"));
        self.moments.insert(path.to_owned(), moments);
        value
    }

    /// Adds the state to a part.
    pub fn save(&self, part: &mut Part) {
        for (path, moments) in &self.moments {
            let mut put = |name: &str, tensor: &AnyTensor| {
                part.tensors.insert(format!("adamw.{name}.{path}"), tensor.clone().into_frame())
            };
            put("first", &moments.first);
            put("second", &moments.second);
            part.words.insert(format!("adamw.steps.{path}"), moments.steps.to_string());
        }
    }

    /// Takes the state from a part; parameters without state start fresh.
    pub fn load(
        &mut self,
        part: &Part,
        read: &dyn Fn(&Frame) -> Result<AnyTensor, NodeError>,
    ) -> Result<(), NodeError> {
        self.moments.clear();
        for (name, steps) in &part.words {
            let Some(path) = name.strip_prefix("adamw.steps.") else { continue };
            let tensor = |which: &str| {
                let key = format!("adamw.{which}.{path}");
                let frame = part
                    .tensors
                    .get(&key)
                    .ok_or_else(|| NodeError::State { reason: format!("`{key}` is missing") })?;
                read(frame)
            };
            let steps = steps.parse().map_err(|_| NodeError::State {
                reason: format!("`{name}` is `{steps}`, not a number"),
            })?;
            let moments = Moments { steps, first: tensor("first")?, second: tensor("second")? };
            self.moments.insert(path.to_owned(), moments);
        }
        Ok(())
    }
}

fn step_one<const D: usize>(
    adamw: &burn::optim::AdamW,
    value: Tensor<D>,
    gradient: AnyTensor,
    old: Option<Moments>,
    lr: f64,
) -> (AnyTensor, Moments)
where
    Tensor<D>: Ranked,
{
    let state = old.map(|old| AdamWState {
        momentum: AdaptiveMomentumState {
            time: old.steps,
            moment_1: old.first.into_float::<D>(),
            moment_2: old.second.into_float::<D>(),
            max_moment_2: None,
        },
    });
    let (value, state) = adamw.step(lr, value, gradient.into_float::<D>(), state);
    let momentum = state.expect("AdamW keeps a state").momentum;
    let moments = Moments {
        steps: momentum.time,
        first: AnyTensor::float(momentum.moment_1),
        second: AnyTensor::float(momentum.moment_2),
    };
    (AnyTensor::float(value), moments)
}
