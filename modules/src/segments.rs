//! Activation checkpointing: the activations of a block are computed again when they are needed.
//!
//! A forward pass cuts the graph at every block: the block runs without autodiff, and only its
//! input is kept (Chen et al. 2016). The backward pass goes through the cuts from the end: it runs
//! a block again, with autodiff, and hands the gradient of its input on. The mechanism is the cut
//! between actors, inside a node.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module as _;
use burn::tensor::{Gradients, Tensor};

use crate::layers::block::{Block, Context};
use crate::vjp;

/// The blocks of one forward pass, in the order in which they ran.
#[derive(Clone, Default)]
pub struct Segments(Arc<Mutex<Vec<Segment>>>);

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Segments")
    }
}

/// One block, cut out of the graph.
struct Segment {
    block: Block,
    context: Context,
    /// Where the graph before the block ends.
    input: Tensor<3>,
    /// The leaf with which the graph after the block begins.
    output: Tensor<3>,
}

impl Segments {
    /// Runs a block on `[B, N, D]` without keeping its activations.
    pub fn run(&self, block: &Block, input: Tensor<3>, context: Context) -> Tensor<3> {
        let inner = with_memory(&context, Tensor::inner);
        let value = block.valid().forward(input.clone().inner(), &inner);
        let output = value.autodiff().require_grad();
        let segment = Segment { block: block.clone(), context, input, output: output.clone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(segment);
        output
    }

    /// Goes back through all blocks. `gradients` are those of the graph after the last one;
    /// `each` sees them, and those of each part before, once.
    pub(crate) fn backward(&self, mut gradients: Gradients, each: &mut dyn FnMut(&mut Gradients)) {
        let segments = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut arrived: Vec<Option<Tensor<3>>> = vec![None; segments.len()];
        let mut absorb = |gradients: &mut Gradients, arrived: &mut [Option<Tensor<3>>]| {
            for (segment, sum) in segments.iter().zip(arrived) {
                let Some(new) = segment.output.grad_remove(gradients) else { continue };
                *sum = Some(match sum.take() {
                    Some(sum) => sum + new.inner(),
                    None => new.inner(),
                });
            }
            each(gradients);
        };
        absorb(&mut gradients, &mut arrived);
        for (number, segment) in segments.iter().enumerate().rev() {
            let Some(gradient) = arrived[number].take() else { continue };
            let new = |t: Tensor<3>| t.inner().autodiff().require_grad();
            let leaf = new(segment.input.clone());
            let context = with_memory(&segment.context, new);
            let output = segment.block.forward(leaf.clone(), &context);
            let Some(mut inside) = vjp::backward(vec![(output.into(), gradient.into())]) else {
                continue;
            };
            let memory = |context: &Context| context.memory.as_ref().map(|m| m.tokens.clone());
            let inputs = [(Some(leaf), Some(segment.input.clone()))];
            let inputs = inputs.into_iter().chain([(memory(&context), memory(&segment.context))]);
            let mut before = Vec::new();
            for (leaf, input) in inputs {
                let (Some(leaf), Some(input)) = (leaf, input) else { continue };
                let Some(upstream) = leaf.grad_remove(&mut inside) else { continue };
                before.push((input.into(), upstream.inner().into()));
            }
            absorb(&mut inside, &mut arrived);
            if let Some(mut before) = vjp::backward(before) {
                absorb(&mut before, &mut arrived);
            }
        }
    }
}

/// The same, with another memory.
fn with_memory(context: &Context, of: impl Fn(Tensor<3>) -> Tensor<3>) -> Context {
    let mut context = context.clone();
    if let Some(memory) = &mut context.memory {
        memory.tokens = of(memory.tokens.clone());
    }
    context
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::init::Init;
    use crate::layers::block::{self, BlocksConfig};
    use crate::parameters;

    #[test]
    fn a_block_leaves_no_graph_behind_and_gives_its_gradients_later() {
        let device = Device::flex().autodiff();
        let blocks =
            block::blocks(&BlocksConfig::videomae(8, 1, 2, 16), &Init::new(1, "b", &device));
        let blocks = parameters::activate(blocks, &|_| true);
        let x = Tensor::<3>::from_data([[[0.5; 8], [-1.0; 8]]], &Device::flex());
        let gradient = || Tensor::<3>::from_data([[[1.0; 8], [2.0; 8]]], &Device::flex());
        let kept = blocks[0].forward(x.clone().autodiff(), &Context::default());
        let mut all = vjp::backward(vec![(kept.clone().into(), gradient().into())]).unwrap();
        let expected = parameters::gradients(&blocks, &mut all);

        let segments = Segments::default();
        let again = segments.run(&blocks[0], x.autodiff(), Context::default());
        assert_eq!(again.clone().into_data(), kept.into_data());
        let mut after = vjp::backward(vec![(again.clone().into(), gradient().into())]).unwrap();
        assert!(parameters::gradients(&blocks, &mut after).is_empty(), "the graph is cut");
        let after = vjp::backward(vec![(again.into(), gradient().into())]).unwrap();
        let mut found = std::collections::BTreeMap::new();
        segments.backward(after, &mut |part| found.extend(parameters::gradients(&blocks, part)));
        assert_eq!(found.len(), expected.len());
        for (path, gradient) in expected {
            assert_eq!(found[&path].to_data(), gradient.to_data(), "{path}");
        }
    }
}
