//! Special tokens by role.
//!
//! A role is filled by `special_tokens_map.json`, else `tokenizer_config.json`, else the model's
//! own `unk_token`, else the first usual name that is a special token. A tokenizer without a pad
//! token pads with its end token; the mask hides it.

use std::path::PathBuf;

use serde_json::Value;
use tokenizers::models::ModelWrapper;

use super::error::TextError;

/// Roles of special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Fills rows up to their length.
    Pad,
    /// Begins a text.
    Bos,
    /// Ends a text.
    Eos,
    /// BERT's first token.
    Cls,
    /// BERT's separator.
    Sep,
    /// Hides a token.
    Mask,
    /// Stands for what the vocabulary does not hold.
    Unk,
}

impl Special {
    /// All roles.
    pub const ALL: [Self; 7] =
        [Self::Pad, Self::Bos, Self::Eos, Self::Cls, Self::Sep, Self::Mask, Self::Unk];

    /// The role's short name, such as `pad`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pad => "pad",
            Self::Bos => "bos",
            Self::Eos => "eos",
            Self::Cls => "cls",
            Self::Sep => "sep",
            Self::Mask => "mask",
            Self::Unk => "unk",
        }
    }

    /// The role with this short name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Names that published tokenizers give to this role.
    fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Pad => &["[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"],
            Self::Bos => &["<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[BOS]"],
            Self::Eos => {
                &["</s>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<eos>", "[EOS]"]
            }
            Self::Cls => &["[CLS]", "<cls>"],
            Self::Sep => &["[SEP]", "<sep>"],
            Self::Mask => &["[MASK]", "<mask>"],
            Self::Unk => &["[UNK]", "<unk>"],
        }
    }
}

/// Id and text of each role.
#[derive(Debug, Clone, Default)]
pub(super) struct Specials {
    found: Vec<(Special, i64, String)>,
}

impl Specials {
    /// Fills the roles of a tokenizer from the JSON files beside it, the first first.
    pub(super) fn find(
        tokenizer: &tokenizers::Tokenizer,
        beside: &[(PathBuf, Value)],
    ) -> Result<Self, TextError> {
        let mut found = Vec::new();
        for role in Special::ALL {
            let said = beside.iter().find_map(|(file, json)| {
                declared(json, role).map(|token| (file.clone(), token.to_owned()))
            });
            let token = match said {
                Some((file, token)) if tokenizer.token_to_id(&token).is_none() => {
                    let name = role.name();
                    let reason = format!(
                        "`{name}_token` is `{token}`, which is not in the vocabulary; add it to \
                         `added_tokens` of tokenizer.json, or name another"
                    );
                    return Err(TextError::Malformed { file, reason });
                }
                Some((_, token)) => Some(token),
                None => guess(tokenizer, role),
            };
            if let Some(token) = token
                && let Some(id) = tokenizer.token_to_id(&token)
            {
                found.push((role, i64::from(id), token));
            }
        }
        let mut specials = Self { found };
        if specials.id(Special::Pad).is_none()
            && let (Some(id), Some(text)) = (specials.id(Special::Eos), specials.text(Special::Eos))
        {
            specials.found.push((Special::Pad, id, text.to_owned()));
        }
        Ok(specials)
    }

    pub(super) fn id(&self, role: Special) -> Option<i64> {
        self.found.iter().find(|(known, ..)| *known == role).map(|(_, id, _)| *id)
    }

    pub(super) fn text(&self, role: Special) -> Option<&str> {
        self.found.iter().find(|(known, ..)| *known == role).map(|(.., text)| text.as_str())
    }
}

/// The token that a file gives to a role: a string, or an object with `content`.
pub(super) fn declared(json: &Value, role: Special) -> Option<&str> {
    let token = json.get(format!("{}_token", role.name()))?;
    token.as_str().or_else(|| token.get("content")?.as_str()).filter(|token| !token.is_empty())
}

fn guess(tokenizer: &tokenizers::Tokenizer, role: Special) -> Option<String> {
    if role == Special::Unk {
        let token = match tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.clone(),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
            ModelWrapper::Unigram(_) => None,
        };
        if token.as_ref().is_some_and(|token| tokenizer.token_to_id(token).is_some()) {
            return token;
        }
    }
    let added = tokenizer.get_added_vocabulary();
    let usual = role.usual().iter().find(|name| added.is_special_token(name));
    usual.map(|name| (*name).to_owned())
}
