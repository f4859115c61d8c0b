//! Stages, observers and hosts: names that must exist, numbers that must make sense.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::{find, nearest};
use crate::experiment::{Experiment, Frozen, quoted};
use crate::graph::{Context, End, StageGraph, Surroundings};
use crate::port::Grad;
use crate::resolve::Resolved;
use crate::yaml::Located;

/// Loss ports of a stage and their weights.
pub(crate) fn losses(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) -> BTreeMap<End, f64> {
    let stage = context.path();
    if context.config.steps == 0 {
        let message = format!("stage `{}` has no steps", context.config.name);
        report.add(context.problem(Code::Value, &format!("{stage}.steps"), message));
    }
    if context.config.accumulate == 0 {
        let message = "`accumulate` is 0; a step has at least 1 microbatch".to_owned();
        report.add(context.problem(Code::Value, &format!("{stage}.accumulate"), message));
    }
    if context.config.losses.is_empty() {
        let message = format!("stage `{}` has no loss", context.config.name);
        report.add(
            context
                .problem(Code::Value, &format!("{stage}.losses"), message)
                .hint("write, for example, `losses: { align.loss: 1 }`"),
        );
    }
    let place = context.tree.place_of(&format!("{stage}.losses"));
    let entries = context.tree.find(&format!("{stage}.losses"));
    let mut losses = BTreeMap::new();
    for (name, weight) in &context.config.losses {
        let place = entries.and_then(|e| e.get(name)).map_or(&place, |value| &value.place);
        let problem = |code, message: String| {
            Diagnostic::new(code, place, format!("{stage}.losses.{name}"), message)
        };
        if !weight.is_finite() {
            report.add(problem(Code::Value, format!("the weight of `{name}` is {weight}")));
        }
        let Some((node, port)) = name.split_once('.') else {
            let message = format!("`{name}` is not `node.port`");
            report.add(problem(Code::Value, message).hint(format!("write `{name}.loss`")));
            continue;
        };
        if !context.experiment.graph.contains_key(node) {
            let names = context.experiment.graph.keys().map(String::as_str);
            let hint = nearest(node, names).map(|near| format!("did you mean `{near}`?"));
            let message = format!("no node is named `{node}`");
            report.add(problem(Code::Unknown, message).hint(hint.unwrap_or_default()));
            continue;
        }
        let Some(resolved) = nodes.get(node) else { continue };
        let found = resolved.ports.find_output(port).filter(|p| p.grad == Grad::Loss);
        if found.is_none() {
            let all: Vec<&str> = resolved.ports.losses().collect();
            let message = format!("`{name}` is not a loss");
            let hint = match all.as_slice() {
                [] => format!("`{node}` has no loss; give the weight to a node under `losses/`"),
                some => format!("`{node}` has {}", quoted(some)),
            };
            report.add(problem(Code::Value, message).hint(hint));
            continue;
        }
        losses.insert(End::new(node, port), *weight);
    }
    losses
}

/// Nodes that train in a stage.
pub(crate) fn trained(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) -> BTreeSet<String> {
    let stage = context.path();
    let mut trained = BTreeSet::new();
    for (list, names) in [("train", &context.config.train), ("fresh", &context.config.fresh)] {
        for (index, name) in names.iter().enumerate() {
            let path = format!("{stage}.{list}.{index}");
            let Some(config) = context.experiment.graph.get(name) else {
                let known = context.experiment.graph.keys().map(String::as_str);
                let hint = nearest(name, known).map(|near| format!("did you mean `{near}`?"));
                let message = format!("no node is named `{name}`");
                let problem = context.problem(Code::Unknown, &path, message);
                report.add(problem.hint(hint.unwrap_or_default()));
                continue;
            };
            if list == "fresh" {
                continue;
            }
            if config.frozen == Frozen::All(true) {
                let message = format!("`{name}` is frozen and cannot train");
                let hint = format!("leave it out of `train`, or set `{name}.frozen: false` under `with`");
                report.add(context.problem(Code::Gradient, &path, message).hint(hint));
                continue;
            }
            if nodes.get(name).is_some_and(|node| node.entry.source) {
                let message = format!("`{name}` is a source and has nothing to train");
                report.add(context.problem(Code::Gradient, &path, message));
                continue;
            }
            trained.insert(name.clone());
        }
    }
    check_optimizer(context, &stage, report);
    trained
}

fn check_optimizer(context: &Context<'_>, stage: &str, report: &mut Report) {
    let Some(optimizer) = &context.config.optimizer else {
        if !context.config.train.is_empty() {
            let message = format!("stage `{}` trains but has no optimizer", context.config.name);
            report.add(
                context
                    .problem(Code::Value, stage, message)
                    .hint("write `optimizer: { kind: adamw, lr: 1.0e-3 }`"),
            );
        }
        return;
    };
    let mut refuse = |key: &str, value: String, range: &str| {
        let path = format!("{stage}.optimizer.{key}");
        let message = format!("`{key}` is {value}; it must be {range}");
        report.add(context.problem(Code::Value, &path, message));
    };
    if !(optimizer.lr > 0.0 && optimizer.lr <= 1.0) {
        refuse("lr", optimizer.lr.to_string(), "above 0 and at most 1");
    }
    for beta in optimizer.betas {
        if !(0.0..1.0).contains(&beta) {
            refuse("betas", beta.to_string(), "from 0 to below 1");
        }
    }
    if optimizer.weight_decay.is_nan() || optimizer.weight_decay < 0.0 {
        refuse("weight_decay", optimizer.weight_decay.to_string(), "0 or more");
    }
    if optimizer.clip.is_some_and(|clip| clip.is_nan() || clip <= 0.0) {
        refuse("clip", format!("{:?}", optimizer.clip), "above 0");
    }
    if optimizer.layer_decay.is_some_and(|decay| !(decay > 0.0 && decay <= 1.0)) {
        refuse("layer_decay", format!("{:?}", optimizer.layer_decay), "above 0 and at most 1");
    }
}

/// Observers must exist.
pub(crate) fn check_observers(
    tree: &Located,
    experiment: &Experiment,
    around: &Surroundings,
    report: &mut Report,
) {
    for (index, observer) in experiment.observers.iter().enumerate() {
        if around.observers.contains(&observer.kind()) {
            continue;
        }
        let path = format!("observers.{index}");
        let hint = match nearest(observer.kind(), around.observers.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", quoted(&around.observers)),
        };
        let message = format!("no observer is named `{}`", observer.kind());
        let place = tree.place_of(&path);
        report.add(Diagnostic::new(Code::Unknown, &place, path, message).hint(hint));
    }
}

/// Placements must name nodes and hosts that exist.
pub(crate) fn check_hosts(tree: &Located, experiment: &Experiment, report: &mut Report) {
    for (node, host) in &experiment.place {
        let path = format!("place.{node}");
        let place = tree.place_of(&path);
        if !experiment.graph.contains_key(node) {
            let hint = nearest(node, experiment.graph.keys().map(String::as_str))
                .map(|near| format!("did you mean `{near}`?"));
            let message = format!("no node is named `{node}`");
            let problem = Diagnostic::new(Code::Placement, &place, path.clone(), message);
            report.add(problem.hint(hint.unwrap_or_default()));
        }
        if !experiment.hosts.contains_key(host) {
            let known: Vec<&str> = experiment.hosts.keys().map(String::as_str).collect();
            let hint = match (nearest(host, known.iter().copied()), known.is_empty()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, true) => "name it under `hosts`".to_owned(),
                (None, false) => format!("known are {}", quoted(&known)),
            };
            let message = format!("no host is named `{host}`");
            report.add(Diagnostic::new(Code::Placement, &place, path, message).hint(hint));
        }
    }
}

/// A node keeps its parameters from stage to stage, so their number must stay, or the stage says
/// that the node starts fresh.
pub(crate) fn check_hand_off(
    tree: &Located,
    stages: &[StageGraph],
    around: &Surroundings,
    report: &mut Report,
) {
    let mut before: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for (index, stage) in stages.iter().enumerate() {
        for (name, node) in &stage.nodes {
            let Some(entry) = find(around.registry, &node.spec.kind) else { continue };
            let count = (entry.count)(&node.spec).parameters;
            let old = before.insert(name, (count, &stage.name));
            let Some((old, old_stage)) = old.filter(|(old, _)| *old != count) else { continue };
            if node.fresh {
                continue;
            }
            let path = format!("curriculum.{index}");
            let message = format!(
                "`{name}` has {count} parameters in stage `{}` and {old} in stage `{old_stage}`",
                stage.name
            );
            let hint = format!("write `fresh: [{name}]` to start it anew, or keep its options");
            let problem = Diagnostic::new(Code::HandOff, &tree.place_of(&path), path, message);
            report.add(problem.hint(hint));
        }
    }
}
