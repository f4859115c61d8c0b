//! One stage under check: its tree, and where its problems are reported.

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::experiment::{Experiment, StageConfig};
use crate::graph::Surroundings;
use crate::yaml::Located;

/// One stage under check.
pub(crate) struct Context<'a> {
    /// The tree with the stage's changes.
    pub(crate) tree: &'a Located,
    /// The experiment with the stage's changes.
    pub(crate) experiment: &'a Experiment,
    /// Number of the stage.
    pub(crate) index: usize,
    /// The stage.
    pub(crate) config: &'a StageConfig,
    /// What there is.
    pub(crate) around: &'a Surroundings,
}

impl Context<'_> {
    /// A problem at a dotted path of the tree. What a stage changes is named where it was written.
    pub(crate) fn problem(&self, code: Code, path: &str, message: String) -> Diagnostic {
        let place = self.tree.place_of(path);
        let changed = self.config.changes.keys().find_map(|key| {
            let rest = path.strip_prefix("graph.")?.strip_prefix(key.as_str())?;
            (rest.is_empty() || rest.starts_with('.')).then(|| format!("{key}{rest}"))
        });
        match changed {
            Some(key) => {
                Diagnostic::new(code, &place, format!("{}.with.{key}", self.path()), message)
            }
            None => Diagnostic::new(code, &place, path, message),
        }
    }

    /// What cannot be read because of the stage's changes.
    pub(crate) fn newly(&self, reread: Report, before: &Report) -> Report {
        let mut new = Report::default();
        for found in reread.into_problems().into_iter().filter(|found| !before.has(found)) {
            let Diagnostic { code, path, message, hint, .. } = found;
            new.add(self.problem(code, &path, message).hint(hint));
        }
        new
    }

    /// Whether a node of this name is written, sound or not.
    pub(crate) fn is_written(&self, node: &str) -> bool {
        is_written(self.tree, node)
    }

    /// Dotted path of this stage.
    pub(crate) fn path(&self) -> String {
        format!("curriculum.{}", self.index)
    }
}

/// Whether a node of this name is written, sound or not.
pub(crate) fn is_written(tree: &Located, node: &str) -> bool {
    tree.get("graph").is_some_and(|graph| graph.get(node).is_some())
}
