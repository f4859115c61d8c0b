//! Why a tokenizer, a template or a text could not be used.

use std::path::PathBuf;

use crate::video::named::{named, one_line};

/// Why text did not become ids, or ids text. Variants about files name the file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TextError {
    /// A file or folder is missing, unreadable or larger than any tokenizer.
    #[error("cannot read: {reason}; file `{}`", named(file))]
    Unreadable {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file was read and does not hold what it should.
    #[error("{}; file `{}`", one_line(reason), named(file))]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A text could not be turned into ids.
    #[error("cannot encode the text: {}", one_line(reason))]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// Ids could not be turned into text.
    #[error("cannot decode the ids: {}", one_line(reason))]
    Decode {
        /// What the tokenizer said.
        reason: String,
    },
    /// A text has more tokens than fit.
    #[error(
        "text {text} has {tokens} tokens, the length is {limit}; shorten it, or allow truncation"
    )]
    TooLong {
        /// Index of the text.
        text: usize,
        /// Tokens that it has, special ones included.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The asked length has no room for the special tokens.
    #[error("a length of {limit} has no room for the {special} special tokens of a text")]
    TooShort {
        /// Tokens that fit.
        limit: usize,
        /// Special tokens that are added to every text.
        special: usize,
    },
    /// A special token that is needed does not exist.
    #[error("the tokenizer has no `{name}` token; name one in special_tokens_map.json")]
    NoSpecial {
        /// Its role, such as `pad`.
        name: &'static str,
    },
    /// The embedding table is smaller than the vocabulary.
    #[error(
        "the tokenizer has ids up to {largest}, the model has {rows} embedding rows; use the \
         tokenizer of the model, or resize the table"
    )]
    Vocabulary {
        /// The largest id of the tokenizer.
        largest: u64,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// No template has the asked name.
    #[error("no chat template `{name}`; there are {known}", name = one_line(name))]
    NoTemplate {
        /// The asked name.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// The template is not valid, failed, or refused the dialogue by `raise_exception`.
    #[error("chat template `{template}`: {}", one_line(reason), template = one_line(template))]
    Template {
        /// Name of the template.
        template: String,
        /// What it or its engine said.
        reason: String,
    },
    /// The answers of a dialogue cannot be found in what the template made of it.
    #[error(
        "chat template `{template}` changes the answer of message {message} beyond surrounding \
         blanks; put `{{% generation %}}` blocks around answers in the template",
        template = one_line(template)
    )]
    NoAnswer {
        /// Name of the template.
        template: String,
        /// Index of the message.
        message: usize,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(
        /// What is wrong.
        String,
    ),
}
