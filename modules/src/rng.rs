//! Counter-based random numbers: every draw is a function of its key and of nothing else.
//!
//! A key names (seed, node, stage, step, microbatch, sample). Two equal keys give equal draws on
//! any thread, host or run, so a resumed, moved or restarted node draws what it would have drawn.
//! Source: ChaCha with 8 rounds (Bernstein 2008), keyed by the SHA-256 of the path of names.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// Names one stream of random numbers.
#[derive(Debug, Clone)]
pub struct Key {
    hash: Sha256,
}

impl Key {
    /// The root of all draws of one node in one run.
    pub fn new(seed: u64, node: &str) -> Self {
        Self { hash: Sha256::new() }.with_number(seed).with(node)
    }

    /// A key below this one, told apart by a name.
    pub fn with(&self, name: &str) -> Self {
        let mut hash = self.hash.clone();
        hash.update([0]);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        Self { hash }
    }

    /// A key below this one, told apart by a number.
    pub fn with_number(&self, number: u64) -> Self {
        let mut hash = self.hash.clone();
        hash.update([1]);
        hash.update(number.to_le_bytes());
        Self { hash }
    }

    /// The stream that this key names.
    pub fn rng(&self) -> Rng {
        Rng { inner: ChaCha8Rng::from_seed(self.hash.clone().finalize().into()) }
    }

    /// The same stream as numbered words.
    pub fn words(&self) -> Words {
        Words { inner: self.rng().inner }
    }
}

/// A stream of random words of 32 bits that can be entered at any of them, so that threads can share it.
#[derive(Debug, Clone)]
pub struct Words {
    inner: ChaCha8Rng,
}

impl Words {
    /// Goes to a word, counted from 0.
    pub fn skip_to(&mut self, number: u64) {
        self.inner.set_word_pos(u128::from(number));
    }

    /// The next words.
    pub fn fill(&mut self, into: &mut [u32]) {
        for word in into {
            *word = self.inner.next_u32();
        }
    }
}

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Rng {
    inner: ChaCha8Rng,
}

impl Rng {
    /// Uniform 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.inner.next_u64()
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in `[0, n)`; 0 when `n` is 0. The bias is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard exponential variate, never 0.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).max(f64::MIN_POSITIVE).ln()
    }

    /// Standard normal variate (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Standard normal variates (Box-Muller, both of each pair).
    pub fn normals(&mut self, into: &mut [f32]) {
        for pair in into.chunks_mut(2) {
            let radius = (2.0 * self.exponential()).sqrt();
            let (sine, cosine) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            for (value, part) in pair.iter_mut().zip([cosine, sine]) {
                *value = (radius * part) as f32;
            }
        }
    }

    /// Normal variate with deviation `sigma`, redrawn until it lies within `[-cut, cut]`.
    pub fn truncated_normal(&mut self, sigma: f64, cut: f64) -> f64 {
        loop {
            let value = sigma * self.normal();
            if value.abs() <= cut {
                return value;
            }
        }
    }

    /// A uniform permutation of `0..n` (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_draw_equal_numbers_and_others_differ() {
        let key = Key::new(7, "mask").with_number(3);
        let mut first = key.rng();
        let mut again = Key::new(7, "mask").with_number(3).rng();
        let mut other = Key::new(7, "mask").with_number(4).rng();
        let draw = first.bits();
        assert_eq!(draw, again.bits());
        assert_ne!(draw, other.bits());
    }

    #[test]
    fn a_name_is_not_confused_with_its_parts() {
        let split = Key::new(1, "a").with("bc").rng().bits();
        let joined = Key::new(1, "ab").with("c").rng().bits();
        assert_ne!(split, joined);
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let mut rng = Key::new(0, "moments").rng();
        let draws: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn both_of_a_pair_are_normal_and_independent() {
        let mut draws = vec![0.0f32; 20_001];
        Key::new(0, "pairs").rng().normals(&mut draws);
        let mean =
            |one: &dyn Fn(&[f32]) -> f32| draws.chunks_exact(2).map(one).sum::<f32>() / 10_000.0;
        for place in [0, 1] {
            assert!(mean(&|pair| pair[place]).abs() < 0.04);
            assert!((mean(&|pair| pair[place].powi(2)) - 1.0).abs() < 0.06);
        }
        assert!(mean(&|pair| pair[0] * pair[1]).abs() < 0.04);
        assert_ne!(draws[20_000], 0.0, "an odd one is drawn too");
    }

    #[test]
    fn a_stream_can_be_entered_at_any_word() {
        let key = Key::new(3, "words");
        let mut all = [0; 300];
        key.words().fill(&mut all);
        for start in [0, 1, 17, 64, 255] {
            let mut some = [0; 40];
            let mut words = key.words();
            words.skip_to(start as u64);
            words.fill(&mut some);
            assert_eq!(some, all[start..start + 40]);
        }
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = Key::new(2, "order").rng().permutation(17);
        order.sort_unstable();
        assert_eq!(order, (0..17).collect::<Vec<_>>());
    }
}
