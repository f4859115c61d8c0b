//! YAML as a tree that knows where everything was written.

use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use crate::diagnostic::{Code, Diagnostic, Place, Report};

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// The value.
    pub tree: Tree,
    /// Where its key, or else itself, was written.
    pub place: Place,
}

/// What YAML can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Located>),
    /// A mapping, in the order written.
    Map(Vec<(String, Located)>),
}

impl Located {
    /// An empty mapping.
    pub fn empty(place: Place) -> Self {
        Self { tree: Tree::Map(Vec::new()), place }
    }

    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&Located> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Entries of a mapping; none of anything else.
    pub fn entries(&self) -> &[(String, Located)] {
        match &self.tree {
            Tree::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Items of a list; none of anything else.
    pub fn items(&self) -> &[Located] {
        match &self.tree {
            Tree::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match &self.tree {
            Tree::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn what(&self) -> &'static str {
        match self.tree {
            Tree::Null => "nothing",
            Tree::Bool(_) => "a boolean",
            Tree::Int(_) | Tree::Float(_) => "a number",
            Tree::Text(_) => "text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a mapping",
        }
    }

    /// As YAML text, in block style.
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0);
        text
    }

    fn write(&self, text: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        match &self.tree {
            Tree::Map(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    let key = quoted_if_needed(key);
                    text.push_str(&format!("{indent}{key}:"));
                    value.write_below(text, depth);
                }
            }
            Tree::List(items) if !items.is_empty() => {
                for item in items {
                    text.push_str(&format!("{indent}-"));
                    item.write_below(text, depth);
                }
            }
            _ => text.push_str(&format!("{indent}{}\n", self.scalar())),
        }
    }

    fn write_below(&self, text: &mut String, depth: usize) {
        let nested = match &self.tree {
            Tree::Map(entries) => !entries.is_empty(),
            Tree::List(items) => !items.is_empty(),
            _ => false,
        };
        if nested {
            text.push('\n');
            self.write(text, depth + 1);
        } else {
            text.push_str(&format!(" {}\n", self.scalar()));
        }
    }

    fn scalar(&self) -> String {
        match &self.tree {
            Tree::Null => "null".to_owned(),
            Tree::Bool(value) => value.to_string(),
            Tree::Int(value) => value.to_string(),
            Tree::Float(value) => format!("{value:?}"),
            Tree::Text(value) => quoted_if_needed(value),
            Tree::List(_) => "[]".to_owned(),
            Tree::Map(_) => "{}".to_owned(),
        }
    }

    /// As plain data.
    pub fn to_json(&self) -> Value {
        match &self.tree {
            Tree::Null => Value::Null,
            Tree::Bool(value) => Value::Bool(*value),
            Tree::Int(value) => Value::Number((*value).into()),
            Tree::Float(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
            Tree::Text(value) => Value::String(value.clone()),
            Tree::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Tree::Map(entries) => {
                let json = |(key, value): &(String, Self)| (key.clone(), value.to_json());
                Value::Object(entries.iter().map(json).collect::<Map<_, _>>())
            }
        }
    }
}

/// Reads one YAML document. Problems go to the report; what could be read comes back.
pub fn parse(origin: &str, text: &str, report: &mut Report) -> Option<Located> {
    let origin: Arc<str> = origin.into();
    let mut reader = Reader { origin: &origin, report, stack: Vec::new(), done: None };
    for next in Parser::new_from_str(text) {
        match next {
            Ok((event, span)) => {
                let place = Place::new(&origin, span.start.line(), span.start.col() + 1);
                reader.take(event, place)?;
            }
            Err(error) => {
                let marker = error.marker();
                let place = Place::new(&origin, marker.line(), marker.col() + 1);
                let message = format!("this is not YAML: {}", error.info());
                let hint = "look for an open bracket or quote, a tab, or a missing blank after `:`";
                reader.report.add(Diagnostic::new(Code::Yaml, &place, "", message).hint(hint));
                return None;
            }
        }
    }
    let empty = Located { tree: Tree::Null, place: Place::new(&origin, 1, 1) };
    Some(reader.done.unwrap_or(empty))
}

enum Open {
    List(Vec<Located>, Place),
    Map(Vec<(String, Located)>, Option<(String, Place)>, Place),
}

struct Reader<'a> {
    origin: &'a Arc<str>,
    report: &'a mut Report,
    stack: Vec<Open>,
    done: Option<Located>,
}

impl Reader<'_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Option<()> {
        match event {
            Event::Scalar(text, style, _, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let tree = if plain { plain_scalar(&text) } else { Tree::Text(text.into()) };
                self.put(Located { tree, place })
            }
            Event::SequenceStart(..) => self.open(Open::List(Vec::new(), place)),
            Event::MappingStart(..) => self.open(Open::Map(Vec::new(), None, place)),
            Event::SequenceEnd => match self.stack.pop() {
                Some(Open::List(items, place)) => {
                    self.put(Located { tree: Tree::List(items), place })
                }
                _ => None,
            },
            Event::MappingEnd => match self.stack.pop() {
                Some(Open::Map(entries, _, place)) => {
                    self.put(Located { tree: Tree::Map(entries), place })
                }
                _ => None,
            },
            Event::DocumentStart(..) if self.done.is_some() => self.fail(
                &place,
                "a second document begins here",
                "keep one, without `---` between",
            ),
            Event::Alias(..) => self.fail(&place, "aliases are not read", "write the value again"),
            _ => Some(()),
        }
    }

    fn open(&mut self, open: Open) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            let place = Place::new(self.origin, 1, 1);
            return self.fail(&place, "the nesting is too deep", "nest less than 64 deep");
        }
        self.stack.push(open);
        Some(())
    }

    fn fail(&mut self, place: &Place, message: &str, hint: &str) -> Option<()> {
        let problem = Diagnostic::new(Code::Yaml, place, "", message.to_owned());
        self.report.add(problem.hint(hint));
        None
    }

    /// Dotted path of a key in the innermost mapping.
    fn path(&self, key: &str) -> String {
        let part = |open: &Open| match open {
            Open::List(items, _) => Some(items.len().to_string()),
            Open::Map(_, key, _) => key.as_ref().map(|(key, _)| key.clone()),
        };
        let parts = self.stack.iter().filter_map(part).chain([key.to_owned()]);
        parts.collect::<Vec<_>>().join(".")
    }

    fn put(&mut self, mut value: Located) -> Option<()> {
        match self.stack.last_mut() {
            None => self.done = Some(value),
            Some(Open::List(items, _)) => items.push(value),
            Some(Open::Map(entries, key, _)) => match key.take() {
                None => {
                    let place = value.place.clone();
                    let name = match value.tree {
                        Tree::Text(text) => text,
                        Tree::Int(number) => number.to_string(),
                        Tree::Bool(value) => value.to_string(),
                        _ => return self.fail(&place, "a key must be a word", "quote it"),
                    };
                    *key = Some((name, place));
                }
                Some((name, place)) => {
                    if let Some((_, first)) = entries.iter().find(|(n, _)| *n == name) {
                        let message = format!("`{name}` is there twice");
                        let hint =
                            format!("the first one is at {}; remove or rename one", first.place);
                        let problem = Diagnostic::new(Code::Twice, &place, "", message).hint(hint);
                        let path = self.path(&name);
                        self.report.add(Diagnostic { path, ..problem });
                        return Some(());
                    }
                    value.place = place;
                    entries.push((name, value));
                }
            },
        }
        Some(())
    }
}

/// Text as it can stand in block style: plain words as they are, the rest in double quotes.
fn quoted_if_needed(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let word = !text.is_empty()
        && text.chars().all(plain)
        && !text.starts_with(['-', '.'])
        && matches!(plain_scalar(text), Tree::Text(_));
    if word { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// A scalar without quotes, by the YAML 1.2 core schema; `1e-3` is a number too.
pub fn plain_scalar(text: &str) -> Tree {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Tree::Null,
        "true" | "True" | "TRUE" => return Tree::Bool(true),
        "false" | "False" | "FALSE" => return Tree::Bool(false),
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if numeric && let Ok(number) = text.parse::<i64>() {
        return Tree::Int(number);
    }
    match text.parse::<f64>() {
        Ok(number) if numeric && number.is_finite() => Tree::Float(number),
        _ => Tree::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Located>, Vec<Diagnostic>) {
        let mut report = Report::default();
        let tree = parse("a.yaml", text, &mut report);
        (tree, report.into_problems())
    }

    #[test]
    fn values_know_their_place() {
        let (tree, problems) = read("seed: 7\ngraph:\n  clips: { batch: 2, lr: 1e-3 }\n");
        let tree = tree.unwrap();
        assert!(problems.is_empty());
        let batch = tree.find("graph.clips.batch").unwrap();
        assert_eq!((batch.place.line, batch.place.column), (3, 12));
        assert_eq!(tree.find("graph.clips.lr").unwrap().tree, Tree::Float(1e-3));
    }

    #[test]
    fn a_key_that_is_there_twice_is_reported_with_both_places() {
        let (_, problems) = read("a: 1\nb: 2\na: 3\n");
        assert_eq!(problems[0].place.to_string(), "a.yaml:3:1");
        assert!(problems[0].hint.contains("a.yaml:1:1"));
    }

    #[test]
    fn broken_yaml_is_a_problem_with_a_place() {
        let (tree, problems) = read("graph: { clips: [1, 2\n");
        assert!(tree.is_none());
        assert_eq!(problems[0].code, Code::Yaml);
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        let text = "a: { b: [1, 2.5, x y, '7', ~], c: {}, 'k: v': true }\nd: 1.0e-6\n";
        let tree = read(text).0.unwrap();
        let again = read(&tree.to_yaml()).0.unwrap();
        assert_eq!(tree.to_json(), again.to_json(), "{}", tree.to_yaml());
    }

    #[test]
    fn deep_nesting_is_refused() {
        let (tree, problems) = read(&"[".repeat(500));
        assert!(tree.is_none());
        assert_eq!(problems.len(), 1);
    }
}
