//! Checks of a node's low-rank adapters: new ones by their options, published ones by their folder.

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::entry::Parameter;
use crate::experiment::NodeConfig;
use crate::lora::{Lora, LoraConfig, MAX_RANK};
use crate::node::NodeSpec;
use crate::resolve::Resolved;

/// The adapters of a node, complete; what is wrong with them is reported.
pub(crate) fn read(
    context: &Context<'_>,
    name: &str,
    node: &Resolved,
    spec: &NodeSpec,
    report: &mut Report,
) -> Option<Lora> {
    let NodeConfig { lora: Some(config), .. } = context.experiment.graph.get(name)? else {
        return None;
    };
    let path = format!("graph.{name}.lora");
    let lora = match &config.from {
        Some(_) => published(context, (&path, config), node, spec, report)?,
        None => match config.options() {
            Ok(lora) => lora,
            Err(missing) => {
                for option in missing {
                    let message = format!("`lora` has no `{option}`");
                    let hint =
                        "write `rank`, `alpha` and `on`, or `from` with a folder of adapters";
                    report.add(context.problem(Code::Value, &path, message).hint(hint));
                }
                return None;
            }
        },
    };
    Some(bounded(context, &path, lora, report))
}

/// Reports numbers out of bounds and goes on with the nearest ones.
fn bounded(context: &Context<'_>, path: &str, mut lora: Lora, report: &mut Report) -> Lora {
    let mut refuse = |option: &str, message: String, hint: &str| {
        let path = format!("{path}.{option}");
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    if !(1..=MAX_RANK).contains(&lora.rank) {
        let message = format!("`rank` is {}, not from 1 to {MAX_RANK}", lora.rank);
        refuse("rank", message, "16 is usual");
        lora.rank = lora.rank.clamp(1, MAX_RANK);
    }
    if !lora.alpha.is_finite() {
        refuse("alpha", format!("`alpha` is {}", lora.alpha), "32 is usual");
    }
    if !(0.0..1.0).contains(&lora.dropout) {
        let message = format!("`dropout` is {}, but must be from 0 to below 1", lora.dropout);
        refuse("dropout", message, "write, for example, `dropout: 0.1`");
    }
    lora
}

/// What a folder of adapters says. Options beside it must say the same; dropout is that of the
/// training to come.
fn published(
    context: &Context<'_>,
    (path, config): (&str, &LoraConfig),
    node: &Resolved,
    spec: &NodeSpec,
    report: &mut Report,
) -> Option<Lora> {
    let folder = context.around.locate(config.from.as_ref()?);
    let lora = match (node.entry.adapters)(spec, &folder) {
        Ok(lora) => lora,
        Err(error) => {
            let hint = match folder.exists() {
                true => "name adapters of this network, or change its options to the adapters'",
                false => "name a folder that exists, from here or from the experiment's folder",
            };
            let path = format!("{path}.from");
            report.add(context.problem(Code::Weights, &path, error.to_string()).hint(hint));
            return None;
        }
    };
    let layers = layers(&(node.entry.parameters)(spec));
    let covered = |on: &[String]| -> Vec<String> {
        let lora = Lora { on: on.to_vec(), ..lora.clone() };
        layers.iter().filter(|layer| lora.covers(layer)).cloned().collect()
    };
    let other_layers = |on: &&Vec<String>| covered(on.as_slice()) != covered(&lora.on);
    let stabilised = config.rank_stabilised.filter(|said| *said != lora.rank_stabilised);
    let said = [
        ("rank", config.rank.filter(|said| *said != lora.rank).map(|_| lora.rank.to_string())),
        ("alpha", config.alpha.filter(|said| *said != lora.alpha).map(|_| lora.alpha.to_string())),
        ("on", config.on.as_ref().filter(other_layers).map(|_| lora.on.join(", "))),
        ("rank_stabilised", stabilised.map(|_| lora.rank_stabilised.to_string())),
    ];
    for (option, file) in said.into_iter().filter_map(|(option, file)| Some((option, file?))) {
        let message = format!("`{option}` differs from that of {}: {file}", folder.display());
        let hint = format!("leave `{option}` out; the folder says it");
        let path = format!("{path}.{option}");
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    }
    let dropout = config.dropout.unwrap_or(lora.dropout);
    Some(Lora { from: Some(folder), dropout, ..lora })
}

/// Paths of linear layers.
fn layers(parameters: &[Parameter]) -> Vec<String> {
    let layer =
        |p: &Parameter| p.path.strip_suffix(".weight").filter(|_| p.linear).map(str::to_owned);
    parameters.iter().filter_map(layer).collect()
}

/// Checks that the patterns cover layers.
pub(crate) fn check(
    context: &Context<'_>,
    name: &str,
    spec: &NodeSpec,
    parameters: &[Parameter],
    report: &mut Report,
) {
    let Some(lora) = &spec.lora else { return };
    let mut refuse = |message: String, hint: String| {
        let path = format!("graph.{name}.lora.on");
        report.add(context.problem(Code::Value, &path, message).hint(hint));
    };
    if lora.on.is_empty() {
        let message = "an adapter needs layers to be beside".to_owned();
        refuse(message, "write, for example, `on: [q, v]`".to_owned());
    }
    let layers = layers(parameters);
    for pattern in lora.useless(&layers) {
        let message = format!("`{pattern}` matches no linear layer of `{name}`");
        let mut last: Vec<&str> = layers.iter().filter_map(|l| l.rsplit('.').next()).collect();
        last.sort_unstable();
        last.dedup();
        let hint = match last.as_slice() {
            [] => "it has none; leave `lora` out".to_owned(),
            names => format!("linear layers are named {}", names.join(", ")),
        };
        refuse(message, hint);
    }
}
