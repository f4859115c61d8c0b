//! f32 loops over rows for the CPU, in the widest instructions of the machine.
//!
//! Sums run in sixteen lanes and nothing is fused into multiply-adds, so every machine computes the same bits,
//! whatever its instructions and however many threads share the rows.

use rayon::prelude::*;

/// Lanes of a sum.
const LANES: usize = 16;
/// Numbers that one task works on, at least: less is not worth a thread change.
const TASK: usize = 1 << 14;

/// Rows of `width` numbers in one task; a function of the width alone.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Runs a loop in the widest instructions of this machine; what it calls must be inlined.
#[inline(always)]
pub(crate) fn wide<T>(work: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(work)
}

/// Calls `work` with the number of a task's first row and its rows of `out`, on all threads.
pub(crate) fn over_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(width);
    let run = |(task, out): (usize, &mut [f32])| wide(|| work(task * rows, out));
    if out.len() <= rows * width {
        return run((0, out));
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(run);
}

/// The sum of `term` over all places.
#[inline(always)]
pub(crate) fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    for place in whole..len {
        lanes[place - whole] += term(place);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The greatest number; NaN is passed over.
#[inline(always)]
pub(crate) fn greatest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let more = |greatest: f32, x: f32| if x > greatest { x } else { greatest };
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for (greatest, x) in lanes.iter_mut().zip(chunk) {
            *greatest = more(*greatest, *x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, more)
}

/// `e^x`, to 1e-7 of itself; arguments beyond -87 and 88 count as these.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added to a small number, leaves its integer part in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // The parts of ln 2: multiples of the first have no rounding error.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let rest = x - power * LN_2.0 - power * LN_2.1;
    // Minimax polynomial of Cephes' expf.
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * rest + coefficient;
    }
    let near_one = p * (rest * rest) + rest + 1.0;
    near_one * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, to 5e-7: a rational approximation on -4..4, beyond which it is 1 in f32.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    const TOP: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_5e-8,
        -2.101_024_1e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const BOTTOM: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let (mut top, mut bottom) = (0.0, 0.0);
    for coefficient in TOP {
        top = top * square + coefficient;
    }
    for coefficient in BOTTOM {
        bottom = bottom * square + coefficient;
    }
    x * top / bottom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_close_to_their_exact_values() {
        let points = (-120_000..120_000).map(|i| i as f32 * 7e-4);
        for x in points {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1.2e-7, "exp {x}");
        }
        // From tables of the error function.
        for (x, exact) in [
            (0.0, 0.0),
            (0.1, 0.112_462_92),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (3.0, 0.999_977_9),
            (4.0, 1.0),
            (9.0, 1.0),
        ] {
            assert!((erf(x) - exact).abs() < 5e-7, "erf {x}");
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(-200.0) < 1e-37, sigmoid(200.0)), (true, 1.0));
    }

    #[test]
    fn sums_and_maxima_take_every_place() {
        for len in 0..70 {
            assert_eq!(sum(len, |i| i as f32), (0..len).sum::<usize>() as f32);
            let row: Vec<f32> = (0..len).map(|i| ((i * 37) % 71) as f32 - 80.0).collect();
            let exact = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(greatest(&row), exact);
        }
    }

    #[test]
    fn tasks_cover_all_rows_once() {
        let mut out = vec![0.0; 3 * 20_000];
        over_rows(&mut out, 3, |first, out| {
            for (i, x) in out.iter_mut().enumerate() {
                *x += (3 * first + i) as f32;
            }
        });
        assert!(out.iter().enumerate().all(|(i, x)| *x == i as f32));
    }
}
