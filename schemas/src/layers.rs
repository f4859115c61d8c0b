//! Layers of configuration: experiment file, `--with` overlays, environment, `--set`.
//!
//! The `config` crate merges them, the last one wins, and every value keeps where it came from.
//! Mappings merge key by key; lists and scalars are replaced whole.

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use crate::diagnostic::{Code, Diagnostic, Place, Report};
use crate::entry::nearest;
use crate::reading::quoted;
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
                let Some(tree) = read_override(base, path, value, origin, report) else { continue };
                tree
            }
        };
        if !matches!(tree.tree, Tree::Map(_)) {
            let message = format!("the document is {}, not a mapping", tree.what());
            let hint =
                "an experiment begins with `graph:`; `playhouse new FILE` writes a small one";
            report.add(Diagnostic::new(Code::Value, &tree.place, "", message).hint(hint));
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
    if let Err(nothing) = check_path(base, path) {
        report.add(nothing.diagnostic(&place, path));
        return None;
    }
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

/// A dotted path that does not point at anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nothing {
    path: String,
    /// The part of the path that exists.
    walked: String,
    /// The key that does not.
    key: String,
    hint: String,
}

impl Nothing {
    /// The same with paths as they are written inside `prefix`.
    pub(crate) fn within(mut self, prefix: &str) -> Self {
        let cut = |text: &str| text.strip_prefix(prefix).unwrap_or(text).to_owned();
        self.path = cut(&self.path);
        self.walked = cut(&self.walked);
        self.hint = self.hint.replace(&format!("`{prefix}"), "`");
        self
    }

    /// As a problem at a place.
    pub(crate) fn diagnostic(self, place: &Place, path: impl Into<String>) -> Diagnostic {
        let Self { path: written, walked, key, hint } = self;
        let inside =
            if walked.is_empty() { "the experiment".into() } else { format!("`{walked}`") };
        let message = format!("`{written}` points at nothing: {inside} has no `{key}`");
        Diagnostic::new(Code::Override, place, path, message).hint(hint)
    }
}

/// An override may set a value that is not written yet, but every node, stage, host section and
/// list item on its way must exist.
pub(crate) fn check_path(base: &Located, path: &str) -> Result<(), Nothing> {
    let mut at = base;
    let mut rest = path;
    let mut walked = String::new();
    let open = ["hosts", "place", "run", "observers", "question", "seed"];
    while !rest.is_empty() {
        if let Some((key, next, left)) = at.step(rest) {
            walked = if walked.is_empty() { key.to_owned() } else { format!("{walked}.{key}") };
            (at, rest) = (next, left);
            continue;
        }
        let depth = if walked.is_empty() { 0 } else { walked.split('.').count() };
        let top = path.split('.').next().unwrap_or_default();
        let inside = match top {
            "graph" => depth >= 2,
            "curriculum" => depth >= 2 && !matches!(at.tree, Tree::List(_)),
            _ => (depth > 0 && !matches!(at.tree, Tree::List(_))) || open.contains(&top),
        };
        if inside || (depth == 0 && !path.contains('.')) {
            return Ok(()); // a new key; whether it is known is seen when it is read
        }
        return Err(nothing(at, path, (walked, rest)));
    }
    Ok(())
}

fn nothing(at: &Located, path: &str, (walked, rest): (String, &str)) -> Nothing {
    let (key, left) = rest.split_once('.').map_or((rest, ""), |(key, left)| (key, left));
    let names = at.entries().iter().map(|(name, _)| name.as_str());
    let hint = match (&at.tree, nearest(key, names)) {
        (Tree::List(items), _) => format!("it has items 0 to {}", items.len().max(1) - 1),
        (_, Some(near)) => {
            let words = [walked.as_str(), near, left].into_iter().filter(|word| !word.is_empty());
            format!("did you mean `{}`?", words.collect::<Vec<_>>().join("."))
        }
        (_, None) => {
            let names: Vec<&str> = at.entries().iter().map(|(name, _)| name.as_str()).collect();
            format!("it has {}", quoted(&names))
        }
    };
    Nothing { path: path.to_owned(), walked, key: key.to_owned(), hint }
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
        assert_eq!(at("graph.clips").1, "base.yaml:3:3");
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
        assert!(merge(&layers, &mut report).is_some(), "the rest is checked all the same");
        let problem = report.into_problems().remove(0);
        assert_eq!(problem.hint, "did you mean `graph.clips.batch`?");
    }
}
