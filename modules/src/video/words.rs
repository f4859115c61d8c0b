//! Everything about a clip that is words: texts and a dialogue, as rows of ids by port.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dialogues::{DialogueOptions, Dialogues};
use super::manifest::{Entry, Manifest};
use super::named::one_line;
use super::texts::{Text, TextOptions};
use crate::rng::Key;
use crate::tokenizer::{TextError, Tokenizer};

/// Rows of ids by port.
pub type Rows = BTreeMap<String, Vec<i64>>;

/// Texts and a dialogue that are ready to be read.
#[derive(Debug, Default)]
pub struct Words {
    texts: Vec<Text>,
    dialogue: Option<Dialogues>,
}

/// Tokenizers by path, each opened once.
#[derive(Default)]
pub(super) struct Tokenizers(BTreeMap<PathBuf, Tokenizer>);

impl Tokenizers {
    pub(super) fn open(&mut self, path: &Path) -> Result<Tokenizer, TextError> {
        if let Some(known) = self.0.get(path) {
            return Ok(known.clone());
        }
        let opened = Tokenizer::open(path)?;
        self.0.insert(path.to_owned(), opened.clone());
        Ok(opened)
    }
}

impl Words {
    /// Opens the tokenizers and templates. Blocks on the file system.
    pub fn open(
        texts: &BTreeMap<String, TextOptions>,
        dialogue: Option<&DialogueOptions>,
    ) -> Result<Self, String> {
        let mut tokenizers = Tokenizers::default();
        let mut words = Self::default();
        for (name, options) in texts {
            let opened = tokenizers.open(&options.tokenizer);
            let text = opened.and_then(|tokenizer| Text::open(name, options, tokenizer));
            words.texts.push(text.map_err(|error| format!("text `{}`: {error}", one_line(name)))?);
        }
        if let Some(options) = dialogue {
            let opened = Dialogues::open(options, &mut tokenizers);
            words.dialogue = Some(opened.map_err(|error| format!("dialogue: {error}"))?);
        }
        Ok(words)
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.dialogue.is_none()
    }

    /// The first entry without a text that is needed.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        for entry in &manifest.entries {
            let checked = self.texts.iter().map(|text| text.check(entry));
            let dialogue = self.dialogue.iter().map(|dialogue| dialogue.check(entry));
            let all = checked.chain(dialogue).collect::<Result<(), String>>();
            all.map_err(|reason| {
                format!("entry `{}`: {}", one_line(&entry.id), one_line(&reason))
            })?;
        }
        Ok(())
    }

    /// The rows of an entry.
    pub fn read(&self, entry: &Entry, draw: &Key) -> Result<Rows, String> {
        let mut rows = Rows::new();
        let about = |reason: String| format!("{reason}; entry `{}`", one_line(&entry.id));
        for text in &self.texts {
            text.read(entry, &draw.with("text"), &mut rows).map_err(about)?;
        }
        if let Some(dialogue) = &self.dialogue {
            dialogue.read(entry, &draw.with("dialogue"), &mut rows).map_err(about)?;
        }
        Ok(rows)
    }
}
