//! Which key of a file holds which parameter.

use std::collections::{BTreeMap, BTreeSet};

use schemas::node::NodeError;

use crate::archive::{Archive, Dtype, Info};
use crate::layout::{Layout, Slot};
use crate::parameters::Parameter;

/// Where the parameters of a module are in a file.
pub(crate) struct Found {
    /// Layout of the file.
    pub(crate) layout: String,
    /// What all keys begin with.
    pub(crate) prefix: String,
    /// Parameters in the order of the module.
    pub(crate) slots: Vec<(Parameter, Slot)>,
    /// Keys that no parameter takes.
    pub(crate) unused: Vec<String>,
}

/// Parameters that begin as nothing, so that a trained network without them can get them: adapters,
/// and queries that are added to those of a trained Q-Former.
const BEGIN_AS_NOTHING: [&str; 2] = [".lora.", "extra_query_tokens"];

/// Type and shape of each tensor of a file, by key.
type Held = BTreeMap<String, (Dtype, Vec<usize>)>;

/// Finds all parameters in one of the layouts. All keys of a file may begin with the same text, as in
/// a checkpoint of which this module is a part.
pub(crate) fn find(
    archive: &Archive,
    parameters: &[Parameter],
    layouts: &[Layout],
) -> Result<Found, NodeError> {
    let one = |(key, info): (&str, Info<'_>)| (key.to_owned(), (info.dtype, info.shape.to_vec()));
    let held: Held = archive.keys().map(one).collect();
    let fail = |reason: String| archive.fail(reason);
    let mut best: Option<(usize, Vec<Slot>, &Layout, String)> = None;
    let mut fit: Vec<String> = Vec::new();
    for layout in layouts {
        let slots: Vec<Slot> = parameters.iter().map(|p| layout.slot(&p.path)).collect();
        for prefix in prefixes(&held, &slots) {
            let slots: Vec<Slot> = slots
                .iter()
                .map(|slot| Slot { key: format!("{prefix}{}", slot.key), ..slot.clone() })
                .collect();
            let there = slots.iter().filter(|slot| held.contains_key(&slot.key)).count();
            if there == slots.len() && fit.is_empty() | best.as_ref().is_some_and(|b| b.2 == layout)
            {
                fit.push(prefix.clone());
            }
            if best.as_ref().is_none_or(|(most, ..)| there > *most) {
                best = Some((there, slots, layout, prefix));
            }
        }
    }
    let Some((_, slots, layout, prefix)) = best else {
        return Err(fail("is in no known layout".to_owned()));
    };
    // A part of the file that is named like the module is not confused with a deeper one.
    if fit.len() > 1 && !fit.iter().any(String::is_empty) {
        let names: Vec<String> = fit.iter().map(|prefix| format!("`{prefix}`")).collect();
        let names = names.join(" and ");
        let reason = format!(
            "holds this kind more than once, under {names}; write # and one of them after the file"
        );
        return Err(fail(reason));
    }
    let zero = |key: &str, path: &str| archive.starts_at_zero([key, path]).is_some();
    matched(&held, parameters, slots, (layout, prefix), &zero).map_err(fail)
}

/// Text before the keys: none, or what stands before the first parameters.
fn prefixes(held: &Held, slots: &[Slot]) -> BTreeSet<String> {
    let mut prefixes = BTreeSet::from([String::new()]);
    let Some(first) = slots.first() else { return prefixes };
    let before = |key: &String| {
        let before = key.strip_suffix(first.key.as_str())?;
        before.ends_with('.').then(|| before.to_owned())
    };
    prefixes.extend(held.keys().filter_map(before));
    prefixes
}

fn matched(
    held: &Held,
    parameters: &[Parameter],
    slots: Vec<Slot>,
    (layout, prefix): (&Layout, String),
    zero: &dyn Fn(&str, &str) -> bool,
) -> Result<Found, String> {
    let mut problems = Vec::new();
    let mut unused: BTreeSet<&String> = held.keys().collect();
    let mut found = Vec::new();
    for (parameter, slot) in parameters.iter().zip(slots) {
        let key = &slot.key;
        let Some((dtype, shape)) = held.get(key) else {
            if zero(key, &parameter.path) {
                found.push((parameter.clone(), slot));
            } else if !BEGIN_AS_NOTHING.iter().any(|name| parameter.path.contains(name)) {
                problems.push(format!("`{key}` is missing"));
            }
            continue;
        };
        unused.remove(key);
        let expected = slot.file_shape(slot.stored(parameter));
        if squeezed(shape) != squeezed(&expected) {
            problems.push(format!("`{key}` is {shape:?}, expected {expected:?}"));
        } else if !dtype.is_float() {
            problems.push(format!("`{key}` has dtype {dtype:?}, not a float"));
        } else {
            found.push((parameter.clone(), slot));
        }
    }
    let unused: Vec<String> = unused.into_iter().cloned().collect();
    if problems.is_empty() {
        return Ok(Found { layout: layout.name.to_owned(), prefix, slots: found, unused });
    }
    let more = problems.len().saturating_sub(8);
    problems.truncate(8);
    let mut tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    if !unused.is_empty() {
        let shown: Vec<String> = unused.iter().take(4).map(|key| format!("`{key}`")).collect();
        let more = if unused.len() > shown.len() { " and more" } else { "" };
        tail.push_str(&format!("; no parameter takes {}{more}", shown.join(", ")));
    }
    Err(format!("{}{tail}", problems.join("; ")))
}

/// Extents without ones, so that `[1, N, D]` tables fit `[N, D]` and the reverse.
fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|extent| *extent != 1).collect()
}
