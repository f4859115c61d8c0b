//! One word out of the scores of all.
//!
//! Source: Fan et al. 2018 (arXiv 1805.04833) for the most likely words, Holtzman et al. 2020 (arXiv
//! 1904.09751) for the words that together have a probability.

use super::Search;
use crate::rng::Key;

/// Number of the word that follows. Equal scores: the first one.
pub(super) fn choose(scores: &[f32], search: &Search, key: &Key) -> usize {
    match *search {
        Search::Sample { temperature, top_k, top_p } => {
            draw(scores, temperature, (top_k, top_p), key.rng().uniform())
        }
        _ => greatest(scores),
    }
}

fn greatest(scores: &[f32]) -> usize {
    let better = |best: usize, (word, score): (usize, &f32)| {
        if *score > scores[best] { word } else { best }
    };
    scores.iter().enumerate().fold(0, better)
}

/// The word at a share of the probability of all words that may follow, likely ones first.
fn draw(scores: &[f32], temperature: f64, (top_k, top_p): (usize, f64), share: f64) -> usize {
    let mut words: Vec<usize> = (0..scores.len()).collect();
    let likely = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if top_k > 0 && top_k < words.len() {
        words.select_nth_unstable_by(top_k, likely);
        words.truncate(top_k);
    }
    words.sort_unstable_by(likely);
    let Some(first) = words.first() else { return 0 };
    let most = f64::from(scores[*first]);
    let weight = |word: &usize| ((f64::from(scores[*word]) - most) / temperature).exp();
    let mut weights: Vec<f64> = words.iter().map(weight).collect();
    let within = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let kept = weights.iter().take_while(|weight| {
        let begins_inside = sum < within;
        sum += **weight;
        begins_inside
    });
    let kept = kept.count().max(1);
    weights.truncate(kept);
    let target = share * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let before = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    words[before.unwrap_or(kept - 1)]
}

/// The logarithm of the probability of a word.
pub(super) fn log_probability(scores: &[f32], word: usize) -> f64 {
    f64::from(scores[word]) - log_sum(scores)
}

/// The logarithm of the sum of the exponentials.
pub(super) fn log_sum(scores: &[f32]) -> f64 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let most = if most.is_finite() { f64::from(most) } else { 0.0 };
    most + scores.iter().map(|score| (f64::from(*score) - most).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 4] = [0.0, 3.0, 1.0, 2.0];

    #[test]
    fn shares_of_the_probability_are_words_from_likely_to_unlikely() {
        let word = |limits, share| draw(&SCORES, 1.0, limits, share);
        let all: f64 = SCORES.iter().map(|score| f64::from(*score).exp()).sum();
        let first = 3f64.exp() / all;
        assert_eq!(word((0, 1.0), first - 1e-6), 1);
        assert_eq!(word((0, 1.0), first + 1e-6), 3);
        assert_eq!(word((0, 1.0), 1.0 - 1e-9), 0);
        assert_eq!(word((1, 1.0), 0.999), 1);
        assert_eq!(word((2, 1.0), 0.999), 3);
        // The word that crosses the bound is still one of them.
        assert_eq!(word((0, first + 1e-6), 0.999), 3);
        assert_eq!(word((0, first - 1e-6), 0.999), 1);
    }

    #[test]
    fn a_low_temperature_draws_the_best_and_a_high_one_draws_any() {
        let counts = |temperature| {
            let mut counts = [0; 4];
            for number in 0..2000 {
                let search = Search::Sample { temperature, top_k: 0, top_p: 1.0 };
                counts[choose(&SCORES, &search, &Key::new(1, "t").with_number(number))] += 1;
            }
            counts
        };
        assert_eq!(counts(0.01), [0, 2000, 0, 0]);
        assert!(counts(100.0).iter().all(|count| (400..600).contains(count)));
        let plain = counts(1.0);
        let expected = 2000.0 * log_probability(&SCORES, 1).exp();
        assert!((f64::from(plain[1]) - expected).abs() < 90.0, "{plain:?} {expected}");
    }
}
