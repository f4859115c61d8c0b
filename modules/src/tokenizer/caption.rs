//! Captions as InternVideo2 stage 2 trains on them.
//!
//! Source: InternVideo2 (Wang et al. 2024), stage 2: caption cleaning and masked language
//! modelling after BERT (Devlin et al. 2019) with a share of one half.

use super::dialogue::IGNORED;
use super::encode::Batch;
use super::error::TextError;
use super::{Special, Tokenizer};
use crate::rng::Key;

/// A caption in lower case, without the marks `, . ' ! ? " ( ) * # : ; ~`, with blanks for
/// `-` and `/`, and with single blanks.
pub fn clean_caption(caption: &str) -> String {
    let mut text = caption.to_lowercase();
    text.retain(|letter| !",.'!?\"()*#:;~".contains(letter));
    let text = text.replace(['-', '/'], " ").replace("<person>", "person");
    let mut clean = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let run = letter.is_whitespace() && letters.peek().is_some_and(|next| next.is_whitespace());
        while run && letters.next_if(|next| next.is_whitespace()).is_some() {}
        clean.push(if run { ' ' } else { letter });
    }
    clean.trim_end_matches('\n').trim_matches(' ').to_owned()
}

/// Corruption of ids for masked language modelling.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskedText {
    /// Share of the tokens that are predicted; 0.5 in InternVideo2.
    pub share: f64,
    /// Id of the mask token.
    pub mask: i64,
    /// Ids that are never predicted: padding and the first token.
    pub kept: Vec<i64>,
    /// Ids to draw from: 0 to this, exclusive.
    pub vocabulary: u64,
}

/// Corrupted ids and what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupted {
    /// Ids, row-major `[B, L]`.
    pub ids: Vec<i64>,
    /// The original id where it is to be predicted, else [`IGNORED`], row-major `[B, L]`.
    pub labels: Vec<i64>,
}

impl MaskedText {
    /// Corruption in terms of a tokenizer of BERT.
    pub fn new(tokenizer: &Tokenizer, share: f64) -> Result<Self, TextError> {
        if !(0.0..=1.0).contains(&share) {
            let reason = format!("the share of masked tokens is {share}; give one from 0 to 1");
            return Err(TextError::Argument(reason));
        }
        let mask = tokenizer.need(Special::Mask)?;
        let kept = vec![tokenizer.need(Special::Pad)?, tokenizer.need(Special::Cls)?];
        Ok(Self { share, mask, kept, vocabulary: tokenizer.vocabulary_size() })
    }

    /// Corrupts a batch; each row draws from its own key below `key`.
    pub fn batch(&self, batch: &Batch, key: &Key) -> Corrupted {
        let mut corrupted = Corrupted { ids: Vec::new(), labels: Vec::new() };
        let width = batch.shape[1].max(1);
        let rows = batch.ids.chunks(width).zip(batch.mask.chunks(width));
        for (row, (ids, mask)) in rows.enumerate() {
            let one = self.row(ids, mask, &key.with_number(row as u64));
            corrupted.ids.extend(one.ids);
            corrupted.labels.extend(one.labels);
        }
        corrupted
    }

    /// Corrupts one text. Each token is chosen with probability `share`; of the chosen 80 %
    /// become the mask token, 10 % any id, 10 % stay. A draw depends on the key and the position
    /// only.
    pub fn row(&self, ids: &[i64], mask: &[i64], key: &Key) -> Corrupted {
        let mut corrupted = Corrupted { ids: ids.to_vec(), labels: vec![IGNORED; ids.len()] };
        for (at, (&id, &seen)) in ids.iter().zip(mask).enumerate() {
            let mut rng = key.with_number(at as u64).rng();
            if seen == 0 || self.kept.contains(&id) || !rng.chance(self.share) {
                continue;
            }
            corrupted.labels[at] = id;
            let form = rng.uniform();
            if form < 0.8 {
                corrupted.ids[at] = self.mask;
            } else if form < 0.9 {
                corrupted.ids[at] = rng.below(self.vocabulary as usize) as i64;
            }
        }
        corrupted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bert() -> MaskedText {
        MaskedText { share: 0.5, mask: 4, kept: vec![0, 2], vocabulary: 1000 }
    }

    #[test]
    fn captions_lose_marks_and_runs_of_blanks() {
        assert_eq!(
            clean_caption("  A man's dog - running/jumping...\n\n\"FAST\" (outside); #1 ~ ok?! \n"),
            "a mans dog running jumping fast outside 1 ok"
        );
        assert_eq!(clean_caption("<PERSON> waves\tback"), "person waves\tback");
        assert_eq!(clean_caption("?!"), "");
    }

    #[test]
    fn shares_are_those_of_the_paper() {
        let length = 20_000;
        let mut ids = vec![7; length];
        (ids[0], ids[length - 1]) = (2, 3);
        let mut mask = vec![1; length];
        mask[5..10].fill(0);
        ids[5..10].fill(0);
        let done = bert().row(&ids, &mask, &Key::new(1, "mlm"));
        let share = |test: &dyn Fn(usize) -> bool| {
            (0..length).filter(|&at| test(at)).count() as f64 / length as f64
        };
        let chosen = |at: usize| done.labels[at] != IGNORED;
        assert!(!chosen(0) && (5..10).all(|at| !chosen(at)));
        // Four deviations of binomial shares.
        assert!((share(&chosen) - 0.5).abs() < 0.015);
        assert!((share(&|at| chosen(at) && done.ids[at] == 4) - 0.4).abs() < 0.015);
        assert!((share(&|at| chosen(at) && done.ids[at] == 7) - 0.05).abs() < 0.007);
        let drawn = |at: usize| chosen(at) && done.ids[at] != 7 && done.ids[at] != 4;
        assert!((share(&drawn) - 0.05).abs() < 0.007);
        assert!((0..length).all(|at| chosen(at) || done.ids[at] == ids[at]));
        assert!(done.ids.iter().all(|id| (0..1000).contains(id)));
    }

    #[test]
    fn a_draw_depends_on_key_row_and_position_only() {
        let key = Key::new(1, "mlm");
        let long = bert().row(&[7; 40], &[1; 40], &key);
        let short = bert().row(&[7; 20], &[1; 20], &key);
        assert_eq!(long.ids[..20], short.ids[..]);
        assert_eq!(long, bert().row(&[7; 40], &[1; 40], &key));
        assert_ne!(long, bert().row(&[7; 40], &[1; 40], &key.with_number(1)));
        let batch = Batch { ids: vec![7; 40], mask: vec![1; 40], shape: [2, 20] };
        let both = bert().batch(&batch, &key);
        let second = bert().row(&[7; 20], &[1; 20], &key.with_number(1));
        assert_eq!((&both.ids[20..], &both.labels[20..]), (&second.ids[..], &second.labels[..]));
    }
}
