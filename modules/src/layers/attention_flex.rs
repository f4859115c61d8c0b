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
use super::dropout_ops::Draws;
use super::flex::tensor;
use super::lanes::{exp, greatest, sum, wide};
use super::matrices::{Heads, Matrix};
use super::spans::Spans;

/// Query rows whose scores exist at the same time.
const TILE: usize = 256;

/// A new tensor `[B, heads, N, d]` that lies as `[B, N, heads, d]`, so that joining the heads is free.
fn by_token([batch, heads, tokens, width]: [usize; 4]) -> FlexTensor {
    let numbers = vec![0.0; batch * heads * tokens * width];
    tensor(numbers, Shape::new([batch, tokens, heads, width])).permute(&[0, 2, 1, 3])
}

/// Softmax over the run of each row; 0 outside.
fn softmax(scores: &mut [f32], width: usize, run: impl Fn(usize) -> [usize; 2]) {
    wide(|| {
        for (number, row) in scores.chunks_exact_mut(width).enumerate() {
            let [first, end] = run(number);
            row[..first].fill(0.0);
            row[end..].fill(0.0);
            let row = &mut row[first..end];
            let most = greatest(row);
            row.iter_mut().for_each(|x| *x = exp(*x - most));
            let share = 1.0 / sum(row.len(), |i| row[i]);
            row.iter_mut().for_each(|x| *x *= share);
        }
    });
}

/// Turns gradients of softmaxes into those of their scores; `p` are the softmaxes.
fn softmax_backward(p: &[f32], d: &mut [f32], width: usize) {
    wide(|| {
        for (p, d) in p.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
            let d = &mut d[..width];
            let level = sum(width, |i| p[i] * d[i]);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - level));
        }
    });
}

fn scale_of(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// The same in f32, where that is not what arrives.
fn in_f32<B: AttentionOps>(
    parts: [FloatTensor<B>; 3],
    bias: Option<FloatTensor<B>>,
    (spans, drop): (Option<Spans>, Option<Draws>),
) -> FloatTensor<B> {
    let dtype = parts[0].dtype();
    let wide = |part| B::float_cast(part, FloatDType::F32);
    let [q, k, v] = parts.map(wide);
    let out = match bias.map(wide) {
        Some(bias) => B::attend_biased(q, k, v, bias, spans, drop),
        None => B::attend(q, k, v, spans, drop),
    };
    B::float_cast(out, dtype.into())
}

/// What attention is computed from.
#[derive(Debug, Clone)]
struct Given {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<FlexTensor>,
    spans: Option<Spans>,
    /// Entries of the map that are dropped.
    drop: Option<Draws>,
}

/// Places of the tensors of a [`Given`], and its extents.
struct Parts {
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Option<Heads>,
    spans: Option<Spans>,
    drop: Option<Draws>,
    /// Queries, keys, channels of a head.
    dims: [usize; 3],
    /// Heads of the queries.
    heads: usize,
    /// Heads of the queries that share one of the keys.
    group: usize,
}

/// A tile of queries, and the run of keys that they see.
#[derive(Clone, Copy)]
struct Tile {
    /// Sample and head of the queries.
    task: usize,
    start: usize,
    keys: [usize; 2],
}

impl Parts {
    fn of(given: &Given) -> Self {
        let [_, heads, queries, width] = given.q.shape().dims();
        let [_, kv_heads, keys, _] = given.k.shape().dims();
        Self {
            q: Heads::of(&given.q),
            k: Heads::of(&given.k),
            v: Heads::of(&given.v),
            bias: given.bias.as_ref().map(Heads::of),
            spans: given.spans.clone(),
            drop: given.drop.clone(),
            dims: [queries, keys, width],
            heads,
            group: heads / kv_heads,
        }
    }

    fn tiles(&self, task: usize) -> impl Iterator<Item = Tile> {
        let [queries, keys, _] = self.dims;
        (0..queries).step_by(TILE).map(move |start| {
            let rows = start..queries.min(start + TILE);
            let hull = |spans: &Spans| spans.hull(task / self.heads, rows);
            Tile { task, start, keys: self.spans.as_ref().map_or([0, keys], hull) }
        })
    }

    /// Sample and head of the keys that serve a head of the queries.
    fn shared(&self, task: usize) -> usize {
        task / self.group
    }

    /// Softmaxes of a tile, `[rows, keys of the tile]`.
    fn softmaxes(&self, tile: Tile, buffer: &mut [f32]) {
        let Tile { task, start, keys: [first, end] } = tile;
        let (q, width) = (self.q.at(task).tile(start, TILE), end - first);
        let k = self.k.at(self.shared(task)).tile(first, width);
        let scores = Matrix::of(buffer, q.rows, width);
        // SAFETY: the tensors live until the end of the call, and the buffer is this thread's.
        unsafe { scores.product(false, scale_of(self.dims[2]), q, k.transposed()) };
        let buffer = &mut buffer[..q.rows * width];
        if let Some(bias) = &self.bias {
            let bias = bias.at(task).tile(start, TILE);
            for (row, scores) in buffer.chunks_exact_mut(width).enumerate() {
                // SAFETY: the bias has a number for every query and key.
                let at = |key| unsafe { bias.get(row, first + key) };
                scores.iter_mut().enumerate().for_each(|(key, score)| *score += at(key));
            }
        }
        match &self.spans {
            None => softmax(buffer, width, |_| [0, width]),
            Some(spans) => softmax(buffer, width, |row| {
                spans.of(task / self.heads, start + row).map(|key| key - first)
            }),
        }
    }
}

impl Parts {
    /// The softmaxes of a tile less what is dropped, which also loses its gradient.
    fn dropped(
        &self,
        tile: Tile,
        (p, d): (&[f32], &mut [f32]),
        kept: &mut [f32],
    ) -> Option<Matrix> {
        let drop = self.drop.as_ref()?;
        let width = tile.keys[1] - tile.keys[0];
        let kept = &mut kept[..p.len()];
        self.factors(drop, tile, kept);
        for ((p, d), kept) in p.iter().zip(d).zip(kept.iter_mut()) {
            *d *= *kept;
            *kept *= p;
        }
        Some(Matrix::of(kept, p.len() / width, width))
    }

    /// Factors of the entries of a tile, `[rows, keys of the tile]`.
    fn factors(&self, drop: &Draws, tile: Tile, into: &mut [f32]) {
        let [queries, keys, _] = self.dims;
        let [first, end] = tile.keys;
        let place = (tile.task * queries + tile.start) * keys;
        if end - first == keys {
            return drop.factors(place, into);
        }
        for (row, into) in into.chunks_exact_mut(end - first).enumerate() {
            drop.factors(place + row * keys + first, into);
        }
    }
}

fn forward(given: &Given) -> FlexTensor {
    let [batch, heads, queries, _] = given.q.shape().dims();
    let out = by_token([batch, heads, queries, given.v.shape()[3]]);
    let parts = &Parts::of(given);
    let keys = parts.dims[1];
    if out.shape().num_elements() * keys == 0 {
        return out;
    }
    let to = &Heads::of(&out);
    let size = queries.min(TILE) * keys;
    let spare = if parts.drop.is_some() { size } else { 0 };
    let scratch = || (vec![0.0; size], vec![0.0; spare]);
    (0..batch * heads).into_par_iter().for_each_init(scratch, |(buffer, factors), task| {
        for tile in parts.tiles(task) {
            parts.softmaxes(tile, buffer);
            let [first, end] = tile.keys;
            let to = to.at(task).tile(tile.start, TILE);
            if let Some(drop) = &parts.drop {
                let len = to.rows * (end - first);
                parts.factors(drop, tile, &mut factors[..len]);
                buffer.iter_mut().zip(&factors[..len]).for_each(|(p, f)| *p *= f);
            }
            let v = parts.v.at(parts.shared(task)).tile(first, end - first);
            let p = Matrix::of(buffer, to.rows, end - first);
            // SAFETY: as above; no other task writes to this head of the output, of which there is
            // no other handle.
            unsafe { to.product(false, 1.0, p, v) };
        }
    });
    out
}

/// Gradients of q, k, v and the bias from the gradient of the output.
fn backward(given: &Given, d_out: &FlexTensor) -> ([FlexTensor; 3], Option<FlexTensor>) {
    let outs = [&given.q, &given.k, &given.v].map(|x| by_token(x.shape().dims()));
    let [batch, kv_heads, keys, _] = given.k.shape().dims();
    let parts = &Parts::of(given);
    let ([queries, ..], group) = (parts.dims, parts.group);
    let d_bias = given
        .bias
        .as_ref()
        .map(|bias| tensor(vec![0.0; bias.shape().num_elements()], bias.shape()));
    if given.q.shape().num_elements() * keys == 0 {
        return (outs, d_bias);
    }
    let [d_q, d_k, d_v] = outs.each_ref().map(Heads::of);
    let to_bias = d_bias.as_ref().map(Heads::of);
    let all = &(Heads::of(d_out), d_q, d_k, d_v, to_bias);
    let rows = queries.min(TILE);
    let spare = if parts.drop.is_some() { rows * keys } else { 0 };
    let scratch = || (vec![0.0; rows * keys], vec![0.0; rows * keys], vec![0.0; spare]);
    // A task owns a head of the keys and the heads of the queries that share it.
    (0..batch * kv_heads).into_par_iter().for_each_init(scratch, |(p, d, kept), shared| {
        let (d_out, d_q, d_k, d_v, d_bias) = all;
        for tile in (shared * group..(shared + 1) * group).flat_map(|task| parts.tiles(task)) {
            let Tile { task, start, keys: [first, end] } = tile;
            let width = end - first;
            parts.softmaxes(tile, p);
            let [q, d_out, d_q] = [&parts.q, d_out, d_q].map(|x| x.at(task).tile(start, TILE));
            let [k, v, d_k, d_v] =
                [&parts.k, &parts.v, d_k, d_v].map(|x| x.at(shared).tile(first, width));
            let (to_p, to_d) = (Matrix::of(p, q.rows, width), Matrix::of(d, q.rows, width));
            // SAFETY: as in the forward pass.
            unsafe { to_d.product(false, 1.0, d_out, v.transposed()) };
            let len = q.rows * width;
            let to_kept = parts.dropped(tile, (&p[..len], &mut d[..len]), kept).unwrap_or(to_p);
            softmax_backward(&p[..len], &mut d[..len], width);
            let scale = scale_of(parts.dims[2]);
            // SAFETY: as in the forward pass; the gradients begin as zeros.
            unsafe {
                d_v.product(true, 1.0, to_kept.transposed(), d_out);
                d_q.product(false, scale, to_d, k);
                d_k.product(true, scale, to_d.transposed(), q);
            }
            let Some(to) = d_bias else { continue };
            let to = to.at(task).tile(start, TILE);
            for (row, d) in d[..len].chunks_exact(width).enumerate() {
                for (key, d) in d.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { to.set(row, first + key, *d) };
                }
            }
        }
    });
    (outs, d_bias)
}

impl AttentionOps for Flex {
    fn attend(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FlexTensor {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v], None, (spans, drop));
        }
        forward(&Given { q, k, v, bias: None, spans, drop })
    }

    fn attend_biased(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        bias: FlexTensor,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FlexTensor {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v], Some(bias), (spans, drop));
        }
        forward(&Given { q, k, v, bias: Some(bias), spans, drop })
    }
}

#[derive(Debug)]
struct Attended;

impl<const N: usize> Backward<Flex, N> for Attended {
    type State = Given;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d_out = grads.consume::<Flex>(&ops.node);
        let (gradients, d_bias) = backward(&ops.state, &d_out);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients.into_iter().chain(d_bias)) {
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
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v], None, (spans, drop));
        }
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let given = Given { q, k, v, bias: None, spans, drop };
        let out = forward(&given);
        match Attended.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(given, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn attend_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        if q.dtype() != DType::F32 {
            return in_f32::<Self>([q, k, v], Some(bias), (spans, drop));
        }
        let ((q, q_node), (k, k_node)) = (q.into_parts(), k.into_parts());
        let ((v, v_node), (bias, bias_node)) = (v.into_parts(), bias.into_parts());
        let given = Given { q, k, v, bias: Some(bias), spans, drop };
        let out = forward(&given);
        let nodes = [q_node, k_node, v_node, bias_node];
        match Attended.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(given, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
