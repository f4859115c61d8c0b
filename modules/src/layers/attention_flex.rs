//! Attention on the CPU.
//!
//! burn 0.22 decomposes attention under autodiff, keeps several N x N tensors and copies heads into pieces of
//! their own. This node keeps q, k and v as they lie and recomputes the scores in the backward pass. A thread
//! works on one head at a time, a tile of queries at a time, whose scores stay in its cache.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, DType, Flex, TensorMetadata};
use burn::tensor::{FloatDType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::attention_ops::AttentionOps;
use super::flex::{numbers, tensor};
use super::lanes::{exp, greatest, sum, wide};

/// Query rows whose scores exist at the same time.
const TILE: usize = 256;

/// A matrix inside a tensor.
#[derive(Clone, Copy)]
struct Matrix {
    start: *const f32,
    rows: usize,
    columns: usize,
    /// Numbers from a row to the next, and from a column to the next.
    strides: [isize; 2],
}

impl Matrix {
    fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }

    /// Rows from `first` on, at most `count`.
    fn tile(self, first: usize, count: usize) -> Self {
        // The offset of an existing row lies inside the tensor.
        let start = self.start.wrapping_offset(first as isize * self.strides[0]);
        Self { start, rows: count.min(self.rows - first), ..self }
    }

    /// A buffer of these dims in row order.
    fn of(buffer: &mut [f32], rows: usize, columns: usize) -> Self {
        assert!(buffer.len() >= rows * columns, "the buffer is large enough");
        Self { start: buffer.as_mut_ptr(), rows, columns, strides: [columns as isize, 1] }
    }

    /// Writes `scale a b` here, or adds it.
    ///
    /// # Safety
    /// All three lie in live memory; this one may be written and nobody else uses it meanwhile.
    unsafe fn product(self, add: bool, scale: f32, a: Self, b: Self) {
        assert_eq!((a.rows, a.columns, b.columns), (self.rows, b.rows, self.columns), "a product");
        // SAFETY: dims agree, and the caller answers for the memory.
        unsafe {
            gemm::gemm(
                self.rows,
                self.columns,
                a.columns,
                self.start.cast_mut(),
                self.strides[1],
                self.strides[0],
                add,
                a.start,
                a.strides[1],
                a.strides[0],
                b.start,
                b.strides[1],
                b.strides[0],
                1.0,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// The matrices of all heads of a tensor `[B, heads, N, d]`.
struct Heads {
    first: Matrix,
    heads: usize,
    /// Numbers from a sample to the next, and from a head to the next.
    strides: [isize; 2],
}

// SAFETY: only a place; whoever reads or writes there answers for it.
unsafe impl Sync for Heads {}

impl Heads {
    fn of(x: &FlexTensor) -> Self {
        let layout = x.layout();
        let [_, heads, rows, columns] = x.shape().dims();
        let strides = layout.strides();
        let start = numbers(x)[layout.start_offset()..].as_ptr();
        let first = Matrix { start, rows, columns, strides: [strides[2], strides[3]] };
        Self { first, heads, strides: [strides[0], strides[1]] }
    }

    fn at(&self, task: usize) -> Matrix {
        let (sample, head) = ((task / self.heads) as isize, (task % self.heads) as isize);
        let offset = sample * self.strides[0] + head * self.strides[1];
        Matrix { start: self.first.start.wrapping_offset(offset), ..self.first }
    }
}

/// A new tensor `[B, heads, N, d]` that lies as `[B, N, heads, d]`, so that joining the heads is free.
fn by_token([batch, heads, tokens, width]: [usize; 4]) -> FlexTensor {
    let numbers = vec![0.0; batch * heads * tokens * width];
    tensor(numbers, Shape::new([batch, tokens, heads, width])).permute(&[0, 2, 1, 3])
}

/// Softmax over each row.
fn softmax(scores: &mut [f32], width: usize) {
    wide(|| {
        for row in scores.chunks_exact_mut(width) {
            let most = greatest(row);
            row.iter_mut().for_each(|x| *x = exp(*x - most));
            let share = 1.0 / sum(width, |i| row[i]);
            row.iter_mut().for_each(|x| *x *= share);
        }
    });
}

/// Turns gradients of softmaxes into those of their scores, times `scale`; `p` are the softmaxes.
fn softmax_backward(p: &[f32], d: &mut [f32], width: usize, scale: f32) {
    wide(|| {
        for (p, d) in p.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
            let d = &mut d[..width];
            let level = sum(width, |i| p[i] * d[i]);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - level) * scale);
        }
    });
}

fn scale_of(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// The same in f32, where that is not what arrives.
fn in_f32<B: AttentionOps>(parts: [FloatTensor<B>; 3]) -> FloatTensor<B> {
    let dtype = parts[0].dtype();
    let [q, k, v] = parts.map(|part| B::float_cast(part, FloatDType::F32));
    B::float_cast(B::attend(q, k, v), dtype.into())
}

impl AttentionOps for Flex {
    fn attend(q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v]);
        }
        let [batch, heads, queries, width] = q.shape().dims();
        let (keys, v_width) = (k.shape()[2], v.shape()[3]);
        let out = by_token([batch, heads, queries, v_width]);
        if out.shape().num_elements() * keys == 0 {
            return out;
        }
        let (q, k, v, to) = (&Heads::of(&q), &Heads::of(&k), &Heads::of(&v), &Heads::of(&out));
        let scratch = || vec![0.0; queries.min(TILE) * keys];
        (0..batch * heads).into_par_iter().for_each_init(scratch, |buffer, task| {
            for start in (0..queries).step_by(TILE) {
                let (q, to) = (q.at(task).tile(start, TILE), to.at(task).tile(start, TILE));
                let scores = Matrix::of(buffer, q.rows, keys);
                // SAFETY: the tensors live until the end of the call; the buffer is this thread's, and no other
                // task writes to this head of the output, of which there is no other handle.
                unsafe { scores.product(false, scale_of(width), q, k.at(task).transposed()) };
                softmax(&mut buffer[..q.rows * keys], keys);
                let scores = Matrix::of(buffer, q.rows, keys);
                // SAFETY: as above.
                unsafe { to.product(false, 1.0, scores, v.at(task)) };
            }
        });
        out
    }
}

/// Gradients of q, k and v from the gradient of the output.
fn backward([q, k, v]: [FlexTensor; 3], d_out: FlexTensor) -> [FlexTensor; 3] {
    let [batch, heads, queries, width] = q.shape().dims();
    let keys = k.shape()[2];
    let outs = [&q, &k, &v].map(|x| by_token(x.shape().dims()));
    if q.shape().num_elements() * keys == 0 {
        return outs;
    }
    let [q, k, v, d_out] = [&q, &k, &v, &d_out].map(Heads::of);
    let [d_q, d_k, d_v] = outs.each_ref().map(Heads::of);
    let all = (&q, &k, &v, &d_out, &d_q, &d_k, &d_v);
    let rows = queries.min(TILE);
    let scratch = || (vec![0.0; rows * keys], vec![0.0; rows * keys]);
    (0..batch * heads).into_par_iter().for_each_init(scratch, |(p, d), task| {
        let (q, k, v, d_out, d_q, d_k, d_v) = all;
        let [k, v, d_k, d_v] = [k, v, d_k, d_v].map(|heads| heads.at(task));
        for start in (0..queries).step_by(TILE) {
            let [q, d_out, d_q] = [q, d_out, d_q].map(|heads| heads.at(task).tile(start, TILE));
            let (scale, more, len) = (scale_of(width), start > 0, q.rows * keys);
            let (to_p, to_d) = (Matrix::of(p, q.rows, keys), Matrix::of(d, q.rows, keys));
            // SAFETY: as in the forward pass.
            unsafe {
                to_p.product(false, scale, q, k.transposed());
                to_d.product(false, 1.0, d_out, v.transposed());
            }
            softmax(&mut p[..len], keys);
            softmax_backward(&p[..len], &mut d[..len], keys, scale);
            let (p, d) = (Matrix::of(p, q.rows, keys), Matrix::of(d, q.rows, keys));
            // SAFETY: as in the forward pass.
            unsafe {
                d_v.product(more, 1.0, p.transposed(), d_out);
                d_q.product(false, 1.0, d, k);
                d_k.product(more, 1.0, d.transposed(), q);
            }
        }
    });
    outs
}

#[derive(Debug)]
struct Attended;

impl Backward<Flex, 3> for Attended {
    type State = [FlexTensor; 3];

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d_out = grads.consume::<Flex>(&ops.node);
        let gradients = backward(ops.state, d_out);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v]);
        }
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let out = Flex::attend(q.clone(), k.clone(), v.clone());
        match Attended.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([q, k, v], out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
