//! Who looks at whom in a block.

use burn::tensor::Tensor;

use super::attention::Look;
use super::block::{Block, Context, look};

impl Block {
    /// The attention map `[B, heads, N, N]` of tokens `[B, N, D]` that enter the block.
    pub fn map(&self, x: Tensor<3>, context: &Context) -> Tensor<4> {
        let x = self.entering(x, self.norm1.as_ref());
        self.attn.map_of(x.clone(), x, &look(context, &None))
    }

    /// The rows of [`Block::map`] of the first `count` tokens, when every token sees all.
    pub fn map_of_first(&self, x: Tensor<3>, count: usize) -> Tensor<4> {
        let x = self.entering(x, self.norm1.as_ref());
        self.attn.map_of(x.clone().slice_dim(1, 0..count), x, &Look::default())
    }

    /// How much each of the tokens `[B, N, D]` that enter the block is looked at by all, `[B, N]`.
    pub fn received(&self, x: Tensor<3>, context: &Context) -> Tensor<2> {
        self.attn.received(self.entering(x, self.norm1.as_ref()), context.rope.as_ref())
    }

    /// The cross-attention map `[B, heads, N, M]` of tokens `[B, N, D]` that enter the block.
    pub fn cross_map(&self, x: Tensor<3>, context: &Context) -> Option<Tensor<4>> {
        let (cross, memory) = (self.cross.as_ref()?, context.memory.as_ref()?);
        let attend = |x| self.attn.forward(x, look(context, &None));
        let x = self.branch(x, self.norm1.as_ref(), self.ls1.as_ref(), &None, attend);
        let asking = if self.second.is_some() { context.first } else { x.dims()[1] };
        let x = self.entering(x.slice_dim(1, 0..asking), Some(&cross.norm));
        let look = Look { mask: Some(&memory.mask), ..Look::default() };
        Some(cross.attn.map_of(x, memory.tokens.clone(), &look))
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::{BlocksConfig, blocks};
    use super::super::rope::Rope;
    use super::*;
    use crate::init::Init;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn what_tokens_receive_is_the_mean_of_the_map() {
        let device = Device::flex();
        let block = &blocks(&BlocksConfig::vit(24, 1, 2, 8), &Init::new(1, "x", &device))[0];
        let rope = Some(Rope::lattice([3, 10, 10], None, 12, &device));
        let context = Context { rope, ..Context::default() };
        let x = Tensor::<3>::random([2, 300, 24], Distribution::Normal(0.0, 1.0), &device);
        let map = block.map(x.clone(), &context);
        let expected: Tensor<2> = map.mean_dim(1).mean_dim(2).reshape([2, 300]);
        let found = block.received(x, &context);
        let off = (found.clone() - expected).abs().max().into_scalar::<f32>();
        assert!(off < 1e-7, "{off}");
        let sum = found.sum().into_scalar::<f32>();
        assert!((sum - 2.0).abs() < 1e-5, "{sum}");
    }
}
