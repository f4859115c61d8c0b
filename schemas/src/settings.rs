//! Checks of what a node says beside its kind's options: weights, frozen parts, checkpointing.

use crate::adapters;
use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::node::{NodeSpec, covers};
use crate::resolve::Resolved;

/// Checks the settings of a node of a stage.
pub(crate) fn check(
    context: &Context<'_>,
    name: &str,
    node: &Resolved,
    spec: &NodeSpec,
    report: &mut Report,
) {
    check_weights(context, name, node, spec, report);
    check_checkpointing(context, name, node, spec, report);
    if spec.frozen.is_empty() && spec.only.is_none() && spec.lora.is_none() {
        return;
    }
    let parameters = (node.entry.parameters)(spec);
    for prefix in spec.frozen.iter().chain(spec.only.iter().flatten()) {
        if !parameters.iter().any(|parameter| covers(prefix, &parameter.path)) {
            let message = format!("no parameter of `{name}` is under `{prefix}`");
            let mut first: Vec<&str> =
                parameters.iter().filter_map(|p| p.path.split('.').next()).collect();
            first.dedup();
            let path = format!("graph.{name}.frozen");
            let hint = match first.as_slice() {
                [] => "it has none; leave `frozen` out".to_owned(),
                names => format!("names to begin with are {}", names.join(", ")),
            };
            report.add(context.problem(Code::Value, &path, message).hint(hint));
        }
    }
    adapters::check(context, name, spec, &parameters, report);
}

fn check_checkpointing(
    context: &Context<'_>,
    name: &str,
    node: &Resolved,
    spec: &NodeSpec,
    report: &mut Report,
) {
    if spec.checkpointing && (node.entry.count)(spec).blocks == 0 {
        let path = format!("graph.{name}.checkpointing");
        let message = format!("`{}` has no blocks to compute again", spec.kind);
        let problem = context.problem(Code::Value, &path, message);
        report.add(problem.hint("leave `checkpointing` out"));
    }
}

fn check_weights(
    context: &Context<'_>,
    name: &str,
    node: &Resolved,
    spec: &NodeSpec,
    report: &mut Report,
) {
    if spec.weights.is_none() {
        return;
    }
    if let Err(error) = (node.entry.check_weights)(spec) {
        let path = format!("graph.{name}.weights");
        let hint = match spec.weights.as_ref().is_some_and(|file| file.exists()) {
            true => {
                "name a file of this kind and these options, or change the options to the file's"
            }
            false => "name a file that exists, from here or from the experiment's folder",
        };
        report.add(context.problem(Code::Weights, &path, error.to_string()).hint(hint));
    }
}
