//! Nodes one by one: kind, options, connected ports.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::dims::Dims;
use crate::entry::{Entry, find, nearest};
use crate::experiment::{NODE_KEYS, NodeConfig};
use crate::graph::{Surroundings, WEIGHTS, connected};
use crate::port::Ports;
use crate::reading::quoted;
use crate::yaml::{Located, Tree};
use crate::{flow, follow, words};

/// A node whose kind and options are known.
pub(crate) struct Resolved {
    /// Its kind.
    pub(crate) entry: &'static Entry,
    /// Options with defaults filled in.
    pub(crate) options: Value,
    /// Ports with these options.
    pub(crate) ports: Ports,
}

/// All nodes that can be resolved.
pub(crate) fn nodes(context: &Context<'_>, report: &mut Report) -> BTreeMap<String, Resolved> {
    let mut resolved = BTreeMap::new();
    let active = flow::active(context);
    for (name, config) in &context.experiment.graph {
        if let Some(node) = resolve(context, name, config, report) {
            resolved.insert(name.clone(), node);
        }
    }
    for (name, config) in &context.experiment.graph {
        check_sources(context, name, config, &resolved, report);
        follow::check_ema(context, (name, config), &active, report);
    }
    resolved
}

fn resolve(
    context: &Context<'_>,
    name: &str,
    config: &NodeConfig,
    report: &mut Report,
) -> Option<Resolved> {
    let path = format!("graph.{name}");
    let registry = context.around.registry;
    let Some(entry) = find(registry, &config.kind) else {
        let hint = match nearest(&config.kind, registry.iter().map(|(kind, _, _)| *kind)) {
            Some(near) => format!("did you mean `{near}`? `playhouse list` shows all"),
            None => "`playhouse list` shows all kinds".to_owned(),
        };
        let message = format!("no kind is named `{}`", config.kind);
        report.add(context.problem(Code::Unknown, &format!("{path}.kind"), message).hint(hint));
        return None;
    };
    if let Some(problem) = check_device(context.around, config.device.as_deref()) {
        let (message, hint) = problem;
        report.add(context.problem(Code::Value, &format!("{path}.device"), message).hint(hint));
    }
    let known = known_options(entry);
    let mut options = serde_json::Map::new();
    // An option that is nothing is left out, so that an overlay can take away what another kind had.
    for (key, value) in config.options.iter().filter(|(_, value)| !value.is_null()) {
        if known.contains(key) {
            options.insert(key.clone(), value.clone());
            continue;
        }
        let words = known.iter().map(String::as_str).chain(NODE_KEYS);
        let hint = match nearest(key, words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`playhouse explain {}` lists the options", config.kind),
        };
        let message = format!("`{}` has no option `{key}`", config.kind);
        report.add(context.problem(Code::Unknown, &format!("{path}.{key}"), message).hint(hint));
    }
    let options = merged(published(context, config, entry), options);
    let options = read_options(context, (&path, &config.kind), entry, options, report)?;
    let wired: Vec<String> =
        connected(config).into_iter().map(|(port, _)| port).filter(|p| p != WEIGHTS).collect();
    let ports = (entry.ports)(&options, &wired);
    check_inputs(context, name, config, &ports, report);
    Some(Resolved { entry, options, ports })
}

/// Options that the `config.json` in a folder of published weights stands for.
fn published(
    context: &Context<'_>,
    config: &NodeConfig,
    entry: &Entry,
) -> serde_json::Map<String, Value> {
    let read = || -> Option<serde_json::Map<String, Value>> {
        let folder = context.around.locate(config.weights.as_ref()?);
        let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
        let found = (entry.published)(&serde_json::from_str(&text).ok()?);
        found.into_iter().next()?.options.as_object().cloned()
    };
    read().unwrap_or_default()
}

/// Options over others; what is written wins, name by name.
fn merged(
    mut under: serde_json::Map<String, Value>,
    over: serde_json::Map<String, Value>,
) -> serde_json::Map<String, Value> {
    for (name, value) in over {
        let value = match (under.remove(&name), value) {
            (Some(Value::Object(under)), Value::Object(over)) => Value::Object(merged(under, over)),
            (_, value) => value,
        };
        under.insert(name, value);
    }
    under
}

/// Reads options and reports all that do not fit: one that does not is left out, and the rest is
/// read again.
fn read_options(
    context: &Context<'_>,
    (path, kind): (&str, &str),
    entry: &Entry,
    mut options: serde_json::Map<String, Value>,
    report: &mut Report,
) -> Option<Value> {
    let mut left_out: Vec<String> = Vec::new();
    loop {
        let problem = match (entry.resolve)(&Value::Object(options.clone())) {
            Ok(read) if left_out.is_empty() => return Some(read),
            Ok(rest) => {
                check_rest(context, path, (entry, &rest), &left_out, report);
                return None;
            }
            Err(problem) => problem,
        };
        let full = join(path, &problem.option);
        let (message, hint) = words::plain(&problem.message, words::name(&full));
        if !left_out.iter().any(|key| message == format!("`{key}` is missing")) {
            let explain = || format!("`playhouse explain {kind}` lists the options");
            let hint = if hint.is_empty() { explain() } else { hint };
            report.add(context.problem(Code::Value, &full, message).hint(hint));
        }
        let key = problem.option.split(['.', '[']).next().unwrap_or_default().to_owned();
        options.shift_remove(&key)?;
        left_out.push(key);
    }
}

/// Checks the options beside those that could not be read.
fn check_rest(
    context: &Context<'_>,
    path: &str,
    (entry, rest): (&Entry, &Value),
    left_out: &[String],
    report: &mut Report,
) {
    for problem in (entry.check)(rest, &Dims::new()) {
        let key = problem.option.split(['.', '[']).next().unwrap_or_default();
        // What a default stands in for says nothing.
        if !key.is_empty() && !left_out.iter().any(|left| left == key) {
            let full = join(path, &problem.option);
            report.add(context.problem(Code::Value, &full, problem.message).hint(problem.hint));
        }
    }
}

/// Names of the options of a kind, from its schema.
fn known_options(entry: &Entry) -> Vec<String> {
    let schema = (entry.schema)();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// What is wrong with a device, and what to do.
pub(crate) fn check_device(
    around: &Surroundings,
    device: Option<&str>,
) -> Option<(String, String)> {
    let (device, devices) = (device?, &around.devices);
    let fits = |known: &str| {
        let numbered = known.strip_suffix('N').and_then(|stem| device.strip_prefix(stem));
        known == device || numbered.is_some_and(|n| n.parse::<u32>().is_ok())
    };
    if devices.iter().any(|known| fits(known)) {
        return None;
    }
    let hint = format!("it has {}; other devices need a build with their feature", quoted(devices));
    Some((format!("device `{device}` is not in this build"), hint))
}

fn check_inputs(
    context: &Context<'_>,
    name: &str,
    config: &NodeConfig,
    ports: &Ports,
    report: &mut Report,
) {
    let names: Vec<&str> = ports.inputs.iter().map(|p| p.name.as_str()).collect();
    for (port, from) in config.inputs.iter().filter(|(port, _)| *port != WEIGHTS) {
        // A stage whose option takes a port away also says null for it.
        let open = from.is_none() && nearest(port, names.iter().copied()).is_none();
        if open || names.contains(&port.as_str()) {
            continue;
        }
        let message = format!("`{}` has no input `{port}`", config.kind);
        let hint = match nearest(port, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "it has no inputs".to_owned(),
            None => format!("it takes {}", quoted(&names)),
        };
        let path = format!("graph.{name}.in.{port}");
        report.add(context.problem(Code::Unknown, &path, message).hint(hint));
    }
    let written = context.tree.find(&format!("graph.{name}.in"));
    if written.is_some_and(|inputs| !matches!(inputs.tree, Tree::Map(_) | Tree::Null)) {
        return; // reported as a value of another form
    }
    let written = written.map_or(&[][..], Located::entries);
    // A name that is nearly right, or a value that is not a port, was reported as such.
    let meant = |port: &str| {
        written.iter().any(|(key, from)| match key == port {
            true => !matches!(from.tree, Tree::Null),
            false => {
                !names.contains(&key.as_str()) && nearest(key, names.iter().copied()) == Some(port)
            }
        })
    };
    for port in ports.inputs.iter().filter(|port| !port.optional) {
        if !meant(&port.name) {
            let message = format!("input `{}` of `{name}` is not connected", port.name);
            let hint =
                format!("write `in: {{ {}: node.port }}`; it takes `{}`", port.name, port.dims);
            let path = format!("graph.{name}");
            report.add(context.problem(Code::Unconnected, &path, message).hint(hint));
        }
    }
}

fn check_sources(
    context: &Context<'_>,
    name: &str,
    config: &NodeConfig,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) {
    for (port, from) in connected(config) {
        let path = format!("graph.{name}.in.{port}");
        if !context.is_written(&from.node) {
            let names = context.experiment.graph.keys().map(String::as_str);
            let hint = match nearest(&from.node, names) {
                Some(near) => format!("did you mean `{near}.{}`?", from.port),
                None => "look up the names under `graph`".to_owned(),
            };
            let message = format!("no node is named `{}`", from.node);
            report.add(context.problem(Code::Unknown, &path, message).hint(hint));
            continue;
        }
        let Some(node) = nodes.get(&from.node) else { continue };
        if follow::check_edge(context, (name, config), (&port, &from), report)
            || node.ports.find_output(&from.port).is_some()
        {
            continue;
        }
        let outputs: Vec<&str> = node.ports.outputs.iter().map(|p| p.name.as_str()).collect();
        let hint = match nearest(&from.port, outputs.iter().copied()) {
            Some(near) => format!("did you mean `{}.{near}`?", from.node),
            None => format!("it gives {}", quoted(&outputs)),
        };
        let message = format!("`{}` has no output `{}`", from.node, from.port);
        report.add(context.problem(Code::Unknown, &path, message).hint(hint));
    }
}

/// A dotted path inside a node.
pub(crate) fn join(path: &str, option: &str) -> String {
    let option = option.replace('[', ".").replace(']', "");
    if option.is_empty() { path.to_owned() } else { format!("{path}.{option}") }
}
