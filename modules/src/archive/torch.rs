//! PyTorch files: the zip archive of today and the stream of before 1.6.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::mapped::{Check, Slot, shown};
use super::pickle::{self, Value, Values, View};
use super::{Contents, Format, Wanted, tree, zip};

/// The number that the stream begins with, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Where the elements of a storage lie.
struct Place {
    range: Range<usize>,
    check: Option<Arc<Check>>,
}

type Places = BTreeMap<Vec<u8>, Place>;

/// The tensors of a zip archive. Its entries are stored as they are, so they are read in place.
pub(super) fn read_zip(file: &[u8], wanted: Wanted<'_>) -> Result<Contents, String> {
    let entries = entries(file)?;
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots.next().ok_or("is a zip archive without `data.pkl`, not of torch.save")?;
    if roots.next().is_some() {
        return Err("is a zip archive with several `data.pkl`".to_owned());
    }
    if entries.contains_key(&format!("{root}constants.pkl")) {
        return Err("is a TorchScript program; save the state dict of the module".to_owned());
    }
    if let Some(order) = entries.get(&format!("{root}byteorder")) {
        let order = &file[order.range.clone()];
        if order != b"little" {
            let order = shown(&String::from_utf8_lossy(&order[..order.len().min(32)]));
            return Err(format!("has the byte order `{order}`; only little is read"));
        }
    }
    let mut places = Places::new();
    for (name, place) in &entries {
        if let Some(key) = name.strip_prefix(root).and_then(|name| name.strip_prefix("data/")) {
            let Place { range, check } = place;
            let place = Place { range: range.clone(), check: check.clone() };
            places.insert(key.as_bytes().to_vec(), place);
        }
    }
    let program = &entries[&format!("{root}data.pkl")];
    if let Some(check) = &program.check {
        check.pass(file)?;
    }
    let values = pickle::run(&file[program.range.clone()])?;
    contents(&values, &places, wanted, Format::Torch)
}

/// Parts of a zip archive by name.
fn entries(file: &[u8]) -> Result<BTreeMap<String, Place>, String> {
    let found = zip::entries(file)?;
    // A writer may leave out all checksums (`set_crc32_options(False)`); then all are 0.
    let checked = found.values().any(|entry| entry.crc != 0);
    let place = |(name, zip::Entry { range, crc }): (String, zip::Entry)| {
        let check = checked.then(|| Arc::new(Check::new(name.clone(), range.clone(), crc)));
        (name, Place { range, check })
    };
    Ok(found.into_iter().map(place).collect())
}

/// The tensors of a stream: four pickles, the list of storages, then the storages.
pub(super) fn read_stream(file: &[u8], wanted: Wanted<'_>) -> Result<Contents, String> {
    let magic = pickle::run(file)?;
    match magic.get(magic.root) {
        Value::Long(span) if magic.raw(span) == MAGIC => {}
        _ => return Err("is a pickle that torch.save did not write".to_owned()),
    }
    let mut rest = &file[magic.length..];
    let version = pickle::run(rest)?;
    if !matches!(version.get(version.root), Value::Int(1001)) {
        return Err("has an unknown version of the old format of torch.save".to_owned());
    }
    rest = &rest[version.length..];
    let system = pickle::run(rest)?;
    let mut order = system.entries(system.root).into_iter().flatten();
    let little = order.find(|(name, _)| name.as_deref() == Some("little_endian"));
    if little.is_some_and(|(_, value)| !matches!(system.get(value), Value::Bool(true))) {
        return Err("has the byte order `big`; only little is read".to_owned());
    }
    rest = &rest[system.length..];
    let values = pickle::run(rest)?;
    rest = &rest[values.length..];
    let keys = pickle::run(rest)?;
    let Value::List(list) = keys.get(keys.root) else {
        return Err("has no list of storages".to_owned());
    };
    let sizes = element_sizes(&values);
    let mut at = file.len() - rest.len() + keys.length;
    let mut places = Places::new();
    for key in list {
        let Value::Text(key) = keys.get(*key) else {
            return Err("has a storage without a name".to_owned());
        };
        let key = keys.raw(key);
        let name = shown(&String::from_utf8_lossy(key));
        let count = file.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let size = sizes.get(key).copied();
        let size = size.ok_or_else(|| format!("storage `{name}` is named by no tensor"))?;
        let range = count.and_then(|count| {
            let bytes = usize::try_from(i64::from_le_bytes(*count)).ok()?.checked_mul(size)?;
            let end = (at + 8).checked_add(bytes).filter(|end| *end <= file.len())?;
            Some(at + 8..end)
        });
        let range = range.ok_or_else(|| format!("is cut in storage `{name}`"))?;
        at = range.end;
        if places.insert(key.to_vec(), Place { range, check: None }).is_some() {
            return Err(format!("storage `{name}` appears twice"));
        }
    }
    if at != file.len() {
        return Err(format!("has {} bytes after its last storage", file.len() - at));
    }
    contents(&values, &places, wanted, Format::TorchStream)
}

/// Bytes of an element of each storage.
fn element_sizes(values: &Values<'_>) -> BTreeMap<Vec<u8>, usize> {
    let storages = values.storages();
    let size = |storage: &pickle::Storage| {
        let name = storage.unknown.as_ref().map(|span| values.text(span));
        match name.as_deref() {
            Some("ComplexDoubleStorage") => 16,
            Some("ComplexFloatStorage") => 8,
            Some("QInt32Storage") => 4,
            _ => storage.dtype.map_or(1, |dtype| dtype.size()),
        }
    };
    storages.map(|storage| (values.raw(&storage.key).to_vec(), size(storage))).collect()
}

fn contents(
    values: &Values<'_>,
    places: &Places,
    wanted: Wanted<'_>,
    format: Format,
) -> Result<Contents, String> {
    let mut contents = Contents::new(format);
    let tree = tree::walk(values)?;
    contents.part = tree::choose(values, wanted)?;
    contents.skipped = tree.skipped;
    contents.words = tree.words;
    for (path, id) in tree.tensors {
        match values.get(id) {
            Value::Tensor(view) => {
                let made = slot(values, places, view);
                let slot = made.map_err(|reason| format!("`{}`: {reason}", shown(&path)))?;
                contents.slots.push((path, slot));
            }
            Value::Refused(reason) => contents.refused.push((path, reason.to_string())),
            _ => {}
        }
    }
    Ok(contents)
}

fn slot(values: &Values<'_>, places: &Places, view: &View) -> Result<Slot, String> {
    let key = values.raw(&view.key);
    let name = || shown(&String::from_utf8_lossy(key));
    let place = places.get(key).ok_or_else(|| format!("its storage `{}` is missing", name()))?;
    let (held, size) = (place.range.len(), view.dtype.size());
    let bytes = view.held.checked_mul(size).filter(|bytes| *bytes <= held);
    let bytes = bytes.ok_or_else(|| {
        let expected = view.held;
        format!("its storage `{}` has {held} bytes, not {expected} elements: cut", name())
    })?;
    let range = place.range.start..place.range.start + bytes;
    let layout = (view.shape.clone(), view.strides.clone());
    let slot = Slot::view(view.dtype, range, view.first, layout)?;
    Ok(slot.checked(place.check.clone()))
}
