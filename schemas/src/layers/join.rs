//! One layer over another.

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use crate::diagnostic::{Code, Diagnostic, Place, Report};
use crate::entry::nearest;
use crate::paths::item;
use crate::reading::quoted;
use crate::yaml::{Located, Tree};

/// Writes out, in an overlay, the lists of which it changes some items by name.
pub(super) fn spread(
    base: &Located,
    mut over: Located,
    report: &mut Report,
) -> Result<Located, ConfigError> {
    let Tree::Map(entries) = &mut over.tree else { return Ok(over) };
    for (key, value) in entries {
        let Some(Located { tree: Tree::List(items), .. }) = base.get(key) else { continue };
        let Tree::Map(changes) = &value.tree else { continue };
        let mut items: Vec<Option<Located>> = items.iter().cloned().map(Some).collect();
        for (name, change) in changes {
            let all: Vec<Located> = base.get(key).map_or(Vec::new(), |list| list.items().to_vec());
            let Some(number) = item(&all, name) else {
                let path = format!("{key}.{name}");
                let message = format!("`{key}` has no item `{name}`");
                let names: Vec<&str> = all.iter().filter_map(Located::name).collect();
                let hint = match nearest(name, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it has {}", quoted(&names)),
                };
                report
                    .add(Diagnostic::new(Code::Override, &change.place, path, message).hint(hint));
                continue;
            };
            items[number] = match (&change.tree, &all[number].tree) {
                (Tree::Null, _) => None,
                (Tree::Map(_), Tree::Map(_)) => Some(join(&all[number], change)?),
                _ => Some(change.clone()),
            };
        }
        value.tree = Tree::List(items.into_iter().flatten().collect());
    }
    Ok(over)
}

/// A loss that a later layer sets to nothing is none.
pub(super) fn without_dropped_losses(mut tree: Located) -> Located {
    let Tree::Map(entries) = &mut tree.tree else { return tree };
    let stages = entries.iter_mut().filter(|(key, _)| key == "curriculum");
    for (_, stages) in stages {
        let Tree::List(stages) = &mut stages.tree else { continue };
        for stage in stages {
            let Tree::Map(keys) = &mut stage.tree else { continue };
            for (_, losses) in keys.iter_mut().filter(|(key, _)| key == "losses") {
                if let Tree::Map(losses) = &mut losses.tree {
                    losses.retain(|(_, weight)| !matches!(weight.tree, Tree::Null));
                }
            }
        }
    }
    tree
}

/// A tree as a source of the `config` crate.
#[derive(Debug, Clone)]
struct TreeSource(Located);

impl Source for TreeSource {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let entries = self.0.entries().iter();
        Ok(entries.map(|(key, value)| (key.clone(), to_config(value))).collect())
    }

    fn collect_to(&self, cache: &mut Value) -> Result<(), ConfigError> {
        overlay(cache, &to_config(&self.0));
        Ok(())
    }
}

/// Keys are taken as they are: a dot in a key is not a path.
fn overlay(base: &mut Value, over: &Value) {
    match (&mut base.kind, &over.kind) {
        (ValueKind::Table(base), ValueKind::Table(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(old) => overlay(old, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        _ => *base = over.clone(),
    }
}

pub(super) fn join(base: &Located, over: &Located) -> Result<Located, ConfigError> {
    let config = Config::builder()
        .add_source(TreeSource(base.clone()))
        .add_source(TreeSource(over.clone()))
        .build()?;
    let mut merged = from_config(&config.cache);
    restore_places(&mut merged, Some(base), Some(over));
    Ok(merged)
}

/// Mappings lose their origin in a merge; one begins where its first layer wrote it.
fn restore_places(merged: &mut Located, base: Option<&Located>, over: Option<&Located>) {
    let Tree::Map(entries) = &mut merged.tree else { return };
    let is_map = |side: &&Located| matches!(side.tree, Tree::Map(_));
    let (base, over) = (base.filter(is_map), over.filter(is_map));
    if let Some(first) = base.or(over) {
        merged.place = first.place.clone();
    }
    for (key, value) in entries {
        let (base, over) = (base.and_then(|b| b.get(key)), over.and_then(|o| o.get(key)));
        restore_places(value, base, over);
    }
}

fn to_config(value: &Located) -> Value {
    let kind = match &value.tree {
        Tree::Null => ValueKind::Nil,
        Tree::Bool(value) => ValueKind::Boolean(*value),
        Tree::Int(value) => ValueKind::I64(*value),
        Tree::Float(value) => ValueKind::Float(*value),
        Tree::Text(value) => ValueKind::String(value.clone()),
        Tree::List(items) => ValueKind::Array(items.iter().map(to_config).collect()),
        Tree::Map(entries) => {
            ValueKind::Table(entries.iter().map(|(k, v)| (k.clone(), to_config(v))).collect())
        }
    };
    Value::new(Some(&value.place.to_string()), kind)
}

fn from_config(value: &Value) -> Located {
    let tree = match &value.kind {
        ValueKind::Nil => Tree::Null,
        ValueKind::Boolean(value) => Tree::Bool(*value),
        ValueKind::I64(value) => Tree::Int(*value),
        ValueKind::I128(value) => Tree::Int(*value as i64),
        ValueKind::U64(value) => Tree::Int(*value as i64),
        ValueKind::U128(value) => Tree::Int(*value as i64),
        ValueKind::Float(value) => Tree::Float(*value),
        ValueKind::String(value) => Tree::Text(value.clone()),
        ValueKind::Array(items) => Tree::List(items.iter().map(from_config).collect()),
        ValueKind::Table(entries) => {
            Tree::Map(entries.iter().map(|(k, v)| (k.clone(), from_config(v))).collect())
        }
    };
    Located { tree, place: Place::parse(value.origin().unwrap_or_default()) }
}
