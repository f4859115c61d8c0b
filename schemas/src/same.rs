//! `same:` a node that is a second vertex on the weights of another.
//!
//! What it does not say is as at the other node, so it is written out before the graph is read.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::nearest;
use crate::experiment::Experiment;
use crate::graph::StageNode;
use crate::resolve::Resolved;
use crate::yaml::{Located, Tree};

/// Keys that belong to the node whose weights they are about.
const OWNERS: [&str; 8] =
    ["kind", "frozen", "weights", "device", "precision", "checkpointing", "ema", "lora"];

/// The tree with every such node written out.
pub(crate) fn written_out(tree: &Located, report: &mut Report) -> Located {
    let mut whole = tree.clone();
    let Some(graph) = tree.get("graph") else { return whole };
    for (name, node) in graph.entries() {
        let Some(same) = node.get("same").filter(|same| !matches!(same.tree, Tree::Null)) else {
            continue;
        };
        let mut refuse = |message: String, hint: String| {
            let path = format!("graph.{name}.same");
            report.add(Diagnostic::new(Code::Weights, &same.place, path, message).hint(hint));
        };
        let Some(owner) = same.text() else {
            refuse(format!("`same` is {}, not a name", same.what()), "name a node".to_owned());
            continue;
        };
        let Some(other) = graph.get(owner).filter(|_| owner != name) else {
            let names = graph.entries().iter().map(|(name, _)| name.as_str());
            let hint = match nearest(owner, names.filter(|other| other != name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name another node under `graph`".to_owned(),
            };
            refuse(format!("no other node is named `{owner}`"), hint);
            continue;
        };
        if let Some(first) = other.get("same").and_then(Located::text) {
            let message = format!("`{owner}` is itself on the weights of `{first}`");
            refuse(message, format!("write `same: {first}`"));
            continue;
        }
        if let Some((key, _)) = node.entries().iter().find(|(key, _)| OWNERS.contains(&&**key)) {
            let message = format!("`{key}` belongs to `{owner}`, whose weights these are");
            refuse(message, format!("move `{key}` to `{owner}`"));
            continue;
        }
        let mut merged = node.clone();
        for (key, value) in other.entries().iter().filter(|(key, _)| key != "in") {
            if node.get(key).is_none() {
                merged.set(key, value.clone());
            }
        }
        whole.set(&format!("graph.{name}"), merged);
    }
    whole
}

/// The node that a node shares weights with, itself when it shares none.
pub(crate) fn owner<'a>(experiment: &'a Experiment, name: &'a str) -> &'a str {
    let same = experiment.graph.get(name).and_then(|config| config.same.as_deref());
    same.unwrap_or(name)
}

/// Checks that a second vertex needs no parameter that the first one does not have.
pub(crate) fn check(
    context: &Context<'_>,
    resolved: &BTreeMap<String, Resolved>,
    nodes: &BTreeMap<String, StageNode>,
    report: &mut Report,
) {
    for (name, node) in nodes {
        let (Some(owner), Some(kind)) = (&node.same, resolved.get(name)) else { continue };
        let Some(first) = nodes.get(owner) else { continue };
        let list = |node: &StageNode| (kind.entry.parameters)(&node.spec);
        let there: BTreeMap<_, _> = list(first).into_iter().map(|p| (p.path, p.shape)).collect();
        let own = list(node);
        let path = format!("graph.{name}.same");
        if own.is_empty() {
            let message = format!("`{owner}` has no weights to share");
            let problem = context.problem(Code::Weights, &path, message);
            report.add(problem.hint(format!("leave `same` out: write `kind: {}`", node.spec.kind)));
        }
        let odd = own.iter().find(|p| there.get(&p.path) != Some(&p.shape));
        if let Some(odd) = odd {
            let has = match there.get(&odd.path) {
                None => "does not have".to_owned(),
                Some(shape) => format!("has as {shape:?}"),
            };
            let message =
                format!("`{name}` needs `{}` {:?}, which `{owner}` {has}", odd.path, odd.shape);
            let hint = format!("give `{owner}` the options that make it hold all parameters");
            report.add(context.problem(Code::Weights, &path, message).hint(hint));
        }
    }
}
