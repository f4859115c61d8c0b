//! Writing: the words that a network tells one after the other.
//!
//! [`generate`] takes any [`Decoder`], with prompts of words or of embeddings, padded on the left. What is
//! drawn is a function of the key, the sample and the number of the new word, so that a sample is written
//! alike alone and in a batch. Rows that have ended leave the batch.

mod beams;
mod choice;
pub mod decoder;

use burn::tensor::{FloatDType, Tensor};
use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use schemas::node::NodeError;
use serde::{Deserialize, Serialize};

use crate::layers::padding::Rows;
use crate::rng::Key;
use decoder::{Decoder, Prompt};

/// How the next word is found.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Search {
    /// The word with the greatest score.
    #[default]
    Greedy,
    /// Drawn.
    Sample {
        /// Divisor of the scores: below 1 likely words become more likely.
        #[serde(default = "one")]
        temperature: f64,
        /// Only so many most likely words are drawn from; 0 for all.
        #[serde(default)]
        top_k: usize,
        /// Only the most likely words are drawn from that together have this probability.
        #[serde(default = "one")]
        top_p: f64,
    },
    /// The most likely text among so many that are followed at the same time.
    Beams {
        /// Texts followed.
        beams: usize,
        /// A text counts with its log probability over its length to this power.
        #[serde(default = "one")]
        length_penalty: f64,
    },
}

fn one() -> f64 {
    1.0
}

/// How texts are written, and when they end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How the next word is found.
    pub search: Search,
    /// Most new words of a text.
    pub max_tokens: usize,
    /// Words that end a text; they are not part of it.
    pub stop_ids: Vec<i64>,
    /// Strings that end a text; they are cut off the decoded text.
    pub stop_strings: Vec<String>,
    /// Whether the scores of all words are kept for each new word; not with beams.
    pub keep_scores: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            search: Search::default(),
            max_tokens: 64,
            stop_ids: Vec::new(),
            stop_strings: Vec::new(),
            keep_scores: false,
        }
    }
}

impl Settings {
    /// Problems that the settings show.
    pub fn check(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if self.max_tokens == 0 {
            refuse("max_tokens", "`max_tokens` is 0".to_owned(), "64 is usual");
        }
        if self.stop_strings.iter().any(String::is_empty) {
            refuse("stop_strings", "an empty string ends every text".to_owned(), "leave it out");
        }
        match self.search {
            Search::Greedy => {}
            Search::Sample { temperature, top_p, .. } => {
                if !(temperature > 0.0 && temperature.is_finite()) {
                    let message = format!("`temperature` is {temperature}, not above 0");
                    refuse("search.temperature", message, "write `by: greedy` for no draws");
                }
                if !(top_p > 0.0 && top_p <= 1.0) {
                    let message = format!("`top_p` is {top_p}, not above 0 and up to 1");
                    refuse("search.top_p", message, "0.9 is usual; 1 is all words");
                }
            }
            Search::Beams { beams, length_penalty } => {
                if !(1..=1024).contains(&beams) {
                    let message = format!("`beams` is {beams}, not from 1 to 1024");
                    refuse("search.beams", message, "5 is usual");
                }
                if !length_penalty.is_finite() {
                    let message = format!("`length_penalty` is {length_penalty}");
                    refuse("search.length_penalty", message, "1 is usual");
                }
                if self.keep_scores {
                    let message = "beams keep no scores".to_owned();
                    refuse("keep_scores", message, "leave `keep_scores` out");
                }
            }
        }
        problems
    }
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A word that ends texts.
    StopId(i64),
    /// A string that ends texts.
    StopString(String),
    /// It has as many words as were asked for.
    MaxTokens,
    /// The context of the network is full.
    Context,
}

/// A text that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new words.
    pub tokens: Vec<i64>,
    /// The new words decoded, up to a string that ended them; none without a decoder of words.
    pub text: Option<String>,
    /// Sum of the log probabilities of the new words and of the one that ended them.
    pub log_probability: f64,
    /// Why it ended.
    pub end: End,
    /// Scores of all words, for each new word; empty unless they are kept.
    pub scores: Vec<Vec<f32>>,
}

/// Turns words into text.
pub type Decode<'a> = &'a dyn Fn(&[i64]) -> String;

/// Writes on. `decode` is needed for strings that end texts.
pub fn generate<D: Decoder>(
    decoder: &D,
    prompt: &Prompt,
    settings: &Settings,
    decode: Option<Decode<'_>>,
    key: &Key,
) -> Result<Vec<Generated>, NodeError> {
    if let Some(problem) = settings.check().into_iter().next() {
        let reason = format!("{}; {}", problem.message, problem.hint);
        return Err(NodeError::Option { option: problem.option, reason });
    }
    if !settings.stop_strings.is_empty() && decode.is_none() {
        let reason = "strings end a text only where words are decoded; give a decoder of words";
        let option = "stop_strings".to_owned();
        return Err(NodeError::Option { option, reason: reason.to_owned() });
    }
    let dims = prompt.dims();
    let rows = Rows::of(prompt.mask.as_ref(), dims, decoder.context())?;
    // The last word needs no place: nothing is read after it.
    let room = |length: usize| decoder.context() - length + 1;
    let rooms: Vec<usize> = rows.lengths(dims[1]).into_iter().map(room).collect();
    let ending = Ending { settings, decode };
    match settings.search {
        Search::Beams { beams, length_penalty } => {
            beams::search(decoder, prompt, &ending, &rooms, (beams, length_penalty))
        }
        _ => one_by_one(decoder, prompt, &ending, &rooms, key),
    }
}

/// When texts end.
struct Ending<'a> {
    settings: &'a Settings,
    decode: Option<Decode<'a>>,
}

impl Ending<'_> {
    /// Whether words that were written end the text.
    fn of(&self, tokens: &[i64], room: usize) -> Option<End> {
        if let (Some(decode), false) = (self.decode, self.settings.stop_strings.is_empty()) {
            let text = decode(tokens);
            // The one that comes first in the text, and of those the longest.
            let places = self.settings.stop_strings.iter().filter_map(|s| Some((text.find(s)?, s)));
            let found = places.min_by_key(|(place, s)| (*place, std::cmp::Reverse(s.len())));
            if let Some((_, found)) = found {
                return Some(End::StopString(found.clone()));
            }
        }
        match tokens.len() {
            count if count >= self.settings.max_tokens => Some(End::MaxTokens),
            count if count >= room => Some(End::Context),
            _ => None,
        }
    }

    fn stops(&self, token: i64) -> bool {
        self.settings.stop_ids.contains(&token)
    }

    /// The text of some words, up to what ended it.
    fn text(&self, tokens: &[i64], end: &End) -> Option<String> {
        let mut text = self.decode?(tokens);
        if let End::StopString(string) = end {
            text.truncate(text.find(string.as_str()).unwrap_or(text.len()));
        }
        Some(text)
    }
}

/// Scores `[rows, V]` on the host, row by row.
fn to_rows(scores: Tensor<2>) -> Result<Vec<Vec<f32>>, NodeError> {
    let width = scores.dims()[1].max(1);
    let data = scores.inner().cast(FloatDType::F32).into_data();
    let values: Vec<f32> = data.iter::<f32>().collect();
    if values.iter().any(|score| score.is_nan()) {
        let reason = "scores of words are not numbers; check the weights".to_owned();
        return Err(NodeError::Data { what: "generation".to_owned(), reason });
    }
    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
}

/// Greedy and drawn texts.
fn one_by_one<D: Decoder>(
    decoder: &D,
    prompt: &Prompt,
    ending: &Ending<'_>,
    rooms: &[usize],
    key: &Key,
) -> Result<Vec<Generated>, NodeError> {
    let (mut cache, scores) = decoder.prefill(prompt)?;
    let mut scores = to_rows(scores)?;
    let empty = || Generated {
        tokens: Vec::new(),
        text: None,
        log_probability: 0.0,
        end: End::MaxTokens,
        scores: Vec::new(),
    };
    let mut texts: Vec<Generated> = rooms.iter().map(|_| empty()).collect();
    let mut active: Vec<usize> = (0..texts.len()).collect();
    loop {
        let (mut words, mut rows) = (Vec::new(), Vec::new());
        for (row, (sample, scores)) in active.iter().zip(scores).enumerate() {
            let text = &mut texts[*sample];
            let key = key.with_number(*sample as u64).with_number(text.tokens.len() as u64);
            let word = choice::choose(&scores, &ending.settings.search, &key);
            text.log_probability += choice::log_probability(&scores, word);
            if ending.settings.keep_scores {
                text.scores.push(scores);
            }
            let word = word as i64;
            let end = if ending.stops(word) {
                Some(End::StopId(word))
            } else {
                text.tokens.push(word);
                ending.of(&text.tokens, rooms[*sample])
            };
            match end {
                Some(end) => {
                    text.text = ending.text(&text.tokens, &end);
                    text.end = end;
                }
                None => {
                    words.push(word);
                    rows.push(row);
                }
            }
        }
        if rows.is_empty() {
            return Ok(texts);
        }
        if rows.len() < active.len() {
            decoder.select(&mut cache, &rows);
            active = rows.iter().map(|row| active[*row]).collect();
        }
        scores = to_rows(decoder.step(&words, &mut cache)?)?;
    }
}

#[cfg(test)]
mod tests;
