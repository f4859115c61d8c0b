//! AdamW over the parameters of one node, one group of rates per parameter.
//!
//! State is kept by path, so that it is saved, restored and carried over between stages with the
//! parameters.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use schemas::frame::Frame;
use schemas::node::{NodeError, Optimizer, Part};

use crate::adamw_ops::{Factors, adamw};
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
        let old = self.moments.remove(path).unwrap_or_else(|| Moments {
            steps: 0,
            first: value.clone().zeros(),
            second: value.clone().zeros(),
        });
        let steps = old.steps + 1;
        let betas = self.config.betas;
        let after = |beta: f64| 1.0 - beta.powi(i32::try_from(steps).unwrap_or(i32::MAX));
        let factors = Factors {
            betas,
            bias: betas.map(after),
            eps: self.config.eps,
            lr: rates.lr,
            keep: 1.0 - rates.lr * decay,
        };
        let (value, moments) = each_float!(value, v => {
            step_one(v, gradient, old, factors)
        }, _other => unreachable!("parameters are floats"));
        self.moments.insert(path.to_owned(), Moments { steps, ..moments });
        value
    }

    /// Forgets the state of parameters that are not the ones it was made with.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.moments.retain(|path, _| keep(path));
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
    value: Tensor<D>,
    gradient: AnyTensor,
    old: Moments,
    factors: Factors,
) -> (AnyTensor, Moments)
where
    Tensor<D>: Ranked,
{
    let moments = [old.first.into_float::<D>(), old.second.into_float::<D>()];
    let (value, first, second) = adamw(value, gradient.into_float::<D>(), moments, factors);
    let (first, second) = (AnyTensor::float(first), AnyTensor::float(second));
    (AnyTensor::float(value), Moments { steps: old.steps, first, second })
}
