//! Layers of configuration: experiment file, `--with` overlays, environment, `--set`.
//!
//! The `config` crate merges them, the last one wins, and every value keeps where it came from.
//! Mappings merge key by key; scalars are replaced, and so are lists. A mapping over a list changes those of its
//! items that it names: `curriculum: { reconstruct: { steps: 50 } }`. Nothing (`null`) takes such an item away,
//! or a loss out of a stage.

mod join;

use join::{join, spread, without_dropped_losses};

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
            Some(base) => {
                let place = tree.place.clone();
                match spread(&base, tree, report).and_then(|tree| join(&base, &tree)) {
                    Ok(tree) => tree,
                    Err(error) => {
                        report.add(Diagnostic::new(Code::Value, &place, "", error.to_string()));
                        return None;
                    }
                }
            }
        });
    }
    merged.map(without_dropped_losses)
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
        (Tree::List(items), _) => {
            let names: Vec<&str> = items.iter().filter_map(Located::name).collect();
            match nearest(key, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => format!("it has items 0 to {}", items.len().max(1) - 1),
                None => format!("it has {}", quoted(&names)),
            }
        }
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
    fn items_of_a_list_change_by_name() {
        let base = "graph: {}\ncurriculum:\n  - { name: one, steps: 1, losses: { a.loss: 1, b.loss: 2 } }\n  - { name: two, steps: 2 }\n";
        let over = "curriculum:\n  one: { losses: { a.loss: null, c.loss: 3 } }\n  two: null\n";
        let mut report = Report::default();
        let layers = [
            file("base.yaml", base),
            file("over.yaml", over),
            Layer::set("curriculum.one.steps=7").unwrap(),
        ];
        let tree = merge(&layers, &mut report).unwrap();
        assert!(report.is_empty());
        let stages = &tree.to_json()["curriculum"];
        let expected = serde_json::json!([
            { "name": "one", "steps": 7, "losses": { "b.loss": 2, "c.loss": 3 } }
        ]);
        assert_eq!(*stages, expected);
        assert_eq!(
            tree.find("curriculum.one.losses.c.loss").unwrap().place.to_string(),
            "over.yaml:2:34"
        );

        let layers =
            [file("base.yaml", base), file("over.yaml", "curriculum: { tow: { steps: 3 } }")];
        assert!(merge(&layers, &mut report).is_some());
        let problem = report.into_problems().remove(0);
        assert_eq!(
            (problem.message.as_str(), problem.hint.as_str()),
            ("`curriculum` has no item `tow`", "did you mean `two`?")
        );
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
