//! Layers of configuration: experiment file, `--with` overlays, environment, `--set`.
//!
//! The `config` crate merges them, the last one wins, and every value keeps where it came from.
//! Mappings merge key by key; lists and scalars are replaced whole.

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use crate::diagnostic::{Code, Diagnostic, Place, Report};
use crate::entry::nearest;
use crate::yaml::{Located, Tree, parse, plain_scalar};

/// The prefix of environment variables that set values: `PLAYHOUSE__seed=3`.
pub const PREFIX: &str = "PLAYHOUSE__";

/// One layer.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A YAML file: its name as shown to people, and its text.
    File {
        /// Name.
        name: String,
        /// Text.
        text: String,
    },
    /// One value: `--set a.b=c`, or an environment variable.
    Set {
        /// Dotted path.
        path: String,
        /// The value, as YAML.
        value: String,
        /// Where it came from, for messages.
        origin: String,
    },
}

impl Layer {
    /// Reads `a.b=c`.
    pub fn set(text: &str) -> Result<Self, Diagnostic> {
        let origin = format!("--set {text}");
        match text.split_once('=') {
            Some((path, value)) if !path.trim().is_empty() => {
                Ok(Self::Set { path: path.trim().into(), value: value.into(), origin })
            }
            _ => {
                let place = Place::whole(&origin);
                let message = "an override is `path=value`".to_owned();
                Err(Diagnostic::new(Code::Override, &place, "", message)
                    .hint("write, for example, `--set graph.clips.batch=4`"))
            }
        }
    }

    /// Layers from variables named `PLAYHOUSE__a__b`, sorted by name.
    pub fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Self> {
        let mut layers: Vec<_> = variables
            .into_iter()
            .filter_map(|(name, value)| {
                let path = name.strip_prefix(PREFIX)?.replace("__", ".");
                Some((path, value, name))
            })
            .collect();
        layers.sort();
        let layer = |(path, value, origin)| Self::Set { path, value, origin };
        layers.into_iter().map(layer).collect()
    }
}

/// Merges layers into one tree. The first layer is the experiment itself.
pub fn merge(layers: &[Layer], report: &mut Report) -> Option<Located> {
    let mut merged: Option<Located> = None;
    for layer in layers {
        let tree = match layer {
            Layer::File { name, text } => parse(name, text, report)?,
            Layer::Set { path, value, origin } => {
                let base = merged.as_ref()?;
                read_override(base, path, value, origin, report)?
            }
        };
        if !matches!(tree.tree, Tree::Map(_)) {
            let message = format!("the document is {}, not a mapping", tree.what());
            report.add(Diagnostic::new(Code::Value, &tree.place, "", message));
            return None;
        }
        merged = Some(match merged {
            None => tree,
            Some(base) => match join(&base, &tree) {
                Ok(tree) => tree,
                Err(error) => {
                    report.add(Diagnostic::new(Code::Value, &tree.place, "", error.to_string()));
                    return None;
                }
            },
        });
    }
    merged
}

/// A tree that holds the one value of an override; its parent must exist.
fn read_override(
    base: &Located,
    path: &str,
    value: &str,
    origin: &str,
    report: &mut Report,
) -> Option<Located> {
    let place = Place::whole(origin);
    check_path(base, path, &place, report)?;
    let tree = if value.trim_start().starts_with(['[', '{', '"', '\'']) {
        parse(origin, value, report)?.tree
    } else {
        plain_scalar(value.trim())
    };
    let mut root = Located::empty(place.clone());
    root.tree = Tree::Map(Vec::new());
    root.set(path, Located { tree: replace_places(tree, &place), place });
    // A list item is replaced in a copy of its list, since lists are replaced whole.
    if let Some((prefix, list)) = list_on(base, path) {
        let mut copy = list.clone();
        let rest = &path[prefix.len() + 1..];
        copy.set(rest, root.find(path).cloned().unwrap_or_else(|| list.clone()));
        root = Located::empty(copy.place.clone());
        root.set(&prefix, copy);
    }
    Some(root)
}

fn list_on<'a>(base: &'a Located, path: &str) -> Option<(String, &'a Located)> {
    let ends = path.match_indices('.').map(|(at, _)| at);
    ends.map(|at| path[..at].to_owned()).find_map(|prefix| {
        let found = base.find(&prefix)?;
        matches!(found.tree, Tree::List(_)).then_some((prefix, found))
    })
}

fn replace_places(tree: Tree, place: &Place) -> Tree {
    match tree {
        Tree::List(items) => Tree::List(
            items
                .into_iter()
                .map(|i| Located { tree: replace_places(i.tree, place), place: place.clone() })
                .collect(),
        ),
        Tree::Map(entries) => Tree::Map(
            entries
                .into_iter()
                .map(|(k, v)| {
                    (k, Located { tree: replace_places(v.tree, place), place: place.clone() })
                })
                .collect(),
        ),
        other => other,
    }
}

/// An override may add an option to a node, but not a node to a graph.
pub fn check_path(base: &Located, path: &str, place: &Place, report: &mut Report) -> Option<()> {
    let mut at = base;
    let mut walked = String::new();
    let keys: Vec<&str> = path.split('.').collect();
    for (index, key) in keys.iter().enumerate() {
        let next = match &at.tree {
            Tree::List(items) => key.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => at.get(key),
        };
        let last = index + 1 == keys.len();
        match next {
            Some(next) => at = next,
            // New keys: an option of a node, or a top-level section.
            None if last && index != 1 && !matches!(at.tree, Tree::List(_)) => return Some(()),
            None if index == 0 && ["hosts", "place", "run"].contains(key) => return Some(()),
            None if keys[0] == "run" => return Some(()), // a name that is not known is found later
            None if ["place", "hosts"].contains(&keys[0]) => return Some(()),
            None if keys[0] == "graph" && index >= 2 && keys.get(2) == Some(&"in") => {
                return Some(());
            }
            None => {
                let inside = if walked.is_empty() { "the experiment" } else { &walked };
                let message = format!("`{path}` points at nothing: {inside} has no `{key}`");
                let names = at.entries().iter().map(|(name, _)| name.as_str());
                let hint = match (&at.tree, nearest(key, names)) {
                    (Tree::List(items), _) => {
                        format!("it has items 0 to {}", items.len().max(1) - 1)
                    }
                    (_, Some(near)) => {
                        let mut fixed = keys.clone();
                        fixed[index] = near;
                        format!("did you mean `{}`?", fixed.join("."))
                    }
                    (_, None) => "look up the names in the experiment file".to_owned(),
                };
                report.add(Diagnostic::new(Code::Override, place, path, message).hint(hint));
                return None;
            }
        }
        walked = if walked.is_empty() {
            format!("`{key}`")
        } else {
            format!("`{}`", keys[..=index].join("."))
        };
    }
    Some(())
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

fn join(base: &Located, over: &Located) -> Result<Located, ConfigError> {
    let config = Config::builder()
        .add_source(TreeSource(base.clone()))
        .add_source(TreeSource(over.clone()))
        .build()?;
    let mut merged = from_config(&config.cache);
    merged.place = base.place.clone();
    Ok(merged)
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

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        "seed: 1\ngraph:\n  clips: { batch: 2, size: 64 }\nobservers: [progress, csv]\n";

    fn file(name: &str, text: &str) -> Layer {
        Layer::File { name: name.into(), text: text.into() }
    }

    #[test]
    fn the_last_layer_wins_and_every_value_keeps_its_origin() {
        let mut report = Report::default();
        let layers = [
            file("base.yaml", BASE),
            file("more.yaml", "graph: { clips: { size: 32 } }"),
            Layer::set("graph.clips.batch=8").unwrap(),
            Layer::set("observers.1=tensorboard").unwrap(),
        ];
        let tree = merge(&layers, &mut report).unwrap();
        assert!(report.is_empty());
        let at = |path: &str| {
            let found = tree.find(path).unwrap();
            (found.tree.clone(), found.place.to_string())
        };
        assert_eq!(at("seed"), (Tree::Int(1), "base.yaml:1:1".into()));
        assert_eq!(at("graph.clips.size"), (Tree::Int(32), "more.yaml:1:19".into()));
        assert_eq!(at("graph.clips.batch"), (Tree::Int(8), "--set graph.clips.batch=8".into()));
        assert_eq!(at("observers.0").0, Tree::Text("progress".into()));
        assert_eq!(at("observers.1").0, Tree::Text("tensorboard".into()));
    }

    #[test]
    fn an_override_of_nothing_names_the_nearest_path() {
        let mut report = Report::default();
        let layers = [file("base.yaml", BASE), Layer::set("graph.clps.batch=8").unwrap()];
        assert!(merge(&layers, &mut report).is_none());
        let problem = report.into_problems().remove(0);
        assert_eq!(problem.hint, "did you mean `graph.clips.batch`?");
    }
}
