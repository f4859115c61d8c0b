//! How parameters start: every draw is keyed by (seed, node, number of the parameter).
//!
//! A parameter is made when it is first read. The key makes its value independent of that
//! moment, of the thread and of the device's own generator, so a node starts with the same
//! weights wherever it is placed. Counting parameters makes none.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Shape, Tensor, TensorData};
use schemas::lora::Lora;

use crate::layers::linear::{Adapter, Linear};
use crate::rng::Key;

/// Makes parameters of one node.
#[derive(Debug, Clone)]
pub struct Init {
    key: Key,
    device: Device,
    made: Rc<Cell<u64>>,
    factor: f64,
    /// Matrices of linear layers, in the order in which they are made.
    linears: Rc<RefCell<Vec<ParamId>>>,
    /// Numbers of the linear layers that get an adapter.
    adapted: Option<Rc<(Lora, BTreeSet<usize>)>>,
}

impl Init {
    /// Parameters of `node`, on `device`.
    pub fn new(seed: u64, node: &str, device: &Device) -> Self {
        let key = Key::new(seed, node).with("parameters");
        Self {
            key,
            device: device.clone(),
            made: Rc::default(),
            factor: 1.0,
            linears: Rc::default(),
            adapted: None,
        }
    }

    /// The same draws, with an adapter at the linear layers of these numbers.
    pub fn with_lora(self, lora: Lora, numbers: BTreeSet<usize>) -> Self {
        Self { adapted: Some(Rc::new((lora, numbers))), ..self }
    }

    /// Matrices of the linear layers made so far; their places are the layers' numbers.
    pub fn linears(&self) -> Vec<ParamId> {
        self.linears.borrow().clone()
    }

    /// The same draws with every normal deviation as if σ 0.02 were `sigma`: the published 0.02
    /// suits widths above 1000, narrow models learn faster with about `1 / sqrt(width)`.
    pub fn with_sigma(&self, sigma: f64) -> Self {
        Self { factor: sigma / 0.02, ..self.clone() }
    }

    /// The device that parameters are made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Truncated normal of deviation `sigma`, cut at 2 (absolute), times `scale`.
    pub fn normal<const D: usize>(&self, shape: [usize; D], sigma: f64) -> Param<Tensor<D>> {
        let sigma = self.factor * sigma;
        self.draw(shape, move |rng| rng.truncated_normal(sigma, 2.0))
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&self, shape: [usize; D], bound: f64) -> Param<Tensor<D>> {
        self.draw(shape, move |rng| rng.between(-bound, bound))
    }

    /// One value everywhere.
    pub fn constant<const D: usize>(&self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.param(shape, move |n| vec![value; n])
    }

    /// Given values, row-major.
    pub fn table<const D: usize>(&self, shape: [usize; D], values: Vec<f32>) -> Param<Tensor<D>> {
        self.param(shape, move |_| values)
    }

    /// A table computed when it is first read.
    pub fn computed<const D: usize>(
        &self,
        shape: [usize; D],
        values: impl FnOnce() -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        self.param(shape, move |_| values())
    }

    /// A linear layer: weights truncated normal σ 0.02 divided by `shrink`, bias 0.
    pub fn linear(&self, inputs: usize, outputs: usize, bias: bool, shrink: f64) -> Linear {
        let weight = self.normal([inputs, outputs], 0.02 / shrink);
        let bias = bias.then(|| self.constant([outputs], 0.0));
        self.linear_of(weight, bias)
    }

    /// A linear layer of these parameters, with an adapter where one is wanted.
    pub fn linear_of(&self, weight: Param<Tensor<2>>, bias: Option<Param<Tensor<1>>>) -> Linear {
        let number = self.linears.borrow().len();
        self.linears.borrow_mut().push(weight.id);
        let adapted = self.adapted.as_deref().filter(|(_, numbers)| numbers.contains(&number));
        let adapter = |(lora, _): &(Lora, BTreeSet<usize>)| {
            // Draws of its own, so that those of all other parameters stay.
            let key = self.key.with("lora").with_number(number as u64);
            let beside = Self { key, made: Rc::default(), ..self.clone() };
            Adapter::new(weight.lazy_shape().dims(), lora, &beside)
        };
        let lora = adapted.map(adapter);
        Linear { weight, bias, lora }
    }

    fn draw<const D: usize>(
        &self,
        shape: [usize; D],
        one: impl Fn(&mut crate::rng::Rng) -> f64 + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        let key = self.key.with_number(self.made.get());
        self.param(shape, move |n| {
            let mut rng = key.rng();
            (0..n).map(|_| one(&mut rng) as f32).collect()
        })
    }

    fn param<const D: usize>(
        &self,
        shape: [usize; D],
        values: impl FnOnce(usize) -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        self.made.set(self.made.get() + 1);
        let count = shape.iter().product();
        Param::uninitialized(
            ParamId::new(),
            move |device: &Device, grad| {
                let data = TensorData::new(values(count), shape);
                Tensor::from_data(data, device).set_require_grad(grad)
            },
            self.device.clone(),
            true,
            Shape::from(shape),
        )
    }
}
