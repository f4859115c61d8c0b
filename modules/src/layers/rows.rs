//! Rows of tensors: samples that are chosen by number or put one after the other.

use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::tensors::{AnyTensor, Ranked, Tensors};

/// What the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Floats `N L D`.
    #[default]
    Tokens,
    /// Floats `N D`.
    Vectors,
    /// Ints `N L`: words, masks.
    Ids,
    /// Ints `N`: labels, ids of samples.
    Numbers,
}

impl Rows {
    /// Dims behind the first.
    const fn inner(self) -> &'static str {
        match self {
            Self::Tokens => " L D",
            Self::Vectors => " D",
            Self::Ids => " L",
            Self::Numbers => "",
        }
    }

    const fn ints(self) -> bool {
        matches!(self, Self::Ids | Self::Numbers)
    }

    /// Adds an input with so many rows.
    pub fn input(self, ports: Ports, name: &str, rows: &str) -> Ports {
        let dims = format!("{rows}{}", self.inner());
        if self.ints() { ports.stopped(name, dims).int() } else { ports.input(name, dims) }
    }

    /// Adds an output with so many rows.
    pub fn output(self, ports: Ports, name: &str, rows: &str) -> Ports {
        let dims = format!("{rows}{}", self.inner());
        if self.ints() { ports.plain(name, dims).int() } else { ports.output(name, dims) }
    }

    /// Applies one of two functions to the tensors of some ports, all of this class.
    pub fn map(
        self,
        inputs: &mut Tensors,
        ports: &[&str],
        change: impl Change,
    ) -> Result<AnyTensor, NodeError> {
        Ok(match self {
            Self::Tokens => change.floats(all::<Tensor<3>>(inputs, ports)?).into(),
            Self::Vectors => change.floats(all::<Tensor<2>>(inputs, ports)?).into(),
            Self::Ids => change.ints(all::<Tensor<2, Int>>(inputs, ports)?).into(),
            Self::Numbers => change.ints(all::<Tensor<1, Int>>(inputs, ports)?).into(),
        })
    }
}

/// One function for tensors of every class and rank.
pub trait Change {
    /// Of floats.
    fn floats<const R: usize>(&self, tensors: Vec<Tensor<R>>) -> Tensor<R>;
    /// Of ints.
    fn ints<const R: usize>(&self, tensors: Vec<Tensor<R, Int>>) -> Tensor<R, Int>;
}

/// The rows of these numbers, of one tensor.
#[derive(Debug, Clone)]
pub struct Chosen(pub Tensor<1, Int>);

impl Change for Chosen {
    fn floats<const R: usize>(&self, mut tensors: Vec<Tensor<R>>) -> Tensor<R> {
        tensors.swap_remove(0).select(0, self.0.clone())
    }

    fn ints<const R: usize>(&self, mut tensors: Vec<Tensor<R, Int>>) -> Tensor<R, Int> {
        tensors.swap_remove(0).select(0, self.0.clone())
    }
}

/// One tensor after the other, along this dim.
#[derive(Debug, Clone, Copy)]
pub struct Joined(pub usize);

impl Change for Joined {
    fn floats<const R: usize>(&self, tensors: Vec<Tensor<R>>) -> Tensor<R> {
        Tensor::cat(tensors, self.0)
    }

    fn ints<const R: usize>(&self, tensors: Vec<Tensor<R, Int>>) -> Tensor<R, Int> {
        Tensor::cat(tensors, self.0)
    }
}

fn all<T: Ranked>(inputs: &mut Tensors, ports: &[&str]) -> Result<Vec<T>, NodeError> {
    let mut found = Vec::with_capacity(ports.len());
    for port in ports {
        found.extend(inputs.take_if(port)?);
    }
    if found.is_empty() {
        return Err(NodeError::MissingInput {
            port: ports.first().copied().unwrap_or("").to_owned(),
        });
    }
    Ok(found)
}
