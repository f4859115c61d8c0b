//! Noise schedules and the tables of a chain, in f64.
//!
//! Step t of a chain mixes noise of variance β_t into x; ᾱ_t is the share of x_0's variance that
//! is left after it. A shorter chain keeps some of the steps and their ᾱ; its β follow from these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Variances of the noise that the steps add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// ᾱ falls like a squared cosine; β is at most 0.999 (Nichol and Dhariwal 2021).
    #[default]
    Cosine,
    /// β rises in a line from 0.0001 to 0.02 over 1000 steps, faster over fewer (Ho et al. 2020).
    Linear,
}

impl Schedule {
    /// β of all steps.
    pub fn betas(self, steps: usize) -> Vec<f64> {
        let all = steps as f64;
        match self {
            Self::Cosine => {
                let left = |step: usize| {
                    let angle = (step as f64 / all + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
                    angle.cos().powi(2)
                };
                (0..steps).map(|i| (1.0 - left(i + 1) / left(i)).min(0.999)).collect()
            }
            Self::Linear => {
                let (first, last) = (0.1 / all, 20.0 / all);
                let rise = (last - first) / steps.saturating_sub(1).max(1) as f64;
                (0..steps).map(|i| first + i as f64 * rise).collect()
            }
        }
    }
}

/// Which steps of a chain a shorter one keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of steps, a list of numbers, or `ddim50`")]
pub enum Respacing {
    /// So many, evenly spread from the first to the last.
    Count(usize),
    /// The chain is cut into equal sections, from t = 0 on; so many of each, evenly spread.
    Sections(Vec<usize>),
    /// `ddim50`: every so many steps, from t = 0 on, which must give just 50. Also a count or several
    /// with commas between.
    Named(String),
}

/// A respacing that no chain of this length has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespacingError {
    /// More steps than there are.
    #[error("{wanted} of {available} steps; keep at most {available} there")]
    TooMany {
        /// Asked for.
        wanted: usize,
        /// In the section.
        available: usize,
    },
    /// No steps at all.
    #[error("no step is kept; keep at least 1")]
    Empty,
    /// No stride gives the number.
    #[error("no stride gives {wanted} of {available} steps; {near} would do")]
    Stride {
        /// Asked for.
        wanted: usize,
        /// In the chain.
        available: usize,
        /// A number of steps that some stride gives.
        near: usize,
    },
    /// Not the form of a respacing.
    #[error("`{text}` is no respacing; write a number, a list of numbers, or `ddim50`")]
    Form {
        /// What is written.
        text: String,
    },
}

impl Respacing {
    /// The steps that are kept of a chain of `steps`, ascending.
    pub fn kept(&self, steps: usize) -> Result<Vec<usize>, RespacingError> {
        match self {
            Self::Count(count) => sections(steps, &[*count]),
            Self::Sections(counts) => sections(steps, counts),
            Self::Named(text) => {
                let form = || RespacingError::Form { text: text.clone() };
                if let Some(number) = text.strip_prefix("ddim") {
                    return strided(steps, number.trim().parse().map_err(|_| form())?);
                }
                let counts = text.split(',').map(|number| number.trim().parse::<usize>());
                sections(steps, &counts.collect::<Result<Vec<_>, _>>().map_err(|_| form())?)
            }
        }
    }
}

fn sections(steps: usize, counts: &[usize]) -> Result<Vec<usize>, RespacingError> {
    let number = counts.len().max(1);
    let (whole, longer) = (steps / number, steps % number);
    let (mut kept, mut start) = (Vec::new(), 0);
    for (section, &count) in counts.iter().enumerate() {
        let size = whole + usize::from(section < longer);
        if count > size {
            return Err(RespacingError::TooMany { wanted: count, available: size });
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
        // The published lists come from adding strides up, and from rounding halves to even.
        let mut place = 0.0f64;
        for _ in 0..count {
            kept.push(start + place.round_ties_even() as usize);
            place += stride;
        }
        start += size;
    }
    kept.dedup();
    if kept.is_empty() { Err(RespacingError::Empty) } else { Ok(kept) }
}

fn strided(steps: usize, wanted: usize) -> Result<Vec<usize>, RespacingError> {
    let given = |stride: usize| steps.div_ceil(stride);
    let strides = 1..steps.max(2);
    match strides.clone().find(|&stride| given(stride) == wanted) {
        Some(stride) => Ok((0..steps).step_by(stride).collect()),
        None if wanted == 0 => Err(RespacingError::Empty),
        None => {
            let near = strides.map(given).min_by_key(|count| count.abs_diff(wanted)).unwrap_or(1);
            Err(RespacingError::Stride { wanted, available: steps, near })
        }
    }
}

/// What the steps of a chain compute with; one value for each step.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names are the usual ones; each is a formula below")]
pub struct Tables {
    /// Number of each step in the whole chain, which is what a network is told.
    pub timesteps: Vec<usize>,
    pub betas: Vec<f64>,
    pub alphas_cumprod: Vec<f64>,
    pub alphas_cumprod_prev: Vec<f64>,
    pub sqrt_alphas_cumprod: Vec<f64>,
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    pub posterior_variance: Vec<f64>,
    /// The first variance is 0; its logarithm is replaced by the second one.
    pub posterior_log_variance_clipped: Vec<f64>,
    pub posterior_mean_coef1: Vec<f64>,
    pub posterior_mean_coef2: Vec<f64>,
}

impl Tables {
    /// Of the steps `kept` (ascending) of a chain with these β.
    pub fn new(whole: &[f64], kept: &[usize]) -> Self {
        let product = |left: &mut f64, beta: &f64| {
            *left *= 1.0 - beta;
            Some(*left)
        };
        let all: Vec<f64> = whole.iter().scan(1.0, product).collect();
        let before = |i: usize| if i == 0 { 1.0 } else { all[kept[i - 1]] };
        let betas = (0..kept.len()).map(|i| 1.0 - all[kept[i]] / before(i)).collect();
        Self::of_betas(betas, kept.to_vec())
    }

    fn of_betas(betas: Vec<f64>, timesteps: Vec<usize>) -> Self {
        let each = |one: &dyn Fn(usize) -> f64| (0..betas.len()).map(one).collect::<Vec<f64>>();
        let mut left = 1.0;
        let bar: Vec<f64> = betas
            .iter()
            .map(|beta| {
                left *= 1.0 - beta;
                left
            })
            .collect();
        let prev = each(&|i| if i == 0 { 1.0 } else { bar[i - 1] });
        let variance = each(&|i| betas[i] * (1.0 - prev[i]) / (1.0 - bar[i]));
        let first = variance.get(1).copied().unwrap_or_else(|| betas[0]);
        Self {
            sqrt_alphas_cumprod: each(&|i| bar[i].sqrt()),
            sqrt_one_minus_alphas_cumprod: each(&|i| (1.0 - bar[i]).sqrt()),
            sqrt_recip_alphas_cumprod: each(&|i| (1.0 / bar[i]).sqrt()),
            sqrt_recipm1_alphas_cumprod: each(&|i| (1.0 / bar[i] - 1.0).sqrt()),
            posterior_log_variance_clipped: each(&|i| {
                if i == 0 { first.ln() } else { variance[i].ln() }
            }),
            posterior_mean_coef1: each(&|i| betas[i] * prev[i].sqrt() / (1.0 - bar[i])),
            posterior_mean_coef2: each(&|i| {
                (1.0 - prev[i]) * (1.0 - betas[i]).sqrt() / (1.0 - bar[i])
            }),
            posterior_variance: variance,
            alphas_cumprod_prev: prev,
            alphas_cumprod: bar,
            timesteps,
            betas,
        }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(schedule: Schedule, steps: usize) -> Tables {
        Tables::new(&schedule.betas(steps), &(0..steps).collect::<Vec<_>>())
    }

    fn named(text: &str, steps: usize) -> Result<Vec<usize>, RespacingError> {
        Respacing::Named(text.to_owned()).kept(steps)
    }

    proptest! {
        #[test]
        fn a_shorter_chain_keeps_the_signal_of_its_steps(
            steps in 25usize..300, share in 0.01f64..1.0, linear: bool
        ) {
            let schedule = if linear { Schedule::Linear } else { Schedule::Cosine };
            let count = ((steps as f64 * share) as usize).max(1);
            let kept = Respacing::Count(count).kept(steps).unwrap();
            prop_assert_eq!(kept.len(), count);
            prop_assert!(kept.is_sorted() && kept[count - 1] < steps);
            let long = whole(schedule, steps);
            let short = Tables::new(&schedule.betas(steps), &kept);
            for (i, &step) in kept.iter().enumerate() {
                let (found, expected) = (short.alphas_cumprod[i], long.alphas_cumprod[step]);
                // β near 1 keeps few digits of what is left.
                prop_assert!((found - expected).abs() <= 1e-12);
            }
            prop_assert_eq!(short.timesteps, kept);
        }
    }

    #[test]
    fn sections_and_strides_are_those_of_the_published_code() {
        assert_eq!(Respacing::Sections(vec![2, 3]).kept(11), Ok(vec![0, 5, 6, 8, 10]));
        assert_eq!(named("2, 3", 11), Ok(vec![0, 5, 6, 8, 10]));
        assert_eq!(named("ddim5", 10), Ok(vec![0, 2, 4, 6, 8]));
        assert_eq!(named("4", 10), Ok(vec![0, 3, 6, 9]));
        assert_eq!(Respacing::Count(1).kept(10), Ok(vec![0]));
    }

    #[test]
    fn a_respacing_that_cannot_be_is_named() {
        let fail = |text: &str| named(text, 10).unwrap_err().to_string();
        assert_eq!(fail("11"), "11 of 10 steps; keep at most 10 there");
        assert_eq!(fail("ddim6"), "no stride gives 6 of 10 steps; 5 would do");
        assert!(fail("fast").starts_with("`fast` is no respacing"));
        assert_eq!(fail("0"), fail("ddim0"));
        let other = serde_json::from_value::<Respacing>(serde_json::json!(1.5)).unwrap_err();
        assert!(other.to_string().starts_with("expected a number of steps"), "{other}");
    }

    #[test]
    fn a_chain_of_one_step_has_finite_tables() {
        let tables = whole(Schedule::Cosine, 1);
        assert!(tables.posterior_log_variance_clipped[0].is_finite());
        assert_eq!(tables.posterior_mean_coef1, [1.0]);
    }
}
