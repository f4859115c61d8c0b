//! Intervals for tables: over seeds (Student's t) and over samples (bootstrap).

use std::f64::consts::{FRAC_PI_2, PI};

use super::{Error, finite, mean, some};
use crate::rng::Key;

/// A mean with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the values, with n - 1; 0 of one value.
    pub deviation: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Values.
    pub count: usize,
}

/// Mean over seeds with its 95 % interval: mean ± t · deviation / √n, t with n - 1 degrees of freedom.
/// One value has no interval; its ends are the value.
pub fn over_seeds(values: &[f64]) -> Result<Interval, Error> {
    let (mean, deviation) = moments(values)?;
    let count = values.len();
    let half = match count {
        1 => 0.0,
        _ => student_t(count - 1, 0.95) * deviation / (count as f64).sqrt(),
    };
    Ok(Interval { mean, deviation, low: mean - half, high: mean + half, count })
}

/// Mean over samples with its percentile bootstrap interval at 95 %: the 2.5 and 97.5 percentiles
/// (linear between ranks) of the means of `draws` samples with replacement. Equal seeds give equal ends.
pub fn bootstrap(values: &[f64], draws: usize, seed: u64) -> Result<Interval, Error> {
    let (centre, deviation) = moments(values)?;
    if draws == 0 {
        return Err(Error::range("draws", draws, "at least 1"));
    }
    let count = values.len();
    let mut rng = Key::new(seed, "bootstrap").rng();
    let mut means: Vec<f64> = (0..draws)
        .map(|_| (0..count).map(|_| values[rng.below(count)]).sum::<f64>() / count as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let (low, high) = (percentile(&means, 0.025), percentile(&means, 0.975));
    Ok(Interval { mean: centre, deviation, low, high, count })
}

fn moments(values: &[f64]) -> Result<(f64, f64), Error> {
    some("values", values)?;
    for (at, &value) in values.iter().enumerate() {
        finite(|| format!("values[{at}]"), value)?;
    }
    let centre = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    let freedom = values.len().saturating_sub(1).max(1);
    Ok((centre, (squares / freedom as f64).sqrt()))
}

/// Value at a share of sorted numbers, linear between ranks; there must be one.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// The t with `P(|T| < t) = share` for Student's distribution; 0 degrees of freedom count as 1.
pub fn student_t(freedom: usize, share: f64) -> f64 {
    let freedom = freedom.max(1);
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    // Bisection of the angle atan(t / √freedom) to the last bit.
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if within(middle, freedom) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high).tan() * (freedom as f64).sqrt()
}

/// P(|T| < t) at an angle: finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4).
fn within(angle: f64, freedom: usize) -> f64 {
    let (sine, cosine) = angle.sin_cos();
    let square = cosine * cosine;
    let odd = freedom % 2 == 1;
    let (mut term, mut sum) = (if odd { cosine } else { 1.0 }, 0.0);
    // Factors 2/3, 4/5, ... of an odd number; 1/2, 3/4, ... of an even one.
    let mut top = if odd { 2.0 } else { 1.0 };
    for _ in 0..(if odd { (freedom - 1) / 2 } else { freedom / 2 }) {
        sum += term;
        term *= square * top / (top + 1.0);
        top += 2.0;
    }
    if odd { (angle + sine * sum) * 2.0 / PI } else { sine * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        // scipy.stats.t.ppf(0.975, freedom) of SciPy 1.17.1.
        for (freedom, expected) in QUANTILES {
            let found = student_t(freedom, 0.95);
            assert!((found / expected - 1.0).abs() < 1e-12, "{freedom}: {found}");
        }
    }

    const QUANTILES: [(usize, f64); 10] = [
        (1, 12.706204736174694),
        (2, 4.302652729749462),
        (3, 3.1824463052837078),
        (4, 2.7764451051977934),
        (5, 2.5705818356363146),
        (9, 2.262157162798205),
        (10, 2.228138851986274),
        (30, 2.0422724563012378),
        (101, 1.983731002955606),
        (1000, 1.9623390808264083),
    ];

    #[test]
    fn three_seeds_have_a_wide_interval() {
        let found = over_seeds(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((found.mean, found.deviation, found.count), (2.0, 1.0, 3));
        // t / √3, where t = 0.95 · √(2 / (1 - 0.95²)).
        assert!((found.high - 2.0 - 2.4841377117503307).abs() < 1e-9, "{found:?}");
        let one = over_seeds(&[5.0]).unwrap();
        assert_eq!((one.low, one.high, one.deviation), (5.0, 5.0, 0.0));
        assert_eq!(over_seeds(&[]).unwrap_err(), Error::Empty { at: "values".to_owned() });
        assert!(over_seeds(&[1.0, f64::NAN]).is_err());
    }

    #[test]
    fn the_bootstrap_is_near_the_normal_interval() {
        let values: Vec<f64> = (0..400).map(|at| f64::from(at % 10)).collect();
        let found = bootstrap(&values, 4000, 1).unwrap();
        assert_eq!(found, bootstrap(&values, 4000, 1).unwrap());
        let half = 1.96 * found.deviation / 20.0;
        // The ends of 4000 draws scatter by a few hundredths of the half width.
        assert!((found.low - (4.5 - half)).abs() < 0.15 * half, "{found:?}");
        assert!((found.high - (4.5 + half)).abs() < 0.15 * half, "{found:?}");
        let same = bootstrap(&[2.0; 5], 10, 1).unwrap();
        assert_eq!((same.low, same.high), (2.0, 2.0));
        assert!(bootstrap(&[1.0], 0, 1).is_err());
    }
}
