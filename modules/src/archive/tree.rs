//! Which values of a pickle are tensors, under which names.
//!
//! A tensor's name is the path of keys to it, joined by dots; places in lists count as keys.

use std::collections::{BTreeMap, BTreeSet};

use super::mapped::shown;
use super::pickle::{Id, Value, Values};
use super::{Skipped, Wanted};

const MAX_DEPTH: usize = 64;
const MAX_STEPS: usize = 1 << 22;
const MAX_NAMES: usize = 1 << 28;
/// The most skipped values and words that are listed.
const MAX_LISTED: usize = 256;

/// Entries that hold a state dict in the files of training programs.
const WRAPPERS: [&str; 22] = [
    "model",
    "module",
    "state_dict",
    "model_state_dict",
    "model_state",
    "teacher",
    "student",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "net",
    "network",
    "weights",
    "params",
    "backbone_state_dict",
    "encoder_state_dict",
    "target_encoder",
    "base_model",
    "optimizer",
    "optimizer_state_dict",
];

/// What a pickle holds.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Tensors and refused tensors by path.
    pub(super) tensors: Vec<(String, Id)>,
    pub(super) skipped: Vec<Skipped>,
    /// Plain values of the outermost dict.
    pub(super) words: BTreeMap<String, String>,
}

/// Lists everything below a value.
pub(super) fn walk(values: &Values<'_>) -> Result<Tree, String> {
    let mut tree = Tree::default();
    let (mut unlisted, mut budget) = (0, MAX_STEPS);
    // A container, the number of its next child, and the length of its path.
    let mut open = vec![(values.root, 0, 0)];
    let (mut path, mut named, mut steps) = (String::new(), 0, 0);
    while let Some((container, next, length)) = open.pop() {
        path.truncate(length);
        let Some((name, child)) = child(values, container, next) else { continue };
        open.push((container, next + 1, length));
        steps += 1;
        let Some(name) = name else {
            unlisted += usize::from(!is_plain(values.get(child)));
            continue;
        };
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(&name);
        named += path.len();
        if steps > MAX_STEPS || named > MAX_NAMES || path.len() > 8192 {
            return Err("nests more than a checkpoint does".to_owned());
        }
        match values.get(child) {
            Value::Tensor(_) | Value::Refused(_) => tree.tensors.push((path.clone(), child)),
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) if open.len() < MAX_DEPTH => {
                open.push((child, 0, path.len()));
            }
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) => {
                return Err(format!("`{}` is nested too deeply", shown(&path)));
            }
            Value::Opaque(opaque) if tree.skipped.len() < MAX_LISTED => {
                let tensors = holds(values, child, &mut budget)?;
                let what = values.class(opaque);
                tree.skipped.push(Skipped { path: shown(&path), what, tensors });
            }
            Value::Opaque(_) => unlisted += 1,
            plain if open.len() == 1 && tree.words.len() < MAX_LISTED => {
                if let Some(word) = word(values, plain) {
                    tree.words.insert(shown(&path), word);
                }
            }
            _ => {}
        }
    }
    if unlisted > 0 {
        let what = format!("{unlisted} more objects, or tensors under keys that are no text");
        tree.skipped.push(Skipped { path: String::new(), what, tensors: 0 });
    }
    distinct(&tree)?;
    Ok(tree)
}

fn distinct(tree: &Tree) -> Result<(), String> {
    let mut names: Vec<&str> = tree.tensors.iter().map(|(path, _)| path.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("`{}` appears twice", shown(pair[0]))),
        None => Ok(()),
    }
}

/// A child of a container with its key; the key is none when it cannot be part of a path.
fn child(values: &Values<'_>, container: Id, at: usize) -> Option<(Option<String>, Id)> {
    match values.get(container) {
        Value::Dict(entries) => entries.get(at).map(|(key, value)| (values.name(*key), *value)),
        Value::List(list) | Value::Tuple(list) => {
            list.get(at).map(|value| (Some(at.to_string()), *value))
        }
        _ => None,
    }
}

fn word(values: &Values<'_>, value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(value.to_string()),
        Value::Text(span) if span.len() <= 256 => Some(values.text(span).into_owned()),
        _ => None,
    }
}

fn is_plain(value: &Value) -> bool {
    match value {
        Value::Dict(_) | Value::List(_) | Value::Tuple(_) => false,
        Value::Opaque(_) | Value::Tensor(_) | Value::Refused(_) => false,
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Long(_) | Value::Float(_) => true,
        Value::Text(_) | Value::Bytes(_) | Value::Short(_) => true,
        Value::Global(..) | Value::Storage(_) => true,
    }
}

/// Tensors below a value, each counted once. What several entries share is walked for each of
/// them, so the steps are counted.
fn holds(values: &Values<'_>, id: Id, budget: &mut usize) -> Result<usize, String> {
    if is_plain(values.get(id)) {
        return Ok(0);
    }
    let (mut open, mut seen, mut count) = (vec![id], BTreeSet::new(), 0);
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let children = match values.get(id) {
            Value::Tensor(_) | Value::Refused(_) => {
                count += 1;
                1
            }
            Value::List(list) | Value::Tuple(list) => {
                open.extend(list);
                list.len()
            }
            Value::Dict(entries) => {
                open.extend(entries.iter().map(|(_, value)| *value));
                entries.len()
            }
            Value::Opaque(opaque) => {
                open.extend(&opaque.held);
                opaque.held.len()
            }
            _ => 1,
        };
        *budget = budget.checked_sub(children).ok_or("nests more than a checkpoint does")?;
    }
    Ok(count)
}

/// Which part of a pickle is meant: the part asked for, or the state dict when there is one only.
pub(super) fn choose(values: &Values<'_>, wanted: Wanted<'_>) -> Result<Option<String>, String> {
    if let Value::Opaque(opaque) = values.get(values.root) {
        let class = values.class(opaque);
        return Err(format!(
            "holds an object of the class `{class}`, no dict of tensors; save its state dict"
        ));
    }
    if matches!(values.get(values.root), Value::Tensor(_) | Value::Refused(_)) {
        return Err("holds one tensor without a name; save a dict of tensors".to_owned());
    }
    refuse_shards(values)?;
    if let Wanted::Part(part) = wanted {
        return Ok(Some(part.to_owned()));
    }
    if matches!(wanted, Wanted::Everything) {
        return Ok(None);
    }
    let (mut at, mut taken) = (values.root, Vec::new());
    for _ in 0..MAX_DEPTH {
        let groups = groups(values, at)?;
        let own = groups.iter().filter(|(_, child, _)| is_tensor(values, *child)).count();
        let parts: Vec<_> = groups.iter().filter(|group| !is_tensor(values, group.1)).collect();
        let wraps = |name: &str| WRAPPERS.contains(&name);
        match parts.as_slice() {
            [(name, child, _)] if own == 0 && wraps(name) => {
                taken.push(name.clone());
                at = *child;
            }
            [] | [_] if parts.iter().all(|(name, ..)| own == 0 || !wraps(name)) => break,
            // Dicts beside tensors, or inside of a wrapper, are modules inside of a module.
            _ if (own > 0 || !taken.is_empty()) && !parts.iter().any(|(name, ..)| wraps(name)) => {
                break;
            }
            _ => {
                let mut told: Vec<String> =
                    parts.iter().map(|(name, _, n)| format!("`{}` ({n})", shown(name))).collect();
                told.truncate(16);
                if own > 0 {
                    told.push(format!("no part ({own})"));
                }
                let told = told.join(", ");
                return Err(format!(
                    "holds tensors in {told}; say which part is meant, or `` for everything"
                ));
            }
        }
    }
    Ok((!taken.is_empty()).then(|| taken.join(".")))
}

fn is_tensor(values: &Values<'_>, id: Id) -> bool {
    matches!(values.get(id), Value::Tensor(_) | Value::Refused(_))
}

/// Entries of a dict that hold tensors, with how many. Objects are skipped, whatever they hold.
fn groups(values: &Values<'_>, id: Id) -> Result<Vec<(String, Id, usize)>, String> {
    let (mut found, mut budget) = (Vec::new(), MAX_STEPS);
    for (name, child) in values.entries(id).into_iter().flatten() {
        let Some(name) = name else { continue };
        if matches!(values.get(child), Value::Opaque(_)) {
            continue;
        }
        let count = holds(values, child, &mut budget)?;
        if count > 0 {
            found.push((name, child, count));
        }
    }
    Ok(found)
}

/// Says what a file is that holds one process's share of a model.
fn refuse_shards(values: &Values<'_>) -> Result<(), String> {
    let Some(entries) = values.entries(values.root) else { return Ok(()) };
    let mut budget = 1 << 18;
    for (name, child) in entries {
        let Some(name) = name else { continue };
        let below = values.entries(child).into_iter().flatten().take(budget.min(4096));
        let below: Vec<Option<String>> = below.map(|(name, _)| name).collect();
        budget -= below.len();
        let below: BTreeSet<String> = below.into_iter().flatten().collect();
        let zero = ["zero_stage", "partition_count", "single_partition_of_fp32_groups"];
        if name == "optimizer_state_dict" && zero.iter().any(|key| below.contains(*key)) {
            return Err("is the optimiser shard of one process of DeepSpeed ZeRO; take \
                        mp_rank_00_model_states.pt, or join the shards with zero_to_fp32.py"
                .to_owned());
        }
        if below.iter().chain([&name]).any(|key| is_flat(key)) {
            return Err("is the shard of one process of FSDP, with flattened parameters; save a \
                        full state dict (StateDictType.FULL_STATE_DICT)"
                .to_owned());
        }
    }
    Ok(())
}

fn is_flat(key: &str) -> bool {
    key.split('.')
        .any(|part| matches!(part, "flat_param" | "_flat_param") || part.starts_with("flat_param_"))
}
