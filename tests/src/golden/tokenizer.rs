//! Tokenizers: ids, offsets, decoded text and batches, exactly.

use std::collections::BTreeMap;
use std::path::Path;

use modules::tokenizer::{Encoded, Layout, Tokenizer};
use serde_json::Value;

use super::report::Report;

type Checked<T> = Result<T, String>;

/// Compares every encoding of a `tokenizer_*` fixture.
pub fn check(folder: &Path) -> Report {
    let mut report = Report::of_problems(folder, None);
    if let Err(problem) = compare(folder, &mut report) {
        report.problems.push(problem);
    }
    report
}

fn compare(folder: &Path, report: &mut Report) -> Checked<()> {
    let text = std::fs::read_to_string(folder.join("encodings.json"));
    let text = text.map_err(|error| format!("encodings.json: {error}"))?;
    let all: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(&text).map_err(|error| format!("encodings.json: {error}"))?;
    for (name, expected) in &all {
        let file = expected["file"].as_str().ok_or("an encoding names no file")?;
        // A vocabulary beside its tokenizer.json must give the same.
        let vocabulary = file.replace("tokenizer", "vocab").replace(".json", ".txt");
        let files = [file, vocabulary.as_str()];
        for file in files.into_iter().filter(|file| folder.join(file).is_file()) {
            let opened = Tokenizer::open(folder.join(file)).map_err(|error| error.to_string())?;
            let mut one = One { name: format!("{name}, {file}"), tokenizer: opened, report };
            one.all(expected).map_err(|error| format!("{name}, {file}: {error}"))?;
        }
    }
    Ok(())
}

/// One tokenizer and what it should give.
struct One<'a> {
    name: String,
    tokenizer: Tokenizer,
    report: &'a mut Report,
}

impl One<'_> {
    fn all(&mut self, expected: &BTreeMap<String, Value>) -> Checked<()> {
        for (key, value) in expected {
            match key.as_str() {
                "file" => {}
                "vocab_size" => self.same(key, &self.tokenizer.vocabulary_size(), value)?,
                "pair" => self.encoding(key, value)?,
                "single" | "no_special" => {
                    for (index, one) in value.as_array().into_iter().flatten().enumerate() {
                        self.encoding(&format!("{key}[{index}]"), one)?;
                    }
                }
                _ => self.batch(key, value)?,
            }
        }
        Ok(())
    }

    fn encoding(&mut self, place: &str, expected: &Value) -> Checked<()> {
        let text = expected["text"].as_str().ok_or("a case has no text")?;
        let special = !place.starts_with("no_special");
        let encoded = match expected["text_pair"].as_str() {
            Some(second) => self.tokenizer.encode((text, second), special),
            None => self.tokenizer.encode(text, special),
        };
        let encoded = encoded.map_err(|error| error.to_string())?;
        let Encoded { ids, offsets, type_ids, special } = &encoded;
        for (field, value) in expected.as_object().into_iter().flatten() {
            let place = format!("{place}.{field}");
            match field.as_str() {
                "text" | "text_pair" => {}
                "ids" => self.same(&place, ids, value)?,
                "offsets" => self.same(&place, offsets, value)?,
                "type_ids" => self.same(&place, type_ids, value)?,
                "special_tokens_mask" => self.same(&place, special, value)?,
                "attention_mask" => self.same(&place, &vec![1; ids.len()], value)?,
                "tokens" => {
                    let tokens: Vec<_> =
                        ids.iter().filter_map(|&id| self.tokenizer.token(id)).collect();
                    self.same(&place, &tokens, value)?;
                }
                "decoded" | "decoded_with_special" => self.decoded(&place, ids, value)?,
                _ => return Err(format!("`{place}` is not known")),
            }
        }
        Ok(())
    }

    /// At once and token by token.
    fn decoded(&mut self, place: &str, ids: &[i64], expected: &Value) -> Checked<()> {
        let skip = !place.ends_with("with_special");
        let decoded = self.tokenizer.decode(ids, skip).map_err(|error| error.to_string())?;
        let mut stream = self.tokenizer.stream(skip);
        let pieces: Result<Vec<_>, _> = ids.iter().map(|&id| stream.push(id)).collect();
        let mut streamed = pieces.map_err(|error| error.to_string())?.concat();
        streamed += &stream.finish().map_err(|error| error.to_string())?;
        self.report.same(&format!("{}: {place} streamed", self.name), &streamed, &decoded);
        self.same(place, &decoded, expected)
    }

    /// `batch_pad_trunc_<length>`.
    fn batch(&mut self, key: &str, expected: &Value) -> Checked<()> {
        let length = key.rsplit('_').next().and_then(|length| length.parse().ok());
        let length: usize = length.ok_or(format!("`{key}` is not known"))?;
        let rows = expected.as_array().ok_or(format!("`{key}` is no list"))?;
        let texts: Vec<&str> = rows.iter().filter_map(|row| row["text"].as_str()).collect();
        let batch = self.tokenizer.batch(&texts, &Layout::fixed(length));
        let batch = batch.map_err(|error| error.to_string())?;
        self.report.same(&format!("{}: {key}", self.name), &batch.shape, &[rows.len(), length]);
        let got = batch.ids.chunks(length).zip(batch.mask.chunks(length));
        for (index, ((ids, mask), row)) in got.zip(rows).enumerate() {
            self.same(&format!("{key}[{index}].ids"), &ids.to_vec(), &row["ids"])?;
            let place = format!("{key}[{index}].attention_mask");
            self.same(&place, &mask.to_vec(), &row["attention_mask"])?;
        }
        Ok(())
    }

    fn same<T>(&mut self, place: &str, got: &T, expected: &Value) -> Checked<()>
    where
        T: PartialEq + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let expected: T = serde_json::from_value(expected.clone())
            .map_err(|error| format!("`{place}`: {error}"))?;
        self.report.same(&format!("{}: {place}", self.name), got, &expected);
        Ok(())
    }
}
