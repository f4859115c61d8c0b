//! Text to ids.

use super::error::TextError;
use super::files::guarded;
use super::{Special, Tokenizer};
use tokenizers::{PostProcessor, TruncationDirection};

/// A text, or a pair of texts that go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// One text.
    Single(&'a str),
    /// Two texts, such as a premise and a hypothesis.
    Pair(&'a str, &'a str),
}

impl<'a> From<&'a str> for Input<'a> {
    fn from(text: &'a str) -> Self {
        Self::Single(text)
    }
}

impl<'a> From<(&'a str, &'a str)> for Input<'a> {
    fn from((first, second): (&'a str, &'a str)) -> Self {
        Self::Pair(first, second)
    }
}

/// Tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids.
    pub ids: Vec<i64>,
    /// Characters `[start, end)` of the text that a token covers; `(0, 0)` of special tokens that
    /// were added. In a pair, of the token's own text.
    pub offsets: Vec<(usize, usize)>,
    /// 0, and 1 for tokens of a second text.
    pub type_ids: Vec<i64>,
    /// 1 where a special token was added, else 0.
    pub special: Vec<i64>,
}

/// How long the rows of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Length {
    /// As the longest text.
    #[default]
    Longest,
    /// This many tokens.
    Fixed(usize),
}

/// An end of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The beginning; generation needs its padding here.
    Left,
    /// The end.
    #[default]
    Right,
}

/// What happens to a text with more tokens than fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Long {
    /// It is an error with both numbers.
    #[default]
    Refuse,
    /// It loses tokens at this side; special tokens stay.
    Cut(Side),
}

/// The form of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Length of the rows.
    pub length: Length,
    /// Where padding goes.
    pub padding: Side,
    /// What happens to texts that do not fit.
    pub long: Long,
    /// The most tokens that the model takes; none when absent.
    pub context: Option<usize>,
}

impl Layout {
    /// Rows of this many tokens, padded and cut at the end.
    pub fn fixed(length: usize) -> Self {
        Self { length: Length::Fixed(length), long: Long::Cut(Side::Right), ..Self::default() }
    }

    /// The most tokens of a row.
    pub(super) fn limit(&self) -> usize {
        let length = match self.length {
            Length::Fixed(length) => length,
            Length::Longest => usize::MAX,
        };
        length.min(self.context.unwrap_or(usize::MAX))
    }

    /// The length of rows when the longest text has this many tokens.
    pub(super) fn width(&self, longest: usize) -> usize {
        match self.length {
            Length::Fixed(length) => length.min(self.context.unwrap_or(usize::MAX)),
            Length::Longest => longest,
        }
    }

    /// Fills a row with `value` up to `width`.
    pub(super) fn pad(&self, row: &mut Vec<i64>, width: usize, value: i64) {
        let missing = width.saturating_sub(row.len());
        match self.padding {
            Side::Right => row.extend(std::iter::repeat_n(value, missing)),
            Side::Left => drop(row.splice(0..0, std::iter::repeat_n(value, missing))),
        }
    }
}

/// Rows of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Ids, row-major `[B, L]`.
    pub ids: Vec<i64>,
    /// 1 for tokens, 0 for padding, row-major `[B, L]`.
    pub mask: Vec<i64>,
    /// B and L.
    pub shape: [usize; 2],
}

impl Tokenizer {
    /// Tokens of a text or a pair; `special` adds what the model was trained with, such as
    /// `[CLS]` and `[SEP]`. Special tokens that are written in the text are found in any case.
    pub fn encode<'a>(
        &self,
        input: impl Into<Input<'a>>,
        special: bool,
    ) -> Result<Encoded, TextError> {
        let encoding = guarded(|| match input.into() {
            Input::Single(text) => self.inner.encode_char_offsets(text, special),
            Input::Pair(first, second) => self.inner.encode_char_offsets((first, second), special),
        });
        let encoding = encoding.map_err(|reason| TextError::Encode { reason })?;
        let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect();
        Ok(Encoded {
            ids: wide(encoding.get_ids()),
            offsets: encoding.get_offsets().to_vec(),
            type_ids: wide(encoding.get_type_ids()),
            special: wide(encoding.get_special_tokens_mask()),
        })
    }

    /// Ids of texts with special tokens, as rows of one length.
    pub fn batch<T: AsRef<str>>(&self, texts: &[T], layout: &Layout) -> Result<Batch, TextError> {
        let mut rows = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            rows.push(self.row(index, text.as_ref(), layout)?);
        }
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = layout.width(longest);
        let padded = rows.iter().any(|row| row.len() < width);
        let pad = if padded { self.need(Special::Pad)? } else { 0 };
        let mut batch = Batch { ids: Vec::new(), mask: Vec::new(), shape: [texts.len(), width] };
        for mut ids in rows {
            let mut mask = vec![1; ids.len()];
            layout.pad(&mut ids, width, pad);
            layout.pad(&mut mask, width, 0);
            batch.ids.extend(ids);
            batch.mask.extend(mask);
        }
        Ok(batch)
    }

    /// Ids of one text, cut if that is allowed.
    fn row(&self, index: usize, text: &str, layout: &Layout) -> Result<Vec<i64>, TextError> {
        let ids = self.encode(text, true)?.ids;
        let limit = layout.limit();
        if ids.len() <= limit {
            return Ok(ids);
        }
        let Long::Cut(side) = layout.long else {
            return Err(TextError::TooLong { text: index, tokens: ids.len(), limit });
        };
        let processor = self.inner.get_post_processor();
        let special = processor.map_or(0, |processor| processor.added_tokens(false));
        let room = limit.checked_sub(special).ok_or(TextError::TooShort { limit, special })?;
        let side = match side {
            Side::Left => TruncationDirection::Left,
            Side::Right => TruncationDirection::Right,
        };
        let cut = guarded(|| {
            let mut plain = self.inner.encode_fast(text, false)?;
            plain.truncate(room, 0, side);
            plain.take_overflowing();
            self.inner.post_process(plain, None, true)
        });
        let cut = cut.map_err(|reason| TextError::Encode { reason })?;
        Ok(cut.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}
