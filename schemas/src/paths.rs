//! Dotted paths through a tree: `graph.clips.batch`, `curriculum.0.losses.align.loss`.
//!
//! A key may hold dots itself: the keys of `losses` and of `with` are paths of their own. An item of a list goes
//! by its number, or by its `name`: `curriculum.reconstruct.steps`.

use crate::diagnostic::Place;
use crate::yaml::{Located, Tree};

/// The number of an item that is called by its number or by its `name`.
pub(crate) fn item(items: &[Located], key: &str) -> Option<usize> {
    let named = || items.iter().position(|item| item.name() == Some(key));
    key.parse::<usize>().ok().filter(|number| *number < items.len()).or_else(named)
}

impl Located {
    /// What a mapping says under `name`.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.get("name")?.tree {
            Tree::Text(name) => Some(name),
            _ => None,
        }
    }

    /// The value under a dotted path.
    pub fn find(&self, path: &str) -> Option<&Located> {
        let (mut at, mut rest) = (self, path);
        while !rest.is_empty() {
            (_, at, rest) = at.step(rest)?;
        }
        Some(at)
    }

    /// The place of a dotted path, or of its nearest ancestor that was written.
    pub fn place_of(&self, path: &str) -> Place {
        let (mut at, mut rest) = (self, path);
        while let Some((_, next, left)) = at.step(rest) {
            (at, rest) = (next, left);
        }
        at.place.clone()
    }

    /// One step along a dotted path: the key, its value, and the path that is left. A key may
    /// hold dots itself (`losses: { align.loss: 1 }`); the longest one that fits is taken.
    pub(crate) fn step<'a>(&self, path: &'a str) -> Option<(&'a str, &Located, &'a str)> {
        let ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
        let mut ends: Vec<usize> = ends.filter(|end| *end > 0).collect();
        ends.reverse();
        ends.into_iter().find_map(|end| {
            let key = &path[..end];
            let value = match &self.tree {
                Tree::List(items) => &items[item(items, key)?],
                _ => self.get(key)?,
            };
            Some((key, value, path.get(end + 1..).unwrap_or_default()))
        })
    }

    /// Sets a dotted path; makes mappings on the way.
    pub fn set(&mut self, path: &str, value: Located) {
        let known = self.step(path).map(|(key, _, rest)| (key, rest));
        let (key, rest) = known.unwrap_or_else(|| path.split_once('.').unwrap_or((path, "")));
        if let Tree::List(items) = &mut self.tree {
            match item(items, key).map(|number| &mut items[number]) {
                Some(item) if rest.is_empty() => *item = value,
                Some(item) => item.set_below(key, rest, value),
                None => {}
            }
            return;
        }
        if !matches!(self.tree, Tree::Map(_)) {
            self.tree = Tree::Map(Vec::new());
        }
        let Tree::Map(entries) = &mut self.tree else { return };
        let at = entries.iter().position(|(name, _)| name == key);
        match (at, rest) {
            (Some(at), "") => entries[at].1 = value,
            (Some(at), rest) => entries[at].1.set_below(key, rest, value),
            (None, "") => entries.push((key.to_owned(), value)),
            (None, rest) => {
                let mut inner = Self::empty(value.place.clone());
                inner.set_below(key, rest, value);
                entries.push((key.to_owned(), inner));
            }
        }
    }

    /// Sets a path below `key`. Keys of `losses` and of `with` are dotted paths themselves.
    fn set_below(&mut self, key: &str, rest: &str, value: Located) {
        if !["losses", "with"].contains(&key) || self.step(rest).is_some() {
            return self.set(rest, value);
        }
        match &mut self.tree {
            Tree::Map(entries) => entries.push((rest.to_owned(), value)),
            tree => *tree = Tree::Map(vec![(rest.to_owned(), value)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Report;
    use crate::yaml::parse;

    const TEXT: &str = "a:\n  - losses: { judge.loss: 1, judge: 2 }\n    with: { clips.size: 3 }\n";

    #[test]
    fn the_longest_key_that_fits_is_taken() {
        let tree = parse("a.yaml", TEXT, &mut Report::default()).unwrap();
        let at = |path: &str| tree.find(path).map(|found| found.tree.clone());
        assert_eq!(at("a.0.losses.judge.loss"), Some(Tree::Int(1)));
        assert_eq!(at("a.0.losses.judge"), Some(Tree::Int(2)));
        assert_eq!(at("a.1"), None);
        assert_eq!(tree.place_of("a.0.with.clips.size.more").to_string(), "a.yaml:3:13");
    }

    #[test]
    fn a_path_below_losses_or_with_is_one_key() {
        let mut tree = parse("a.yaml", TEXT, &mut Report::default()).unwrap();
        for path in ["a.0.losses.judge.loss", "a.0.losses.other.loss", "a.0.with.clips.frames"] {
            tree.set(path, Located { tree: Tree::Int(7), place: Place::whole("set") });
        }
        let json = tree.to_json();
        assert_eq!(json["a"][0]["losses"]["judge.loss"], 7);
        assert_eq!(json["a"][0]["losses"]["other.loss"], 7);
        assert_eq!(json["a"][0]["with"]["clips.frames"], 7);
    }
}
