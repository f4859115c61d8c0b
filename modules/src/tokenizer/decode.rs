//! Ids to text.

use super::Tokenizer;
use super::error::TextError;
use super::files::guarded;

impl Tokenizer {
    /// The text of ids; `skip_special` leaves special tokens out.
    ///
    /// Ids that name no token are left out too: a padded embedding table has rows for them. A
    /// negative id, such as an ignored label, is an error.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String, TextError> {
        let ids = ids.iter().map(|&id| checked(id)).collect::<Result<Vec<_>, _>>()?;
        self.decode_ids(&ids, skip_special)
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self, skip_special: bool) -> Stream<'_> {
        Stream { tokenizer: self, skip_special, ids: Vec::new(), shown: String::new(), since: 0 }
    }

    fn decode_ids(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let text = guarded(|| self.inner.decode(ids, skip_special));
        text.map_err(|reason| TextError::Decode { reason })
    }
}

fn checked(id: i64) -> Result<u32, TextError> {
    u32::try_from(id).map_err(|_| TextError::Decode { reason: format!("{id} is no id") })
}

/// Decodes ids as they are generated: tokens in, pieces of text out.
///
/// The pieces and the end that [`Stream::finish`] gives are together what
/// [`Tokenizer::decode`] gives for all ids. A character of several tokens comes when it is whole;
/// a byte token waits for the next token that is none, since bytes are decoded in groups.
#[derive(Debug, Clone)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Tokens of the last piece, which the next one may lean on, and those held back.
    ids: Vec<u32>,
    /// Text of the tokens before `since`.
    shown: String,
    /// The first token that is held back.
    since: usize,
}

impl Stream<'_> {
    /// Takes an id; gives the text that is now certain, often none.
    pub fn push(&mut self, id: i64) -> Result<String, TextError> {
        let id = checked(id)?;
        let token = self.tokenizer.inner.id_to_token(id);
        let skipped = self.skip_special && self.tokenizer.is_special(id);
        let Some(token) = token.filter(|_| !skipped) else { return Ok(String::new()) };
        self.ids.push(id);
        if is_byte(&token) {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode_ids(&self.ids, self.skip_special)?;
        let Some(piece) = text.strip_prefix(&self.shown) else { return Ok(String::new()) };
        // A replacement character may be the beginning of a character.
        if piece.is_empty() || piece.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let piece = piece.to_owned();
        self.ids.drain(..self.since);
        self.since = self.ids.len();
        self.shown = self.tokenizer.decode_ids(&self.ids, self.skip_special)?;
        Ok(piece)
    }

    /// The text that was held back; the stream begins anew.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.tokenizer.decode_ids(&self.ids, self.skip_special)?;
        let shown = std::mem::take(&mut self.shown);
        self.ids.clear();
        self.since = 0;
        Ok(text.strip_prefix(&shown).unwrap_or_default().to_owned())
    }
}

/// Whether this is a token of byte fallback, such as `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
