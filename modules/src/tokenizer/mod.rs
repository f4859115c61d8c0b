//! Text: tokenizers, chat templates, captions, masked language modelling.
//!
//! | file       | what                                                              |
//! |------------|-------------------------------------------------------------------|
//! | `files`    | `tokenizer.json`, `vocab.txt` and what lies beside them           |
//! | `special`  | special tokens by role                                            |
//! | `encode`   | text to ids, batches                                              |
//! | `decode`   | ids to text, at once or as they come                              |
//! | `chat`     | dialogues to text by templates                                    |
//! | `dialogue` | dialogues to ids, with labels on the answers                      |
//! | `caption`  | cleaning of captions, corruption for masked language modelling    |
//!
//! Everything works in plain host memory. Ids, masks and labels are `i64`, as frames hold them.

mod bounds;
mod caption;
mod chat;
mod decode;
mod dialogue;
mod encode;
mod error;
mod files;
mod python;
mod special;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use caption::{Corrupted, MaskedText, clean_caption};
pub use chat::{BUILT_IN, ChatTemplate, Message, Role};
pub use decode::Stream;
pub use dialogue::{Dialogue, IGNORED, Spliced};
pub use encode::{Batch, Encoded, Input, Layout, Length, Long, Side};
pub use error::TextError;
pub use special::Special;

use special::Specials;

/// A tokenizer as a model was trained with. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    specials: Specials,
    rows: u64,
}

impl Tokenizer {
    /// Opens a folder with `tokenizer.json` or BERT's `vocab.txt`, or one of these files.
    ///
    /// `tokenizer_config.json` and `special_tokens_map.json` beside it name special tokens.
    /// Padding and truncation that `tokenizer.json` asks for are left aside: [`Layout`] says them.
    ///
    /// A `vocab.txt` is lower-cased as `do_lower_case` of `tokenizer_config.json` says. Without
    /// it, a vocabulary is cased when a token outside of brackets has a capital.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let (inner, specials) = files::open(path.as_ref())?;
        let rows = inner.get_vocab(true).into_values().max().map_or(0, |id| u64::from(id) + 1);
        Ok(Self { inner: Arc::new(inner), specials, rows })
    }

    /// The file that [`Tokenizer::open`] would read for a path; looks whether it is there, no more.
    pub fn find(path: impl AsRef<Path>) -> Result<PathBuf, TextError> {
        files::find(path.as_ref())
    }

    /// Id of the special token with this role, if there is one.
    pub fn special(&self, role: Special) -> Option<i64> {
        self.specials.id(role)
    }

    /// Id of the special token with this role, or an error that names the role.
    pub fn need(&self, role: Special) -> Result<i64, TextError> {
        self.special(role).ok_or(TextError::NoSpecial { name: role.name() })
    }

    /// Text of the special token with this role, if there is one.
    pub fn special_text(&self, role: Special) -> Option<&str> {
        self.specials.text(role)
    }

    /// Id of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Text of a token as the vocabulary has it.
    pub fn token(&self, id: i64) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Rows that an embedding table needs: the largest id and one.
    pub fn vocabulary_size(&self) -> u64 {
        self.rows
    }

    /// Refuses an embedding table with fewer rows than ids. More rows are usual: tables are
    /// padded to round sizes.
    pub fn check_vocabulary(&self, rows: usize) -> Result<(), TextError> {
        if self.rows <= rows as u64 {
            return Ok(());
        }
        Err(TextError::Vocabulary { largest: self.rows - 1, rows })
    }

    /// Whether this is a special token, which `skip_special` leaves out.
    fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("rows", &self.rows)
            .field("specials", &self.specials)
            .finish_non_exhaustive()
    }
}
