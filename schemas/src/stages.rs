//! Stages, observers and hosts: names that must exist, numbers that must make sense.

use std::collections::BTreeMap;

use crate::context::{Context, is_written};
use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::nearest;
use crate::experiment::{Experiment, Frozen, StageConfig};
use crate::graph::{End, Surroundings};
use crate::port::Grad;
use crate::reading::{self, quoted};
use crate::resolve::{self, Resolved, join};
use crate::stage::{LossWeight, Portion};
use crate::yaml::{Located, Tree};
use crate::{flow, order, stage_checks, words};

/// Steps, microbatches, and whether there is a loss.
fn check_counts(context: &Context<'_>, stage: &str, report: &mut Report) {
    if context.config.steps == 0 {
        let message = "`steps` is 0, but a stage has at least 1".to_owned();
        let problem = context.problem(Code::Value, &format!("{stage}.steps"), message);
        report.add(problem.hint("write a number from 1, or remove the stage"));
    }
    if context.config.accumulate == 0 {
        let message = "`accumulate` is 0, but a step has at least 1 microbatch".to_owned();
        let problem = context.problem(Code::Value, &format!("{stage}.accumulate"), message);
        report.add(problem.hint("write a number from 1, or leave it out"));
    }
    let entries = context.tree.find(&format!("{stage}.losses"));
    let none = entries.is_none_or(|e| match &e.tree {
        Tree::Map(entries) => entries.is_empty(),
        other => matches!(other, Tree::Null),
    });
    if none && !misspelt(context, "losses") {
        let message = format!("stage `{}` has no loss", context.config.name);
        report.add(
            context
                .problem(Code::Value, &format!("{stage}.losses"), message)
                .hint("write, for example, `losses: { align.loss: 1 }`"),
        );
    }
}

/// Loss ports of a stage and their weights.
pub(crate) fn losses(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) -> BTreeMap<End, LossWeight> {
    let stage = context.path();
    check_counts(context, &stage, report);
    stage_checks::check(context, &stage, report);
    let entries = context.tree.find(&format!("{stage}.losses"));
    let place = context.tree.place_of(&format!("{stage}.losses"));
    let mut losses = BTreeMap::new();
    for (name, weight) in &context.config.losses {
        let place = entries.and_then(|e| e.get(name)).map_or(&place, |value| &value.place);
        let problem = |code, message: String| {
            Diagnostic::new(code, place, format!("{stage}.losses.{name}"), message)
        };
        let weight = weight.full();
        stage_checks::check_weight(context, (&stage, name), &weight, report);
        let Some((node, port)) = name.split_once('.') else {
            let message = format!("`{name}` is not `node.port`");
            report.add(problem(Code::Value, message).hint(format!("write `{name}.loss: 1`")));
            continue;
        };
        if !context.is_written(node) {
            let names = context.experiment.graph.keys().map(String::as_str);
            let hint = nearest(node, names).map(|near| format!("did you mean `{near}.{port}`?"));
            let message = format!("no node is named `{node}`");
            let none = || "give the weight to a node under `graph`".to_owned();
            report.add(problem(Code::Unknown, message).hint(hint.unwrap_or_else(none)));
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
        losses.insert(End::new(node, port), weight);
    }
    losses
}

/// Nodes that train in a stage, and what of them does.
pub(crate) fn trained(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) -> BTreeMap<String, Portion> {
    let stage = context.path();
    let mut trained = BTreeMap::new();
    for (index, entry) in context.config.train.iter().enumerate() {
        for (name, portion) in entry.nodes() {
            let path = format!("{stage}.train.{index}");
            if !stage_checks::is_node(context, (&path, "train"), name, report) {
                continue;
            }
            let Some(config) = context.experiment.graph.get(name) else { continue };
            let mut refuse = |message: String, hint: String| {
                report.add(context.problem(Code::Gradient, &path, message).hint(hint));
            };
            if config.frozen == Frozen::All(true) {
                let hint =
                    format!("leave it out of `train`, or set `{name}.frozen: false` under `with`");
                refuse(format!("`{name}` is frozen and cannot train"), hint);
            } else if nodes.get(name).is_some_and(|node| node.entry.source) {
                let message = format!("`{name}` is a source and has nothing to train");
                refuse(message, "leave it out of `train`".to_owned());
            } else if let Some(owner) = &config.same {
                let message = format!("`{name}` has the weights of `{owner}`");
                refuse(message, format!("write `train: [{owner}]`"));
            } else if trained.insert(name.to_owned(), portion).is_some() {
                refuse(format!("`train` names `{name}` twice"), "name it once".to_owned());
            }
        }
    }
    check_optimizer(context, &stage, report);
    trained
}

/// Whether a key of the stage is written almost right, which was reported.
fn misspelt(context: &Context<'_>, key: &str) -> bool {
    let stage = context.tree.find(&context.path());
    stage.is_some_and(|stage| reading::misspelt(stage, key, &reading::STAGE_KEYS))
}

fn check_optimizer(context: &Context<'_>, stage: &str, report: &mut Report) {
    let written = context.tree.find(&format!("{stage}.optimizer"));
    let Some(optimizer) = &context.config.optimizer else {
        let absent = written.is_none_or(|o| matches!(o.tree, Tree::Null));
        if absent && !context.config.train.is_empty() && !misspelt(context, "optimizer") {
            let message = format!("stage `{}` trains but has no optimizer", context.config.name);
            report.add(
                context
                    .problem(Code::Value, stage, message)
                    .hint("write `optimizer: { kind: adamw, lr: 1.0e-3 }`"),
            );
        }
        return;
    };
    let mut refuse = |key: &str, value: f64, range: &str, example: &str| {
        let path = format!("{stage}.optimizer.{key}");
        let message = format!("`{key}` is {value}, but must be {range}");
        let hint = format!("write, for example, `{key}: {example}`");
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    if !(optimizer.lr > 0.0 && optimizer.lr <= 1.0) {
        refuse("lr", optimizer.lr, "above 0 and at most 1", "1.0e-3");
    }
    for beta in optimizer.betas.into_iter().filter(|beta| !(0.0..1.0).contains(beta)) {
        refuse("betas", beta, "from 0 to below 1", "[0.9, 0.98]");
    }
    let none = |value: f64| !(value >= 0.0 && value.is_finite());
    for (key, value) in [
        ("weight_decay", optimizer.weight_decay),
        ("warmup_lr", optimizer.warmup_lr),
        ("min_lr", optimizer.min_lr),
        ("eps", optimizer.eps),
    ] {
        if none(value) {
            refuse(key, value, "0 or more", "0.0");
        }
    }
    if let Some(clip) = optimizer.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
        refuse("clip", clip, "above 0", "3.0");
    }
    if let Some(decay) = optimizer.layer_decay.filter(|decay| !(*decay > 0.0 && *decay <= 1.0)) {
        refuse("layer_decay", decay, "above 0 and at most 1", "0.75");
    }
}

/// Observers must exist and take their options.
pub(crate) fn check_observers(
    tree: &Located,
    experiment: &Experiment,
    around: &Surroundings,
    report: &mut Report,
) {
    for (index, observer) in experiment.observers.iter().enumerate() {
        let path = format!("observers.{index}");
        if around.observers.contains(&observer.kind()) {
            if let Err(problem) = (around.observe)(observer.kind(), &observer.options()) {
                let full = join(&path, &problem.option);
                let (message, hint) = words::plain(&problem.message, words::name(&full));
                let place = tree.place_of(&full);
                let hint = if problem.hint.is_empty() { hint } else { problem.hint };
                report.add(Diagnostic::new(Code::Value, &place, full, message).hint(hint));
            }
            continue;
        }
        let hint = match nearest(observer.kind(), around.observers.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", quoted(&around.observers)),
        };
        let message = format!("no observer is named `{}`", observer.kind());
        let place = tree.place_of(&path);
        report.add(Diagnostic::new(Code::Unknown, &place, path, message).hint(hint));
    }
}

/// The nodes and their edges, when no stage says how they are used.
pub(crate) fn without_curriculum(
    tree: &Located,
    experiment: &Experiment,
    around: &Surroundings,
    report: &mut Report,
) {
    let stage = StageConfig::default();
    let context = Context { tree, experiment, index: 0, config: &stage, around };
    let nodes = resolve::nodes(&context, report);
    let (order, _) = order::order(&context, &nodes, report);
    flow::shapes(&context, &nodes, &order, report);
}

/// Placements must name nodes and hosts that exist.
pub(crate) fn check_hosts(tree: &Located, experiment: &Experiment, report: &mut Report) {
    for (node, host) in &experiment.place {
        let path = format!("place.{node}");
        let place = tree.place_of(&path);
        if !is_written(tree, node) {
            let hint = nearest(node, experiment.graph.keys().map(String::as_str))
                .map(|near| format!("did you mean `{near}`?"));
            let message = format!("no node is named `{node}`");
            let problem = Diagnostic::new(Code::Placement, &place, path.clone(), message);
            let none = || "place a node under `graph`, or remove the line".to_owned();
            report.add(problem.hint(hint.unwrap_or_else(none)));
        }
        if !experiment.hosts.contains_key(host) {
            let known: Vec<&str> = experiment.hosts.keys().map(String::as_str).collect();
            let hint = match (nearest(host, known.iter().copied()), known.is_empty()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, true) => format!("write `hosts: {{ {host}: {{ transport: ipc }} }}`"),
                (None, false) => format!("known are {}", quoted(&known)),
            };
            let message = format!("no host is named `{host}`");
            report.add(Diagnostic::new(Code::Placement, &place, path, message).hint(hint));
        }
    }
}

/// The device of the run must be in this build.
pub(crate) fn check_run(
    tree: &Located,
    experiment: &Experiment,
    around: &Surroundings,
    report: &mut Report,
) {
    let path = "run.device";
    if let Some((message, hint)) = resolve::check_device(around, experiment.run.device.as_deref()) {
        let problem = Diagnostic::new(Code::Value, &tree.place_of(path), path, message);
        report.add(problem.hint(hint));
    }
}
