//! Heads that map a student's features to a teacher's.
//!
//! Source: Wang et al. 2024, "InternVideo2" (arXiv 2403.15377); recipes §1.5.

use burn::module::Module;
use burn::tensor::{FloatDType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::linear::Linear;
use super::mlp::{Activation, Mlp};
use super::norm::{Norm, unit};
use crate::init::Init;

/// How a head maps the student's channels to the teacher's, before its LayerNorm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// One matrix.
    #[default]
    Linear,
    /// Linear, exact GELU, linear; the hidden width is the student's.
    Mlp,
}

/// Projection to the teacher's width, then LayerNorm.
#[derive(Module, Debug)]
pub struct Head {
    /// `[D, E]`, with `head: linear`.
    pub head: Option<Linear>,
    /// With `head: mlp`.
    pub mlp: Option<Mlp>,
    /// Over the teacher's channels.
    pub norm: Norm,
}

impl Head {
    /// A head of this form.
    pub fn new(kind: HeadKind, inputs: usize, outputs: usize, init: &Init) -> Self {
        let mlp = || Mlp::new([inputs, inputs, outputs], Activation::Gelu, 1.0, init);
        Self {
            head: (kind == HeadKind::Linear).then(|| init.linear(inputs, outputs, true, 1.0)),
            mlp: (kind == HeadKind::Mlp).then(mlp),
            norm: Norm::layer(outputs, 1e-5, init),
        }
    }

    /// `[.., D]`; returns unit vectors `[.., E]`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let x = match (&self.head, &self.mlp) {
            (Some(linear), _) => linear.forward(x),
            (None, Some(mlp)) => mlp.forward(x),
            (None, None) => x,
        };
        unit(self.norm.forward(x).cast(FloatDType::F32))
    }
}
