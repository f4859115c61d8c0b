//! Which parameters a `weights` input may take: those of a node that is alike, does not follow itself, and whose
//! follower learns nothing of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::experiment::NodeConfig;
use crate::graph::{Edge, End, StageNode, WEIGHTS, connected};
use crate::resolve::Resolved;

/// Checks one connection in which parameters take part; true when it is one.
pub(crate) fn check_edge(
    context: &Context<'_>,
    (name, config): (&str, &NodeConfig),
    (port, from): (&str, &End),
    report: &mut Report,
) -> bool {
    if port != WEIGHTS && from.port != WEIGHTS {
        return false;
    }
    let problem = if port != WEIGHTS {
        let message =
            format!("`{}.{WEIGHTS}` are parameters, and `{port}` takes a tensor", from.node);
        Some((message, format!("connect an output of `{}`, or the input `{WEIGHTS}`", from.node)))
    } else if from.port != WEIGHTS {
        let message =
            format!("`{WEIGHTS}` takes parameters, and `{}.{}` is a tensor", from.node, from.port);
        Some((message, format!("write `{WEIGHTS}: {}.{WEIGHTS}`", from.node)))
    } else {
        unlike(context, (name, config), &from.node)
    };
    if let Some((message, hint)) = problem {
        let path = format!("graph.{name}.in.{port}");
        report.add(context.problem(Code::Weights, &path, message).hint(hint));
    }
    true
}

/// Why a node cannot follow another, and what to do.
fn unlike(
    context: &Context<'_>,
    (name, config): (&str, &NodeConfig),
    of: &str,
) -> Option<(String, String)> {
    if of == name {
        let message = format!("`{name}` cannot follow itself");
        return Some((message, "name the node whose average it is".to_owned()));
    }
    let other = context.experiment.graph.get(of)?;
    if other.kind != config.kind {
        let message =
            format!("a {} cannot take the parameters of `{of}`, a {}", config.kind, other.kind);
        return Some((message, format!("follow a {}", config.kind)));
    }
    let (_, next) = connected(other).into_iter().find(|(port, _)| port == WEIGHTS)?;
    let message = format!("`{of}` follows another node itself");
    Some((message, format!("follow `{}`, or disconnect one of them", next.node)))
}

/// Checks the option `ema` of a node.
pub(crate) fn check_ema(
    context: &Context<'_>,
    (name, config): (&str, &NodeConfig),
    active: &BTreeSet<String>,
    report: &mut Report,
) {
    let Some(ema) = config.ema else { return };
    let path = format!("graph.{name}.ema");
    let mut add = |message: String, hint: &str| {
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    if !(0.0..=1.0).contains(&ema) {
        add(format!("`ema` is {ema}, not from 0 to 1"), "0.999 keeps a thousandth of each step");
    } else if active.contains(name) && !config.inputs.contains_key(WEIGHTS) {
        let message = format!("`{name}` has a decay but follows no node");
        add(message, "write `in: { weights: node.weights }`, or leave `ema` out");
    }
}

/// Checks that followers have the parameters of what they follow, and do not train.
pub(crate) fn check_followers(
    context: &Context<'_>,
    resolved: &BTreeMap<String, Resolved>,
    (nodes, edges): (&BTreeMap<String, StageNode>, &[Edge]),
    report: &mut Report,
) {
    for edge in edges.iter().filter(|edge| edge.is_weights()) {
        let (name, of) = (&edge.to.node, &edge.from.node);
        let kind = |name: &String| nodes.get(name).map(|node| &node.spec.kind);
        if name == of || kind(name) != kind(of) {
            continue; // reported as such
        }
        let count = |name: &String| {
            let (node, kind) = (nodes.get(name)?, resolved.get(name)?);
            Some((kind.entry.count)(&node.spec).parameters)
        };
        let (Some(own), Some(others)) = (count(name), count(of)) else { continue };
        let path = format!("graph.{name}.in.{WEIGHTS}");
        let mut add = |message: String, hint: &str| {
            report.add(context.problem(Code::Weights, &path, message).hint(hint));
        };
        if others == 0 {
            add(format!("`{of}` has no parameters"), "follow a node that has some");
        } else if own != others {
            let message = format!("`{name}` has {own} parameters, and `{of}` has {others}");
            add(message, "give both the same options");
        } else if nodes[name].trains() {
            let message = format!("`{name}` trains and follows `{of}`");
            add(message, "take it out of `train`, or disconnect its `weights`");
        }
    }
}
