//! What a stage says of media, gates, moments and names: each must point at something.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::entry::nearest;
use crate::reading::quoted;
use crate::stage::{GateConfig, LossWeight, Moments};
use crate::timetable::MAX_CYCLE;

/// Checks all of it.
pub(crate) fn check(context: &Context<'_>, stage: &str, report: &mut Report) {
    check_mixture(context, stage, report);
    for (index, gate) in context.config.until.iter().enumerate() {
        check_gate(context, &format!("{stage}.until.{index}"), gate, report);
    }
    if let Moments::Keep(names) = &context.config.moments {
        for (index, name) in names.iter().enumerate() {
            is_node(context, (&format!("{stage}.moments.{index}"), "moments"), name, report);
        }
    }
    for (list, names) in [("fresh", &context.config.fresh), ("drop", &context.config.drop)] {
        for (index, name) in names.iter().enumerate() {
            let node = name.split('.').next().unwrap_or_default();
            is_node(context, (&format!("{stage}.{list}.{index}"), list), node, report);
        }
    }
    for (to, from) in &context.config.takes {
        for node in [to, from] {
            is_node(context, (&format!("{stage}.takes.{to}"), "takes"), node, report);
        }
    }
    for key in context.config.rules.keys() {
        let node = key.split('.').next().unwrap_or_default();
        is_node(context, (&format!("{stage}.rules.{key}"), "rules"), node, report);
    }
}

/// Whether a name that a list of the stage holds is that of a node; reported when not.
pub(crate) fn is_node(
    context: &Context<'_>,
    (path, list): (&str, &str),
    name: &str,
    report: &mut Report,
) -> bool {
    if context.is_written(name) {
        return true;
    }
    let known = context.experiment.graph.keys().map(String::as_str);
    let hint = nearest(name, known).map(|near| format!("did you mean `{near}`?"));
    let message = format!("no node is named `{name}`");
    let none = || format!("take it out of `{list}`, or add it under `graph`");
    let problem = context.problem(Code::Unknown, path, message);
    report.add(problem.hint(hint.unwrap_or_else(none)));
    false
}

fn check_mixture(context: &Context<'_>, stage: &str, report: &mut Report) {
    let mixture = &context.config.mixture;
    let mut refuse = |path: String, message: String, hint: &str| {
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    for (medium, count) in mixture.iter().filter(|(_, count)| **count == 0) {
        let message = format!("`{medium}` comes {count} times in a round");
        refuse(format!("{stage}.mixture.{medium}"), message, "write 1 or more, or leave it out");
    }
    let round: u64 = mixture.values().map(|count| u64::from(*count)).sum();
    if round > u64::from(MAX_CYCLE) {
        let message = format!("a round has {round} steps, more than {MAX_CYCLE}");
        refuse(format!("{stage}.mixture"), message, "divide the numbers by a common factor");
    }
    let losses = context.config.losses.values().filter_map(|loss| loss.full().on);
    let counted: BTreeSet<String> = losses.flatten().collect();
    let every = context.config.losses.values().any(|loss| loss.full().on.is_none());
    for medium in mixture.keys().filter(|medium| !every && !counted.contains(*medium)) {
        let message = format!("no loss counts for `{medium}`, so its steps would do nothing");
        refuse(
            format!("{stage}.mixture.{medium}"),
            message,
            "name it under `on` of a loss, or leave it out",
        );
    }
}

/// Checks how much a loss counts, and when.
pub(crate) fn check_weight(
    context: &Context<'_>,
    (stage, name): (&str, &str),
    weight: &LossWeight,
    report: &mut Report,
) {
    let path = format!("{stage}.losses.{name}");
    if let Some((key, problem)) = weight.problem() {
        let message = format!("{problem}, in the weight of `{name}`");
        let at = format!("{path}.{key}");
        let hint = match context.tree.find(&at) {
            Some(_) => "write, for example, `{ weight: 1, from: 0, to: 0.5 }`".to_owned(),
            None => format!("write `{name}: 1`"),
        };
        report.add(context.problem(Code::Value, &at, message).hint(hint));
    }
    let media: Vec<&str> = context.config.mixture.keys().map(String::as_str).collect();
    for medium in weight.on.iter().flatten().filter(|medium| !media.contains(&medium.as_str())) {
        let message = format!("the stage draws no `{medium}`");
        let hint = match (nearest(medium, media.iter().copied()), media.is_empty()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, true) => format!("write `mixture: {{ {medium}: 1 }}` in the stage"),
            (None, false) => format!("it draws {}", quoted(&media)),
        };
        report.add(context.problem(Code::Unknown, &format!("{path}.on"), message).hint(hint));
    }
}

fn check_gate(context: &Context<'_>, path: &str, gate: &GateConfig, report: &mut Report) {
    let node = gate.metric.split('.').next().unwrap_or_default();
    let sum = gate.metric == "loss";
    if !sum && !gate.metric.contains('.') {
        let message = format!("`{}` is not `node.metric`", gate.metric);
        let problem = context.problem(Code::Value, &format!("{path}.metric"), message);
        report.add(problem.hint("write, for example, `metric: judge.accuracy`, or `metric: loss`"));
    } else if !sum {
        is_node(context, (&format!("{path}.metric"), "until"), node, report);
    }
    let ways = [gate.above.is_some(), gate.below.is_some(), gate.plateau.is_some()];
    if ways.iter().filter(|way| **way).count() != 1 {
        let message = "a gate has one of `above`, `below` and `plateau`".to_owned();
        let problem = context.problem(Code::Value, path, message);
        report.add(problem.hint("write, for example, `{ metric: judge.accuracy, above: 0.9 }`"));
    }
    if gate.over == 0 || gate.plateau == Some(0) {
        let key = if gate.over == 0 { "over" } else { "plateau" };
        let message = format!("`{key}` is 0 steps");
        report.add(
            context.problem(Code::Value, &format!("{path}.{key}"), message).hint("write 1 or more"),
        );
    }
}
