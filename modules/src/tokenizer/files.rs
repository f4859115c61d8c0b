//! The files of a tokenizer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use tokenizers::models::ModelWrapper;

use super::error::TextError;
use super::special::{Special, Specials, declared};

/// The largest file that is read, in bytes; published tokenizers have up to 40 MB.
const LARGEST: u64 = 256 << 20;

/// Opens a folder or a file.
pub(super) fn open(path: &Path) -> Result<(tokenizers::Tokenizer, Specials), TextError> {
    let file = find(path)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut beside = Vec::new();
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let file = folder.join(name);
        if file.is_file() {
            let json = read_json(&file)?;
            beside.push((file, json));
        }
    }
    let bytes = if file.extension().is_some_and(|end| end == "txt") {
        let config = beside.last().filter(|(file, _)| file.ends_with("tokenizer_config.json"));
        let config = config.map_or(&Value::Null, |(_, json)| json);
        wordpiece(&file, config)?.to_string().into_bytes()
    } else {
        read(&file)?
    };
    let malformed = |reason: String| TextError::Malformed { file: file.clone(), reason };
    let broken = |error: String| malformed(format!("is no tokenizer: {error}; fetch it again"));
    serde_json::from_slice::<IgnoredAny>(&bytes).map_err(|error| broken(error.to_string()))?;
    let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(broken)?;
    // Lengths are said by the caller, for each batch.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && model.dropout.is_some_and(|share| share > 0.0)
    {
        let reason = "`model.dropout` makes encodings random; set it to null".to_owned();
        return Err(malformed(reason));
    }
    if tokenizer.get_vocab_size(true) == 0 {
        return Err(malformed("the vocabulary is empty; fetch the file again".to_owned()));
    }
    let specials = Specials::find(&tokenizer, &beside)?;
    Ok((tokenizer, specials))
}

/// Calls the library, which panics on some files that it should refuse.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // A tokenizer is not changed by its calls, so none is left half done.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the library gave up on it".to_owned()),
    }
}

/// The file that holds the vocabulary.
pub(super) fn find(path: &Path) -> Result<PathBuf, TextError> {
    let unreadable = |reason: &str| {
        let reason = reason.to_owned();
        Err(TextError::Unreadable { file: path.to_owned(), reason })
    };
    if path.is_dir() {
        let files = ["tokenizer.json", "vocab.txt"].map(|name| path.join(name));
        return match files.into_iter().find(|file| file.is_file()) {
            Some(file) => Ok(file),
            None if path.join("tokenizer.model").exists() => unreadable(
                "the folder holds tokenizer.model only; convert it to tokenizer.json, for \
                 instance with `AutoTokenizer.from_pretrained(..).save_pretrained(..)`",
            ),
            None => unreadable("the folder holds neither tokenizer.json nor vocab.txt"),
        };
    }
    match path.extension().and_then(|end| end.to_str()) {
        Some("json" | "txt") if path.is_file() => Ok(path.to_owned()),
        Some("json" | "txt") => unreadable("there is no such file"),
        _ if path.exists() => unreadable("give a folder, a tokenizer.json or a vocab.txt"),
        _ => unreadable("there is no such folder"),
    }
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, TextError> {
    let unreadable = |reason| TextError::Unreadable { file: file.to_owned(), reason };
    let data = fs::metadata(file).map_err(|error| unreadable(error.to_string()))?;
    if data.len() > LARGEST {
        let reason = format!("{} bytes are more than a tokenizer has ({LARGEST})", data.len());
        return Err(unreadable(reason));
    }
    fs::read(file).map_err(|error| unreadable(error.to_string()))
}

/// The text of a file in UTF-8.
pub(super) fn read_text(file: &Path) -> Result<String, TextError> {
    String::from_utf8(read(file)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let reason = format!("line {line} is not UTF-8; save the file as UTF-8");
        TextError::Malformed { file: file.to_owned(), reason }
    })
}

pub(super) fn read_json(file: &Path) -> Result<Value, TextError> {
    let json: Value = serde_json::from_str(&read_text(file)?).map_err(|error| {
        let reason = format!("is no JSON: {error}; fetch it again");
        TextError::Malformed { file: file.to_owned(), reason }
    })?;
    match json {
        Value::Object(_) => Ok(json),
        _ => {
            let reason = "holds no JSON object; fetch it again".to_owned();
            Err(TextError::Malformed { file: file.to_owned(), reason })
        }
    }
}

/// What `tokenizer.json` of a BERT vocabulary says (Devlin et al. 2019; Wu et al. 2016).
fn wordpiece(file: &Path, config: &Value) -> Result<Value, TextError> {
    let vocabulary = vocabulary(file)?;
    let name = |role, usual: &'static str| declared(config, role).unwrap_or(usual).to_owned();
    let (unk, cls) = (name(Special::Unk, "[UNK]"), name(Special::Cls, "[CLS]"));
    let (sep, pad) = (name(Special::Sep, "[SEP]"), name(Special::Pad, "[PAD]"));
    if let Some(token) = [&unk, &cls, &sep].into_iter().find(|t| !vocabulary.contains_key(*t)) {
        let reason = format!("has no `{token}`; is this a vocabulary of BERT?");
        return Err(TextError::Malformed { file: file.to_owned(), reason });
    }
    let mut added = Vec::new();
    for token in [&pad, &unk, &cls, &sep, &name(Special::Mask, "[MASK]")] {
        added.extend(vocabulary.get(token).map(|id| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        }));
    }
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    let lower = flag("do_lower_case").unwrap_or_else(|| !cased(&vocabulary));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "lowercase": lower,
            "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": flag("strip_accents"),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": processor(&cls, &sep, &vocabulary),
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }))
}

/// Tokens of a `vocab.txt`, one a line, with their ids.
fn vocabulary(file: &Path) -> Result<Map<String, Value>, TextError> {
    let malformed = |reason| TextError::Malformed { file: file.to_owned(), reason };
    let mut vocabulary: Map<String, Value> = Map::new();
    for (id, token) in read_text(file)?.lines().enumerate() {
        let line = id + 1;
        if token.is_empty() {
            return Err(malformed(format!("line {line} is empty; each line is a token")));
        }
        if let Some(first) = vocabulary.insert(token.to_owned(), id.into()) {
            let first = first.as_u64().unwrap_or_default() + 1;
            let reason = format!("lines {first} and {line} are both `{token}`; ids must differ");
            return Err(malformed(reason));
        }
    }
    if vocabulary.is_empty() {
        return Err(malformed("is empty; each line is a token".to_owned()));
    }
    Ok(vocabulary)
}

/// `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`.
fn processor(cls: &str, sep: &str, vocabulary: &Map<String, Value>) -> Value {
    let special = |id: &str, kind: usize| json!({ "SpecialToken": { "id": id, "type_id": kind } });
    let text = |id: &str, kind: usize| json!({ "Sequence": { "id": id, "type_id": kind } });
    let mut specials = Map::new();
    for token in [cls, sep] {
        let ids = [&vocabulary[token]];
        specials.insert(token.to_owned(), json!({ "id": token, "ids": ids, "tokens": [token] }));
    }
    let single = [special(cls, 0), text("A", 0), special(sep, 0)];
    let pair = [&single[..], &[text("B", 1), special(sep, 1)]].concat();
    json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials,
    })
}

/// Whether a token outside of brackets has a capital.
fn cased(tokens: &Map<String, Value>) -> bool {
    let bracketed = |token: &str| {
        (token.starts_with('[') && token.ends_with(']'))
            || (token.starts_with('<') && token.ends_with('>'))
    };
    tokens.keys().any(|token| !bracketed(token) && token.chars().any(char::is_uppercase))
}
