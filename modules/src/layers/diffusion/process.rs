//! A diffusion chain on rows `[N, C]`, each at a step of its own.
//!
//! Networks predict the noise in x_t. With a learned range they also say, for each channel, where
//! the variance lies between its two bounds. Steps are numbers of this chain; what a network is
//! told is [`Process::timesteps`].

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::likelihood::Gaussian;
use super::schedule::{Respacing, RespacingError, Schedule, Tables};

/// Variance of the distribution of x_{t-1} given x_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Variance {
    /// The network places its logarithm between those of `small` and `large`.
    #[default]
    Learned,
    /// β, the upper bound.
    Large,
    /// That of the posterior, the lower bound.
    Small,
}

/// How a chain is walked back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// Draws each step from the predicted distribution (DDPM), with noise times `temperature`.
    Ancestral {
        /// Factor on the noise.
        temperature: f64,
    },
    /// Goes along the predicted noise (DDIM), and adds noise of `eta` times the posterior's
    /// deviation.
    Ddim {
        /// 0 is deterministic.
        eta: f64,
    },
}

/// What a network's output says about a step.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// Predicted x_0, `[N, C]`.
    pub x0: Tensor<2>,
    /// Distribution of x_{t-1}.
    pub next: Gaussian,
}

/// Loss of each row.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Mean squared error of the predicted noise, `[N]`.
    pub mse: Tensor<1>,
    /// Term of the variational bound in bits per channel, `[N]`, with a learned variance. Its
    /// gradient reaches the variance only.
    pub vb: Option<Tensor<1>>,
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Process {
    tables: Arc<Tables>,
    variance: Variance,
}

impl Process {
    /// A chain of `steps`.
    pub fn new(schedule: Schedule, steps: usize, variance: Variance) -> Self {
        let kept: Vec<usize> = (0..steps).collect();
        Self { tables: Arc::new(Tables::new(&schedule.betas(steps), &kept)), variance }
    }

    /// A shorter chain that keeps some of the steps of one of `steps`.
    pub fn respaced(
        (schedule, steps): (Schedule, usize),
        variance: Variance,
        respacing: &Respacing,
    ) -> Result<Self, RespacingError> {
        let kept = respacing.kept(steps)?;
        Ok(Self { tables: Arc::new(Tables::new(&schedule.betas(steps), &kept)), variance })
    }

    /// What the steps compute with.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.tables.steps()
    }

    /// What a network is told about steps of this chain.
    pub fn timesteps(&self, t: &[usize]) -> Vec<usize> {
        t.iter().map(|&step| self.tables.timesteps[step]).collect()
    }

    /// Draws x_t: `sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) noise`.
    pub fn q_sample(&self, x0: Tensor<2>, t: &[usize], noise: Tensor<2>) -> Tensor<2> {
        let signal = rows(&self.tables.sqrt_alphas_cumprod, t, &x0);
        let spread = rows(&self.tables.sqrt_one_minus_alphas_cumprod, t, &x0);
        x0 * signal + noise * spread
    }

    /// Distribution of x_{t-1} given x_t and x_0.
    pub fn posterior(&self, x0: Tensor<2>, x: Tensor<2>, t: &[usize]) -> Gaussian {
        let [number, channels] = x.dims();
        let first = rows(&self.tables.posterior_mean_coef1, t, &x);
        let second = rows(&self.tables.posterior_mean_coef2, t, &x);
        let log_variance = rows(&self.tables.posterior_log_variance_clipped, t, &x);
        let log_variance = log_variance.expand([number, channels]);
        Gaussian { mean: x0 * first + x * second, log_variance }
    }

    /// What a network's output says about the step back from `x`. With `clamp` the predicted x_0
    /// is kept in -1..1.
    pub fn predict(&self, output: Tensor<2>, x: Tensor<2>, t: &[usize], clamp: bool) -> Prediction {
        let channels = x.dims()[1];
        let noise = output.clone().slice_dim(1, 0..channels);
        let signal = rows(&self.tables.sqrt_recip_alphas_cumprod, t, &x);
        let spread = rows(&self.tables.sqrt_recipm1_alphas_cumprod, t, &x);
        let x0 = x.clone() * signal - noise * spread;
        let x0 = if clamp { x0.clamp(-1.0, 1.0) } else { x0 };
        let posterior = self.posterior(x0.clone(), x, t);
        let log_variance = self.log_variance(output, posterior.log_variance, t);
        Prediction { x0, next: Gaussian { mean: posterior.mean, log_variance } }
    }

    /// `lower`: log variance of the posterior, `[N, C]`.
    fn log_variance(&self, output: Tensor<2>, lower: Tensor<2>, t: &[usize]) -> Tensor<2> {
        let [number, channels] = lower.dims();
        let betas = &self.tables.betas;
        match self.variance {
            Variance::Small => lower,
            Variance::Large => {
                // As the published code does, the first step takes the posterior's variance.
                let first = self.tables.posterior_log_variance_clipped[0];
                let log = |&step: &usize| if step == 0 { first } else { betas[step].ln() };
                let upper = column(t.iter().map(log), &lower);
                upper.expand([number, channels])
            }
            Variance::Learned => {
                let upper = column(t.iter().map(|&step| betas[step].ln()), &lower);
                let place = output.slice_dim(1, channels..2 * channels);
                let place = place.add_scalar(1.0).mul_scalar(0.5);
                place.clone() * upper + place.neg().add_scalar(1.0) * lower
            }
        }
    }

    /// Losses of a network's `output` at `x`, which is [`Process::q_sample`] of `x0` and `noise`.
    pub fn terms(
        &self,
        output: Tensor<2>,
        (x0, x): (Tensor<2>, Tensor<2>),
        t: &[usize],
        noise: Tensor<2>,
    ) -> Terms {
        let channels = noise.dims()[1];
        let predicted = output.clone().slice_dim(1, 0..channels);
        let mse = (noise - predicted.clone()).square().mean_dim(1).squeeze_dim(1);
        let vb = (self.variance == Variance::Learned).then(|| {
            let place = output.slice_dim(1, channels..2 * channels);
            let frozen = Tensor::cat(vec![predicted.detach(), place], 1);
            self.bound(frozen, x0, x, t)
        });
        Terms { mse, vb }
    }

    /// Term of the variational bound in bits per channel, `[N]`: the likelihood of x_0 at the
    /// first step, a divergence at the others.
    fn bound(&self, output: Tensor<2>, x0: Tensor<2>, x: Tensor<2>, t: &[usize]) -> Tensor<1> {
        let bits = 1.0 / std::f64::consts::LN_2;
        let truth = self.posterior(x0.clone(), x.clone(), t);
        let predicted = self.predict(output, x, t, false).next;
        let divergence = truth.divergence(&predicted).mean_dim(1);
        let all = if t.contains(&0) {
            let likelihood = predicted.discretised_nll(&x0).mean_dim(1);
            let later = column(t.iter().map(|&step| f64::from(u8::from(step > 0))), &x0);
            likelihood.mask_where(later.greater_elem(0.5), divergence)
        } else {
            divergence
        };
        all.mul_scalar(bits).squeeze_dim(1)
    }

    /// One step back from `x`. Without `noise` none is added; at t = 0 none is added either.
    pub fn step(
        &self,
        sampler: Sampler,
        prediction: Prediction,
        (x, t): (Tensor<2>, &[usize]),
        noise: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let (mean, deviation) = match sampler {
            Sampler::Ancestral { temperature } => {
                let deviation = prediction.next.log_variance.mul_scalar(0.5).exp();
                (prediction.next.mean, deviation.mul_scalar(temperature))
            }
            Sampler::Ddim { eta } => self.along_noise(eta, prediction.x0, x, t),
        };
        let Some(noise) = noise else { return mean };
        let later = column(t.iter().map(|&step| f64::from(u8::from(step > 0))), &mean);
        mean + noise * deviation * later
    }

    /// Mean, and deviation `[N, 1]`, of a DDIM step.
    fn along_noise(
        &self,
        eta: f64,
        x0: Tensor<2>,
        x: Tensor<2>,
        t: &[usize],
    ) -> (Tensor<2>, Tensor<2>) {
        let Tables { alphas_cumprod: bar, alphas_cumprod_prev: prev, .. } = &*self.tables;
        let signal = rows(&self.tables.sqrt_recip_alphas_cumprod, t, &x);
        let spread = rows(&self.tables.sqrt_recipm1_alphas_cumprod, t, &x);
        let noise = (x * signal - x0.clone()) / spread;
        let deviation = |&step: &usize| {
            let share = (1.0 - prev[step]) / (1.0 - bar[step]);
            eta * (share * (1.0 - bar[step] / prev[step])).sqrt()
        };
        let rest = |step: &usize| (1.0 - prev[*step] - deviation(step).powi(2)).max(0.0).sqrt();
        let kept = column(t.iter().map(|&step| prev[step].sqrt()), &x0);
        let rest = column(t.iter().map(rest), &x0);
        let deviation = column(t.iter().map(deviation), &x0);
        (x0 * kept + noise * rest, deviation)
    }

    /// Walks back from `start`, which is at step `first`, to x_0; gives x after every step.
    /// `network` takes x and the timestep that it is told; `noise` draws what a step adds, and is
    /// not asked at the last one.
    pub fn reverse<'a>(
        &'a self,
        (sampler, clamp): (Sampler, bool),
        (start, first): (Tensor<2>, usize),
        mut network: impl FnMut(Tensor<2>, &[usize]) -> Tensor<2> + 'a,
        mut noise: impl FnMut(usize) -> Tensor<2> + 'a,
    ) -> impl Iterator<Item = Tensor<2>> + 'a {
        let mut x = start;
        (0..=first).rev().map(move |step| {
            let t = vec![step; x.dims()[0]];
            let output = network(x.clone(), &self.timesteps(&t));
            let prediction = self.predict(output, x.clone(), &t, clamp);
            let quiet = step == 0 || sampler == Sampler::Ddim { eta: 0.0 };
            let drawn = (!quiet).then(|| noise(step));
            x = self.step(sampler, prediction, (x.clone(), &t), drawn);
            x.clone()
        })
    }
}

/// Values of a table at the rows' steps, `[N, 1]`.
fn rows(table: &[f64], t: &[usize], like: &Tensor<2>) -> Tensor<2> {
    column(t.iter().map(|&step| table[step]), like)
}

/// One value for each row, `[N, 1]`, in f32 and without gradient.
fn column(values: impl Iterator<Item = f64>, like: &Tensor<2>) -> Tensor<2> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let shape = [values.len(), 1];
    Tensor::from_data(TensorData::new(values, shape), &like.device().inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use proptest::prelude::*;

    use crate::rng::Key;

    fn normal(name: &str, shape: [usize; 2]) -> Tensor<2> {
        let mut values = vec![0.0; shape[0] * shape[1]];
        Key::new(3, name).rng().normals(&mut values);
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn off(found: Tensor<2>, expected: Tensor<2>) -> f32 {
        (found - expected).abs().max().into_scalar::<f32>()
    }

    fn chain(variance: Variance) -> Process {
        Process::new(Schedule::Cosine, 1000, variance)
    }

    proptest! {
        #[test]
        fn the_exact_noise_gives_back_what_it_was_mixed_into(step in 0usize..900, large: bool) {
            let process = chain(if large { Variance::Large } else { Variance::Small });
            let (x0, noise) = (normal("x0", [4, 5]), normal("noise", [4, 5]));
            let t = [step, 0, step / 2, 899];
            let x = process.q_sample(x0.clone(), &t, noise.clone());
            let found = process.predict(noise, x.clone(), &t, false);
            // 1 / sqrt(ᾱ) is below 7 up to step 900, so f32 keeps five digits.
            prop_assert!(off(found.x0, x0.clone()) < 1e-5);
            prop_assert!(off(found.next.mean, process.posterior(x0, x, &t).mean) < 1e-5);
        }
    }

    #[test]
    fn ddim_along_the_exact_noise_ends_where_it_began() {
        let process =
            Process::respaced((Schedule::Cosine, 1000), Variance::Learned, &Respacing::Count(10))
                .unwrap();
        let (x0, noise) = (normal("x0", [3, 4]), normal("noise", [3, 4]));
        // From step 8: the last step of the whole chain leaves a signal of 1e-5.
        let start = process.q_sample(x0.clone(), &[8; 3], noise.clone());
        let exact =
            |_: Tensor<2>, _: &[usize]| Tensor::cat(vec![noise.clone(), noise.zeros_like()], 1);
        let never = |_| panic!("a deterministic walk draws nothing");
        let sampler = Sampler::Ddim { eta: 0.0 };
        let last = process.reverse((sampler, false), (start, 8), exact, never).last().unwrap();
        assert!(off(last, x0) < 1e-4);
    }

    #[test]
    fn the_bound_moves_the_variance_and_not_the_noise() {
        let device = Device::flex().autodiff();
        let output = Tensor::<2>::from_data([[0.3, -0.2, 0.1, 0.4]; 2], &device).require_grad();
        let (x0, noise) = (normal("x0", [2, 2]), normal("noise", [2, 2]));
        let process = chain(Variance::Learned);
        let x = process.q_sample(x0.clone(), &[0, 500], noise.clone());
        let terms = process.terms(output.clone(), (x0, x), &[0, 500], noise);
        let gradients = terms.vb.unwrap().sum().backward();
        let found = output.grad(&gradients).unwrap();
        let sum = |part: Tensor<2>| part.abs().sum().into_scalar::<f32>();
        assert_eq!(sum(found.clone().slice_dim(1, 0..2)), 0.0);
        assert!(sum(found.slice_dim(1, 2..4)) > 1e-4);
    }

    #[test]
    fn a_fixed_variance_has_no_bound_to_train() {
        let (x0, noise) = (normal("x0", [2, 2]), normal("noise", [2, 2]));
        let terms = |variance| {
            let process = chain(variance);
            let x = process.q_sample(x0.clone(), &[3, 4], noise.clone());
            process.terms(noise.clone(), (x0.clone(), x), &[3, 4], noise.clone())
        };
        for variance in [Variance::Small, Variance::Large] {
            let found = terms(variance);
            assert!(found.vb.is_none());
            assert_eq!(found.mse.sum().into_scalar::<f32>(), 0.0);
        }
    }
}
