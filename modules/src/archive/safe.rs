//! The header of a safetensors file.
//!
//! The format: eight bytes of header length, the header as JSON, then the elements of all tensors
//! without holes. Read here and not by the crate that writes checkpoints, so that what is wrong is
//! told with the key and a key that stands twice is seen.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use super::mapped::{Slot, shown};
use super::{Contents, Format};

/// The longest header, as in the reference implementation.
const MAX_HEADER: usize = 100_000_000;

/// Whether the first bytes look like a safetensors file.
pub(super) fn recognised(file: &[u8]) -> bool {
    split(file).is_ok_and(|(header, _)| header.first() == Some(&b'{'))
}

fn split(file: &[u8]) -> Result<(&[u8], usize), String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err("is cut: it has no header".to_owned());
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER);
    let Some(header) = header else {
        return Err(format!("is no safetensors file: its header would have {length} bytes"));
    };
    let held = rest.len();
    let Some(text) = rest.get(..header) else {
        return Err(format!("is cut: its header has {header} bytes, the file {held}"));
    };
    Ok((text, 8 + header))
}

#[derive(Deserialize)]
struct Raw {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

#[derive(Default)]
struct Header {
    words: BTreeMap<String, String>,
    tensors: BTreeMap<String, Raw>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(key) = map.next_key::<String>()? {
            let fail = |error: A::Error| A::Error::custom(format!("`{}`: {error}", shown(&key)));
            if key == "__metadata__" {
                header.words = map.next_value().map_err(fail)?;
                continue;
            }
            let raw = map.next_value::<Raw>().map_err(fail)?;
            if header.tensors.contains_key(&key) {
                return Err(A::Error::custom(format!("`{}` appears twice", shown(&key))));
            }
            header.tensors.insert(key, raw);
        }
        Ok(header)
    }
}

/// A map of strings in which no key appears twice.
pub(super) struct Distinct(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DistinctVisitor)
    }
}

struct DistinctVisitor;

impl<'de> Visitor<'de> for DistinctVisitor {
    type Value = Distinct;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file names by key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
        let mut found = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if found.contains_key(&key) {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("`{}` appears twice", shown(&key))));
            }
            found.insert(key, map.next_value()?);
        }
        Ok(Distinct(found))
    }
}

/// The tensors of a safetensors file.
pub(super) fn read(file: &[u8]) -> Result<Contents, String> {
    let (text, start) = split(file)?;
    let header: Header = serde_json::from_slice(text)
        .map_err(|error| format!("has a header that cannot be read: {error}"))?;
    let mut order: Vec<(&String, &Raw)> = header.tensors.iter().collect();
    order.sort_by_key(|(key, raw)| (raw.data_offsets, *key));
    let held = file.len() - start;
    let mut end = 0;
    for (key, raw) in &order {
        let (from, to) = raw.data_offsets;
        let key = shown(key);
        if from > to || to > held {
            let reason = if from > to { "end before they start" } else { "leave the file" };
            return Err(format!(
                "`{key}`: its bytes {from} to {to} {reason}, which holds {held}: cut or damaged"
            ));
        }
        if from != end {
            let how = if from < end { "overlap another tensor" } else { "follow a hole" };
            return Err(format!("`{key}`: its bytes {from} to {to} {how}, which ends at {end}"));
        }
        end = to;
    }
    if end != held {
        return Err(format!("holds {held} bytes of tensors, its header speaks of {end}"));
    }
    let mut contents = Contents::new(Format::Safetensors);
    contents.words = header.words;
    for (key, raw) in header.tensors {
        let Some(dtype) = Dtype::from_safetensors(&raw.dtype) else {
            contents.refused.push((key, format!("has dtype {}", shown(&raw.dtype))));
            continue;
        };
        let (from, to) = raw.data_offsets;
        let slot = Slot::whole(dtype, raw.shape, start + from..start + to);
        let slot = slot.map_err(|reason| format!("`{}`: {reason}", shown(&key)))?;
        contents.slots.push((key, slot));
    }
    Ok(contents)
}
