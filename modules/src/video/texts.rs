//! Captions of a record as rows of ids.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

use super::manifest::Entry;
use super::named::one_line;
use super::words::Rows;
use crate::rng::Key;
use crate::tokenizer::{Layout, TextError, Tokenizer, clean_caption};

/// Which of several paraphrases is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// One that is drawn for every sample.
    #[default]
    Random,
    /// The first.
    First,
}

/// One text beside a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// Field of the manifest: a column, or a path into nested fields such as `captions.video`. A list
    /// is a set of paraphrases.
    pub from: String,
    /// Folder, `tokenizer.json` or `vocab.txt`.
    pub tokenizer: PathBuf,
    /// Ids per text; longer texts are cut, shorter ones padded.
    #[serde(default = "length")]
    pub length: usize,
    /// Lower case without marks, as InternVideo2's stage 2 reads captions.
    #[serde(default)]
    pub clean: bool,
    /// Which paraphrase is taken.
    #[serde(default)]
    pub pick: Pick,
    /// Takes the empty text where a record has none, which is its special tokens alone; else such a
    /// record is an error.
    #[serde(default)]
    pub optional: bool,
}

fn length() -> usize {
    32
}

impl TextOptions {
    /// What is wrong with the text `name`, as far as options show it.
    pub fn check(&self, name: &str) -> Vec<OptionProblem> {
        let at = |option: &str| format!("texts.{name}.{option}");
        let mut problems = Vec::new();
        problems.extend(check_from(&at("from"), &self.from));
        problems.extend(check_length(&at("length"), self.length));
        problems.extend(check_tokenizer(&at("tokenizer"), &self.tokenizer));
        problems
    }
}

/// A field needs a name.
pub(super) fn check_from(option: &str, from: &str) -> Option<OptionProblem> {
    let hint = "name a field of the manifest, such as `caption` or `captions.video`";
    from.is_empty().then(|| OptionProblem::new(option, format!("`{option}` is empty"), hint))
}

/// Rows have a bounded length.
pub(super) fn check_length(option: &str, length: usize) -> Option<OptionProblem> {
    let message = format!("`{option}` is {length}, but must be from 1 to 65536");
    let hint = "InternVideo2's stage 2 takes 32 for captions";
    (!(1..=65_536).contains(&length)).then(|| OptionProblem::new(option, message, hint))
}

/// A tokenizer that is missing from a folder that exists. Where the folder is missing too, the data
/// may still have to be made, and opening says so.
pub(crate) fn check_tokenizer(option: &str, path: &Path) -> Option<OptionProblem> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_some_and(|parent| !parent.is_dir()) {
        return None;
    }
    let error = Tokenizer::find(path).err()?;
    let hint = "give a folder with a tokenizer.json or a vocab.txt, or one of these files";
    Some(OptionProblem::new(option, error.to_string(), hint))
}

/// A text that is ready to be read.
#[derive(Debug)]
pub(super) struct Text {
    name: String,
    options: TextOptions,
    tokenizer: Tokenizer,
}

impl Text {
    /// Looks at the special tokens, which every row must hold.
    pub(super) fn open(
        name: &str,
        options: &TextOptions,
        tokenizer: Tokenizer,
    ) -> Result<Self, TextError> {
        let text = Self { name: name.to_owned(), options: options.clone(), tokenizer };
        text.ids("a")?;
        text.ids("")?;
        Ok(text)
    }

    fn ids(&self, text: &str) -> Result<[Vec<i64>; 2], TextError> {
        let batch = self.tokenizer.batch(&[text], &Layout::fixed(self.options.length))?;
        Ok([batch.ids, batch.mask])
    }

    /// The paraphrases of an entry that say something.
    fn said(&self, entry: &Entry) -> Result<Vec<String>, String> {
        let mut texts = entry.record.texts(&self.options.from)?;
        if self.options.clean {
            texts.iter_mut().for_each(|text| *text = clean_caption(text));
        }
        texts.retain(|text| !text.trim().is_empty());
        if texts.is_empty() && !self.options.optional {
            let Self { name, options, .. } = self;
            let known: Vec<String> =
                entry.record.names().map(|name| format!("`{}`", one_line(name))).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!(
                "no text `{}`; its fields are {known}; give it one, or set `texts.{name}.optional: \
                 true` to take the empty text there",
                options.from
            ));
        }
        Ok(texts)
    }

    /// What is wrong with an entry, before anything is read from it.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), String> {
        self.said(entry).map(drop)
    }

    /// Ids and mask of one paraphrase.
    pub(super) fn read(&self, entry: &Entry, draw: &Key, rows: &mut Rows) -> Result<(), String> {
        let texts = self.said(entry)?;
        let chosen = match self.options.pick {
            Pick::First => 0,
            Pick::Random => draw.with(&self.name).rng().below(texts.len()),
        };
        let text = texts.get(chosen).map_or("", String::as_str);
        let [ids, mask] = self.ids(text).map_err(|error| error.to_string())?;
        rows.insert(format!("{}_mask", self.name), mask);
        rows.insert(self.name.clone(), ids);
        Ok(())
    }
}
