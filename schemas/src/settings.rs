//! Checks of what a node says beside its kind's options: weights, frozen parts, adapters.

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::entry::Parameter;
use crate::node::NodeSpec;
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
    if spec.frozen.is_empty() && spec.lora.is_none() {
        return;
    }
    let parameters = (node.entry.parameters)(spec);
    for prefix in &spec.frozen {
        let under = |path: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if !parameters.iter().any(|parameter| under(&parameter.path)) {
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
    check_lora(context, name, spec, &parameters, report);
}

fn check_lora(
    context: &Context<'_>,
    name: &str,
    spec: &NodeSpec,
    parameters: &[Parameter],
    report: &mut Report,
) {
    let Some(lora) = &spec.lora else { return };
    let mut refuse = |option: &str, message: String, hint: String| {
        let path = format!("graph.{name}.lora.{option}");
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    if !(1..=4096).contains(&lora.rank) {
        let message = format!("`rank` is {}, not from 1 to 4096", lora.rank);
        refuse("rank", message, "16 is usual".to_owned());
    }
    if !lora.alpha.is_finite() {
        refuse("alpha", format!("`alpha` is {}", lora.alpha), "32 is usual".to_owned());
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        let message = format!("`dropout` is {}, but must be from 0 to below 1", lora.dropout);
        refuse("dropout", message, "write, for example, `dropout: 0.1`".to_owned());
    }
    let layer =
        |p: &Parameter| p.path.strip_suffix(".weight").filter(|_| p.linear).map(str::to_owned);
    let layers: Vec<String> = parameters.iter().filter_map(layer).collect();
    if lora.on.is_empty() {
        let message = "an adapter needs layers to be beside".to_owned();
        refuse("on", message, "write, for example, `on: [q, v]`".to_owned());
    }
    for pattern in lora.useless(&layers) {
        let message = format!("`{pattern}` matches no linear layer of `{name}`");
        let mut last: Vec<&str> = layers.iter().filter_map(|l| l.rsplit('.').next()).collect();
        last.sort_unstable();
        last.dedup();
        let hint = match last.as_slice() {
            [] => "it has none; leave `lora` out".to_owned(),
            names => format!("linear layers are named {}", names.join(", ")),
        };
        refuse("on", message, hint);
    }
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
