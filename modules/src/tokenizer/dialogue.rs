//! Dialogues to ids, with labels on the answers.
//!
//! Answers are found in the rendered text: either the template marks them with
//! `{% generation %}`, or the dialogue is rendered again with two letters that occur nowhere else
//! around each answer. That rendering must be the plain one once the letters are gone, so a
//! template that does more to an answer than strip it is refused rather than labelled wrongly.

use std::ops::Range;

use super::chat::{ChatTemplate, Message, Role};
use super::encode::{Encoded, Layout, Long, Side};
use super::error::TextError;
use super::{Special, Tokenizer};

pub use crate::layers::labelled::IGNORED;

/// A dialogue as a model is trained on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// Ids, padded.
    pub ids: Vec<i64>,
    /// 1 for tokens, 0 for padding.
    pub mask: Vec<i64>,
    /// The id where a token belongs to an answer or ends it, else [`IGNORED`]. Not shifted.
    pub labels: Vec<i64>,
    /// The rendered dialogue.
    pub text: String,
    /// Characters of `text` that are labelled, by answer.
    pub answers: Vec<Range<usize>>,
}

/// Ids that stand in a text for a letter, where rows of another network go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spliced {
    /// The letter; no answer may hold it.
    pub letter: char,
    /// What stands there. These ids have no labels.
    pub ids: Vec<i64>,
}

impl Spliced {
    /// Tokens of a text; what stands before and after the letter is encoded on its own.
    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Encoded, TextError> {
        let mut all = Encoded::default();
        let mut base = 0;
        for (number, piece) in text.split(self.letter).enumerate() {
            if number > 0 {
                all.offsets.extend(std::iter::repeat_n((base, base + 1), self.ids.len()));
                all.ids.extend(&self.ids);
                base += 1;
            }
            if !piece.is_empty() {
                let encoded = tokenizer.encode(piece, false)?;
                let moved = |(start, end)| (base + start, base + end);
                all.offsets.extend(encoded.offsets.into_iter().map(moved));
                all.ids.extend(encoded.ids);
            }
            base += piece.chars().count();
        }
        Ok(all)
    }
}

impl ChatTemplate {
    /// Ids, mask and labels of a dialogue for training on the answers only.
    ///
    /// The template writes the special tokens, so none are added. Labelled are the answer, the
    /// special token that ends the turn, and blanks between; of a template with
    /// `{% generation %}` blocks exactly those blocks. An empty answer has no labels.
    pub fn encode_dialogue(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        layout: &Layout,
    ) -> Result<Dialogue, TextError> {
        self.encode_spliced(tokenizer, messages, None, layout)
    }

    /// As [`ChatTemplate::encode_dialogue`], with other ids in the place of a letter.
    pub fn encode_spliced(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        spliced: Option<&Spliced>,
        layout: &Layout,
    ) -> Result<Dialogue, TextError> {
        let text = self.render(messages, false)?;
        let found =
            if self.has_blocks() { self.blocks(messages)? } else { self.answers(messages, &text)? };
        let encoded = match spliced {
            Some(spliced) => spliced.encode(tokenizer, &text)?,
            None => tokenizer.encode(text.as_str(), false)?,
        };
        let tokens: Vec<(usize, usize)> = encoded.offsets;
        let eos = tokenizer.special_text(Special::Eos).unwrap_or_default();
        let special =
            |at: usize| u32::try_from(encoded.ids[at]).is_ok_and(|id| tokenizer.is_special(id));
        let letters: Vec<char> = text.chars().collect();
        let answers: Vec<Range<usize>> = found
            .into_iter()
            .map(|Answer { span, tail }| {
                let tail = &letters[span.end..(span.end + tail).min(letters.len())];
                let blanks = tail.iter().take_while(|letter| letter.is_whitespace()).count();
                let (start, limit) = (span.end + blanks, span.end + tail.len());
                let ends = (0..tokens.len())
                    .find(|&at| tokens[at].0 == start && tokens[at].1 <= limit && special(at));
                let written: String = tail.iter().skip(blanks).collect();
                let end = match ends {
                    Some(at) => tokens[at].1,
                    None if !eos.is_empty() && written.starts_with(eos) => {
                        start + eos.chars().count()
                    }
                    None => span.end,
                };
                span.start..end
            })
            .collect();
        let belongs = |&(start, end): &(usize, usize)| {
            answers.iter().any(|span| match start < end {
                true => start < span.end && span.start < end,
                // Blanks whose offsets were trimmed away.
                false => span.start < start && start <= span.end,
            })
        };
        let label = |(&id, token)| if belongs(token) { id } else { IGNORED };
        let labels = encoded.ids.iter().zip(&tokens).map(label).collect();
        let mut dialogue =
            Dialogue { mask: vec![1; tokens.len()], ids: encoded.ids, labels, text, answers };
        dialogue.fit(tokenizer, layout)?;
        Ok(dialogue)
    }

    /// What generation blocks gave.
    fn blocks(&self, messages: &[Message]) -> Result<Vec<Answer>, TextError> {
        let marks = self.marks(messages)?;
        let marked = self.run(messages, false, Some(marks))?;
        let Some((_, spans)) = unmark(&marked, marks) else {
            let reason = "`generation` blocks stand in one another".to_owned();
            return Err(TextError::Template { template: self.name().to_owned(), reason });
        };
        Ok(spans.into_iter().map(|span| Answer { span, tail: 0 }).collect())
    }

    /// Where the answers are in `text`.
    fn answers(&self, messages: &[Message], text: &str) -> Result<Vec<Answer>, TextError> {
        let spoken: Vec<usize> =
            (0..messages.len()).filter(|&at| is_answer(&messages[at])).collect();
        let Some(&first) = spoken.first() else { return Ok(Vec::new()) };
        let marks = self.marks(messages)?;
        for stripped in [false, true] {
            let marked = mark(messages, marks, stripped);
            let Ok(rendered) = self.run(&marked, false, None) else { continue };
            let Some((plain, spans)) = unmark(&rendered, marks) else { continue };
            if plain != text || spans.len() != spoken.len() {
                continue;
            }
            let letters: Vec<char> = plain.chars().collect();
            let mut answers = Vec::new();
            for (span, &message) in spans.into_iter().zip(&spoken) {
                let content = &messages[message].content;
                let content = if stripped { content.trim() } else { content };
                if !letters[span.clone()].iter().copied().eq(content.chars()) {
                    return Err(self.lost(message));
                }
                let tail = self.tail(&marked[..=message], marks, &letters[span.end..]);
                answers.push(Answer { span, tail });
            }
            return Ok(answers);
        }
        Err(self.lost(first))
    }

    fn lost(&self, message: usize) -> TextError {
        TextError::NoAnswer { template: self.name().to_owned(), message }
    }

    /// Letters after an answer that belong to its turn: those that also come when the dialogue
    /// ends with it.
    fn tail(&self, marked: &[Message], marks: [char; 2], after: &[char]) -> usize {
        let Ok(rendered) = self.run(marked, false, None) else { return 0 };
        let ended = rendered.rsplit(marks[1]).next().unwrap_or_default();
        ended.chars().zip(after).take_while(|(one, other)| one == *other).count()
    }

    /// Two letters for private use that occur nowhere in the dialogue or the template.
    fn marks(&self, messages: &[Message]) -> Result<[char; 2], TextError> {
        let free = |letter: &char| {
            !self.holds(*letter) && !messages.iter().any(|said| said.content.contains(*letter))
        };
        let mut letters = ('\u{f0000}'..='\u{f00ff}').filter(free);
        match (letters.next(), letters.next()) {
            (Some(begin), Some(end)) => Ok([begin, end]),
            _ => Err(TextError::Argument("the dialogue uses all letters for private use".into())),
        }
    }
}

/// An answer: its characters, and how many after it belong to the turn.
struct Answer {
    span: Range<usize>,
    tail: usize,
}

fn is_answer(message: &Message) -> bool {
    message.role == Role::Assistant && !message.content.trim().is_empty()
}

/// The dialogue with marks around its answers; `stripped` leaves blanks at the ends outside.
fn mark(messages: &[Message], [begin, end]: [char; 2], stripped: bool) -> Vec<Message> {
    let mut marked = messages.to_vec();
    for message in marked.iter_mut().filter(|message| is_answer(message)) {
        let all = &message.content;
        let core = if stripped { all.trim() } else { all };
        let start = if stripped { all.len() - all.trim_start().len() } else { 0 };
        let (before, after) = (&all[..start], &all[start + core.len()..]);
        message.content = format!("{before}{begin}{core}{end}{after}");
    }
    marked
}

/// The text without marks, and the characters that they enclosed; none when they do not pair.
fn unmark(text: &str, [begin, end]: [char; 2]) -> Option<(String, Vec<Range<usize>>)> {
    let (mut plain, mut spans) = (String::with_capacity(text.len()), Vec::new());
    let (mut at, mut open) = (0, None);
    for letter in text.chars() {
        if letter == begin {
            if open.replace(at).is_some() {
                return None;
            }
        } else if letter == end {
            spans.push(open.take()?..at);
        } else {
            plain.push(letter);
            at += 1;
        }
    }
    open.is_none().then_some((plain, spans))
}

impl Dialogue {
    /// Pads or cuts as the layout says.
    fn fit(&mut self, tokenizer: &Tokenizer, layout: &Layout) -> Result<(), TextError> {
        let (tokens, limit) = (self.ids.len(), layout.limit());
        let rows = [&mut self.ids, &mut self.mask, &mut self.labels];
        if tokens > limit {
            let Long::Cut(side) = layout.long else {
                return Err(TextError::TooLong { text: 0, tokens, limit });
            };
            for row in rows {
                match side {
                    Side::Right => row.truncate(limit),
                    Side::Left => drop(row.drain(..tokens - limit)),
                }
            }
            return Ok(());
        }
        let width = layout.width(tokens);
        if width > tokens {
            let pad = tokenizer.need(Special::Pad)?;
            for (row, value) in rows.into_iter().zip([pad, 0, IGNORED]) {
                layout.pad(row, width, value);
            }
        }
        Ok(())
    }
}
