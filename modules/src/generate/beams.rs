//! Beam search: several texts are followed at the same time, the most likely ones.
//!
//! A text that ends is set aside with its log probability over its length (the word that ended it counted)
//! to the power of the length penalty (Wu et al. 2016, arXiv 1609.08144). A sample is done when as many
//! texts are set aside as are followed, and the best followed one would not be better if it ended now.

use schemas::node::NodeError;

use super::choice::log_sum;
use super::decoder::{Decoder, Prompt};
use super::{End, Ending, Generated, to_rows};

/// A text that is followed.
#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<i64>,
    log_probability: f64,
}

/// A sample.
#[derive(Debug)]
struct Sample {
    number: usize,
    followed: Vec<Beam>,
    /// Texts that ended, with what they count.
    done: Vec<(f64, Generated)>,
}

/// What a beam goes on with: its number, the word, and the log probability of both.
type Next = (usize, usize, f64);

/// The best `count` continuations, best first.
fn best(followed: &[Beam], scores: &[Vec<f32>], count: usize) -> Vec<Next> {
    let mut all: Vec<Next> = Vec::new();
    for (number, (beam, scores)) in followed.iter().zip(scores).enumerate() {
        let level = beam.log_probability - log_sum(scores);
        let of = |(word, score): (usize, &f32)| (number, word, level + f64::from(*score));
        all.extend(scores.iter().enumerate().map(of));
    }
    let better = |a: &Next, b: &Next| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1)));
    if count < all.len() {
        all.select_nth_unstable_by(count, better);
        all.truncate(count);
    }
    all.sort_unstable_by(better);
    all
}

/// Searches with `beams` texts for each sample.
pub(super) fn search<D: Decoder>(
    decoder: &D,
    prompt: &Prompt,
    ending: &Ending<'_>,
    rooms: &[usize],
    (beams, penalty): (usize, f64),
) -> Result<Vec<Generated>, NodeError> {
    let (mut cache, scores) = decoder.prefill(prompt)?;
    let mut scores = to_rows(scores)?;
    let begin = Beam { tokens: Vec::new(), log_probability: 0.0 };
    let sample = |number| Sample { number, followed: vec![begin.clone()], done: Vec::new() };
    let mut active: Vec<Sample> = (0..rooms.len()).map(sample).collect();
    let mut texts: Vec<Option<Generated>> = vec![None; rooms.len()];
    while !active.is_empty() {
        let (mut rows, mut words, mut first, mut open) = (Vec::new(), Vec::new(), 0, Vec::new());
        for mut sample in active {
            let width = sample.followed.len();
            let scores = &scores[first..first + width];
            let goes_on = advance(&mut sample, scores, ending, rooms, (beams, penalty));
            if goes_on.is_empty() {
                let better = |a: &(f64, Generated), b: &(f64, Generated)| a.0.total_cmp(&b.0);
                // Of equal ones the last is the greatest: the first comes last.
                texts[sample.number] = sample.done.into_iter().rev().max_by(better).map(|t| t.1);
            } else {
                rows.extend(goes_on.iter().map(|from| first + from));
                words.extend(sample.followed.iter().filter_map(|beam| beam.tokens.last()));
                open.push(sample);
            }
            first += width;
        }
        active = open;
        if !active.is_empty() {
            decoder.select(&mut cache, &rows);
            scores = to_rows(decoder.step(&words, &mut cache)?)?;
        }
    }
    Ok(texts.into_iter().flatten().collect())
}

/// One more word for all texts of a sample. Returns which of the former texts each of the new ones goes on
/// with; nothing when the sample is done.
fn advance(
    sample: &mut Sample,
    scores: &[Vec<f32>],
    ending: &Ending<'_>,
    rooms: &[usize],
    (beams, penalty): (usize, f64),
) -> Vec<usize> {
    let length = sample.followed[0].tokens.len() + 1;
    let room = rooms[sample.number];
    let worth = |log_probability: f64| log_probability / (length as f64).powf(penalty);
    // So many that beams remain when every word that ends a text is among them.
    let count = beams * (ending.settings.stop_ids.len() + 1).max(2);
    let (mut followed, mut from) = (Vec::new(), Vec::new());
    for (rank, (beam, word, log_probability)) in
        best(&sample.followed, scores, count).into_iter().enumerate()
    {
        if followed.len() == beams {
            break;
        }
        let mut tokens = sample.followed[beam].tokens.clone();
        let word = word as i64;
        let end = if ending.stops(word) {
            Some(End::StopId(word))
        } else {
            tokens.push(word);
            ending.of(&tokens, room)
        };
        let Some(end) = end else {
            followed.push(Beam { tokens, log_probability });
            from.push(beam);
            continue;
        };
        // An end that is not among the best says little.
        if rank < beams {
            let text = ending.text(&tokens, &end);
            let scores = Vec::new();
            let text = Generated { tokens, text, log_probability, end, scores };
            sample.done.push((worth(log_probability), text));
        }
    }
    sample.done.sort_by(|a, b| b.0.total_cmp(&a.0));
    sample.done.truncate(beams);
    let best = followed.first().map(|beam| worth(beam.log_probability));
    let worst = sample.done.last().map(|text| text.0);
    let full = sample.done.len() == beams;
    sample.followed = followed;
    match (best, worst) {
        (Some(best), Some(worst)) if full && worst >= best => Vec::new(),
        _ => from,
    }
}
