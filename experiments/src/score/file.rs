//! Reads JSON, and matrices from safetensors. Errors name the JSON path.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use modules::archive::{Archive, Dtype, Stored};
use modules::metrics::Matrix;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value, json};

/// Reads a file. Tensors of a safetensors file are fields with their names; a dot leads into an object.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    if path.extension().is_some_and(|ending| ending == "safetensors") {
        return parse(tensors(path)?);
    }
    let text = fs::read_to_string(path).context("cannot read it")?;
    let reader = &mut serde_json::Deserializer::from_str(&text);
    let value = parse(&mut *reader)?;
    reader.end().context("something follows the JSON")?;
    Ok(value)
}

fn parse<'de, T: Deserialize<'de>, D>(from: D) -> anyhow::Result<T>
where
    D: Deserializer<'de>,
    D::Error: fmt::Display,
{
    serde_path_to_error::deserialize(from).map_err(|error| match error.path().to_string() {
        path if path == "." => anyhow!("{}", error.inner()),
        path => anyhow!("`{path}`: {}", error.inner()),
    })
}

/// Fields of a safetensors file: matrices of floats by reference, whole numbers as they are.
fn tensors(path: &Path) -> anyhow::Result<Value> {
    let archive = Archive::open(path)?;
    let mut fields = Map::new();
    for (key, info) in archive.keys() {
        let value = if info.dtype.is_float() {
            json!({ "safetensors": path.file_name().and_then(|name| name.to_str()), "tensor": key })
        } else {
            let stored = archive.get(key)?;
            nested(&whole(&stored), stored.shape)
        };
        put(&mut fields, key, value).with_context(|| format!("the tensor `{key}`"))?;
    }
    Ok(Value::Object(fields))
}

fn put(fields: &mut Map<String, Value>, key: &str, value: Value) -> anyhow::Result<()> {
    let Some((outer, inner)) = key.split_once('.') else {
        fields.insert(key.to_owned(), value);
        return Ok(());
    };
    let below = fields.entry(outer).or_insert_with(|| json!({}));
    let below = below.as_object_mut().filter(|below| !below.contains_key("safetensors"));
    put(below.with_context(|| format!("`{outer}` is a tensor as well"))?, inner, value)
}

/// Values of a tensor of whole numbers.
fn whole(stored: &Stored<'_>) -> Vec<i64> {
    let extend = |bytes: &[u8]| {
        let mut wide =
            if bytes.last().is_some_and(|last| *last >= 128) { [255; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(wide)
    };
    let unsigned = matches!(stored.dtype, Dtype::U8 | Dtype::Bool);
    let each = stored.bytes.chunks_exact(stored.dtype.size());
    each.map(|bytes| if unsigned { i64::from(bytes[0]) } else { extend(bytes) }).collect()
}

fn nested(values: &[i64], shape: &[usize]) -> Value {
    match shape {
        [] => json!(values.first()),
        [_] => json!(values),
        [first, rest @ ..] => {
            let size: usize = rest.iter().product();
            (0..*first).map(|at| nested(&values[at * size..(at + 1) * size], rest)).collect()
        }
    }
}

/// A matrix: rows of numbers, or where they are stored.
#[derive(Debug)]
pub(super) enum Numbers {
    Rows(Vec<Vec<f64>>),
    Stored(Place),
}

/// A tensor of a file beside this one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    safetensors: PathBuf,
    tensor: String,
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Numbers;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("rows of numbers, or `safetensors` and `tensor`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Numbers, A::Error> {
                let mut all = Vec::new();
                while let Some(row) = rows.next_element()? {
                    all.push(row);
                }
                Ok(Numbers::Rows(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Numbers, A::Error> {
                Place::deserialize(MapAccessDeserializer::new(fields)).map(Numbers::Stored)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl Numbers {
    /// Checks the numbers; `at` is the path of this field, `folder` that of the file.
    pub(super) fn matrix(&self, at: &str, folder: &Path) -> anyhow::Result<Matrix> {
        match self {
            Self::Rows(rows) => Ok(Matrix::from_rows(at, rows)?),
            Self::Stored(place) => {
                let path = folder.join(&place.safetensors);
                let archive = Archive::open(&path).with_context(|| format!("`{at}`"))?;
                let stored = archive.get(&place.tensor).with_context(|| format!("`{at}`"))?;
                let &[rows, columns] = stored.shape else {
                    bail!("`{at}` has the shape {:?}; give rows and columns", stored.shape);
                };
                Ok(Matrix::new(at, rows, columns, floats(&stored))?)
            }
        }
    }
}

fn floats(stored: &Stored<'_>) -> Vec<f64> {
    if stored.dtype == Dtype::F64 {
        let (each, _) = stored.bytes.as_chunks::<8>();
        return each.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    }
    if stored.dtype.is_float() {
        return stored.to_f32().into_iter().map(f64::from).collect();
    }
    whole(stored).into_iter().map(|value| value as f64).collect()
}

/// A number or a list of them.
#[derive(Debug)]
pub(super) enum Indices {
    One(usize),
    Many(Vec<usize>),
}

impl Indices {
    pub(super) fn list(&self) -> Vec<usize> {
        match self {
            Self::One(index) => vec![*index],
            Self::Many(indices) => indices.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for Indices {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Indices;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a whole number from 0 or a list of them")
            }

            fn visit_u64<E: de::Error>(self, index: u64) -> Result<Indices, E> {
                usize::try_from(index).map(Indices::One).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Indices, A::Error> {
                let mut all = Vec::new();
                while let Some(index) = list.next_element()? {
                    all.push(index);
                }
                Ok(Indices::Many(all))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// A name that may be written as a whole number.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::String(name) => Ok(name),
        Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
        other => {
            Err(D::Error::custom(format!("`{other}` is no name; give words or a whole number")))
        }
    }
}
