//! What a manifest says about one video, by name or by dotted path.

use serde_json::{Map, Value};

/// The fields of one entry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    fields: Map<String, Value>,
}

impl From<Map<String, Value>> for Record {
    fn from(fields: Map<String, Value>) -> Self {
        Self { fields }
    }
}

impl Record {
    /// The value at a path such as `captions.video` or `captions.0`. A field whose whole name is the
    /// path comes first.
    pub fn get(&self, path: &str) -> Option<&Value> {
        if let Some(value) = self.fields.get(path) {
            return Some(value);
        }
        let mut parts = path.split('.');
        let mut value = self.fields.get(parts.next()?)?;
        for part in parts {
            value = match value {
                Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
                value => value.get(part)?,
            };
        }
        Some(value).filter(|value| !value.is_null())
    }

    /// An integer field, also one that is written as a text.
    pub fn integer(&self, path: &str) -> Option<i64> {
        match self.get(path)? {
            Value::String(text) => text.parse().ok(),
            value => value.as_i64(),
        }
    }

    /// Names of the fields for which [`Record::integer`] gives a number.
    pub fn integers(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| self.integer(name).is_some())
    }

    /// Names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The texts at a path: one, or a list of paraphrases; numbers are texts too. None when there is
    /// nothing.
    pub fn texts(&self, path: &str) -> Result<Vec<String>, String> {
        let of = |value: &Value| match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(_) | Value::Bool(_) => Ok(Some(value.to_string())),
            Value::Array(_) => Err(format!("`{path}` holds lists in a list, not texts")),
            Value::Object(inner) => {
                let names: Vec<String> =
                    inner.keys().map(|key| format!("`{path}.{key}`")).collect();
                Err(format!("`{path}` holds no text but fields; there are {}", names.join(", ")))
            }
        };
        match self.get(path) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().filter_map(|item| of(item).transpose()).collect()
            }
            Some(value) => Ok(of(value)?.into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        serde_json::from_str::<Map<String, Value>>(text).unwrap().into()
    }

    #[test]
    fn a_path_leads_into_objects_and_lists() {
        let record = record(
            r#"{"captions": {"video": ["a", "b"], "n": 3}, "a.b": "whole", "a": {"b": "inner"},
                "label": "7", "none": null}"#,
        );
        assert_eq!(record.texts("captions.video").unwrap(), ["a", "b"]);
        assert_eq!(record.texts("captions.video.1").unwrap(), ["b"]);
        assert_eq!(record.texts("captions.n").unwrap(), ["3"]);
        assert_eq!(record.texts("a.b").unwrap(), ["whole"]);
        for nothing in ["none", "captions.audio", "captions.video.9", "label.x", ""] {
            assert!(record.texts(nothing).unwrap().is_empty(), "{nothing}");
        }
        assert_eq!((record.integer("label"), record.integer("captions.n")), (Some(7), Some(3)));
        let error = record.texts("captions").unwrap_err();
        assert!(error.contains("`captions.video`"), "{error}");
    }
}
