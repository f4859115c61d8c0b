//! From a merged tree to the types of `experiment`. Everything that cannot be read is reported,
//! each at its own place; the rest comes back.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::diagnostic::{Code, Diagnostic, Report};
use crate::entry::nearest;
use crate::experiment::{Experiment, HostConfig, NodeConfig, StageConfig};
pub(crate) use crate::keys::STAGE_KEYS;
use crate::keys::{GATE_KEYS, HOST_KEYS, OPTIMIZER_KEYS, RUN_KEYS, TOP_KEYS};
use crate::names::check_name;
use crate::words;
use crate::yaml::{Located, Tree};

impl Experiment {
    /// Reads a merged tree. Everything that cannot be read is reported; the rest comes back.
    pub fn read(tree: &Located, report: &mut Report) -> Self {
        known_keys(tree, "", &TOP_KEYS, report);
        let observers = items(tree, "observers", "", "[progress, tensorboard]", report);
        let observers = observers.iter().enumerate();
        let read_host = |(name, host): &(String, Located), report: &mut Report| {
            let path = format!("hosts.{name}");
            check_name(name, &path, host, report);
            let null = matches!(host.tree, Tree::Null);
            let empty = null.then(HostConfig::default);
            Some((name.clone(), empty.or_else(|| fields(host, &path, &HOST_KEYS, report))?))
        };
        Self {
            question: section(tree, "question", report).unwrap_or_default(),
            seed: section(tree, "seed", report).unwrap_or_default(),
            graph: read_graph(tree, report),
            curriculum: read_curriculum(tree, report),
            observers: observers
                .filter_map(|(i, o)| typed(o, &format!("observers.{i}"), report))
                .collect(),
            hosts: entries(tree, "hosts", "", "{ near: { transport: ipc } }", report)
                .iter()
                .filter_map(|host| read_host(host, report))
                .collect(),
            place: entries(tree, "place", "", "{ node: host }", report)
                .iter()
                .filter_map(|(n, h)| Some((n.clone(), typed(h, &format!("place.{n}"), report)?)))
                .collect(),
            run: match tree.get("run") {
                Some(run) => fields(run, "run", &RUN_KEYS, report).unwrap_or_default(),
                None => Default::default(),
            },
        }
    }
}

fn read_graph(tree: &Located, report: &mut Report) -> BTreeMap<String, NodeConfig> {
    let mut graph = BTreeMap::new();
    let nodes = entries(tree, "graph", "", "{ name: { kind: … } }", report);
    if nodes.is_empty() {
        empty(tree, "graph", "a mapping of nodes", "name: { kind: … }", report);
    }
    for (name, node) in nodes {
        check_name(name, &format!("graph.{name}"), node, report);
        if let Some(config) = read_node(name, node, report) {
            graph.insert(name.clone(), config);
        }
    }
    graph
}

fn read_curriculum(tree: &Located, report: &mut Report) -> Vec<StageConfig> {
    let mut read: Vec<StageConfig> = Vec::new();
    let stages = items(tree, "curriculum", "", "- { name: learn, steps: 100, … }", report);
    if stages.is_empty() {
        empty(tree, "curriculum", "a list of stages", "- name: learn", report);
    }
    for (index, stage) in stages.iter().enumerate() {
        let path = format!("curriculum.{index}");
        let config = read_stage(stage, &path, report);
        if let Some(first) = read.iter().position(|other| other.name == config.name)
            && !config.name.is_empty()
        {
            let message = format!("two stages are named `{}`", config.name);
            let first = tree.place_of(&format!("curriculum.{first}.name"));
            let problem =
                Diagnostic::new(Code::Twice, &stage.place_of("name"), path + ".name", message);
            report.add(problem.hint(format!("the first one is at {first}; rename one")));
        }
        read.push(config);
    }
    read
}

fn read_node(name: &str, node: &Located, report: &mut Report) -> Option<NodeConfig> {
    let path = format!("graph.{name}");
    if !matches!(node.tree, Tree::Map(_)) {
        let message = format!("node `{name}` is {}, not a mapping", node.what());
        let hint = match node.text() {
            Some(text) => format!("write `{name}: {{ kind: {text}, … }}`"),
            None => format!("write `{name}: {{ kind: …, in: {{ … }} }}`"),
        };
        report.add(Diagnostic::new(Code::Value, &node.place, path, message).hint(hint));
        return None;
    }
    let kind = node.get("kind");
    let Some(kind) = kind.and_then(Located::text) else {
        let (place, message) = match kind {
            Some(kind) => {
                (&kind.place, format!("`kind` of `{name}` is {}, not a word", kind.what()))
            }
            None => (&node.place, format!("node `{name}` has no `kind`")),
        };
        report.add(
            Diagnostic::new(Code::Value, place, path, message)
                .hint("write, for example, `kind: models/head`; `playhouse list` shows all kinds"),
        );
        return None;
    };
    let mut config = NodeConfig { kind: kind.to_owned(), ..NodeConfig::default() };
    for (key, value) in node.entries() {
        let path = format!("{path}.{key}");
        let null = matches!(value.tree, Tree::Null);
        match key.as_str() {
            "kind" => {}
            "same" => config.same = typed(value, &path, report),
            "frozen" | "weights" | "device" | "precision" | "checkpointing" | "ema" | "lora"
                if null => {}
            "lora" => config.lora = typed(value, &path, report),
            "in" => config.inputs = read_inputs(node, &path, report),
            "frozen" => config.frozen = typed(value, &path, report).unwrap_or_default(),
            "weights" => config.weights = typed(value, &path, report),
            "device" => config.device = typed(value, &path, report),
            "precision" => config.precision = typed(value, &path, report).unwrap_or_default(),
            "checkpointing" => {
                config.checkpointing = typed(value, &path, report).unwrap_or_default();
            }
            "ema" => config.ema = typed(value, &path, report),
            _ => {
                config.options.insert(key.clone(), value.to_json());
            }
        }
    }
    Some(config)
}

fn read_inputs(
    node: &Located,
    path: &str,
    report: &mut Report,
) -> BTreeMap<String, Option<String>> {
    let mut inputs = BTreeMap::new();
    let parent = path.trim_end_matches(".in");
    for (port, from) in entries(node, "in", parent, "{ port: node.port }", report) {
        let message = match (&from.tree, from.text()) {
            (Tree::Null, _) => {
                inputs.insert(port.clone(), None);
                continue;
            }
            (_, Some(text)) if text.split('.').filter(|p| !p.is_empty()).count() == 2 => {
                inputs.insert(port.clone(), Some(text.to_owned()));
                continue;
            }
            (_, Some(text)) => format!("input `{port}` is `{text}`, not `node.port`"),
            _ => format!("input `{port}` is {}, not `node.port`", from.what()),
        };
        let example = from.text().filter(|text| !text.contains('.')).unwrap_or("clips");
        let path = format!("{path}.{port}");
        report.add(
            Diagnostic::new(Code::Value, &from.place, path, message)
                .hint(format!("write, for example, `{port}: {example}.video`")),
        );
    }
    inputs
}

/// Reads a stage key by key, so that one bad value hides no other.
fn read_stage(stage: &Located, path: &str, report: &mut Report) -> StageConfig {
    let mut config = StageConfig::default();
    if !matches!(stage.tree, Tree::Map(_)) {
        let message = format!("the stage is {}, not a mapping", stage.what());
        let problem = Diagnostic::new(Code::Value, &stage.place, path, message);
        report.add(problem.hint("write `- { name: learn, steps: 100, losses: { … } }`"));
        return config;
    }
    known_keys(stage, path, &STAGE_KEYS, report);
    for (key, example) in [("name", "name: learn"), ("steps", "steps: 100")] {
        if stage.get(key).is_none() && !misspelt(stage, key, &STAGE_KEYS) {
            let message = format!("the stage has no `{key}`");
            let problem = Diagnostic::new(Code::Value, &stage.place, path, message);
            report.add(problem.hint(format!("write, for example, `{example}`")));
        }
    }
    let losses = entries(stage, "losses", path, "{ align.loss: 1 }", report);
    let weight = |(name, weight): &(String, Located), report: &mut Report| {
        Some((name.clone(), typed(weight, &format!("{path}.losses.{name}"), report)?))
    };
    config.losses = losses.iter().filter_map(|loss| weight(loss, report)).collect();
    let changes = entries(stage, "with", path, "{ clips.frames: 8 }", report).iter();
    config.changes = changes.map(|(key, value)| (key.clone(), value.to_json())).collect();
    if let Some(name) = part::<String>(stage, "name", path, report) {
        // It becomes a part of file names.
        let at = stage.get("name").unwrap_or(stage);
        check_name(&name, &format!("{path}.name"), at, report);
        config.name = name;
    }
    config.steps = part(stage, "steps", path, report).unwrap_or(config.steps);
    config.accumulate = part(stage, "accumulate", path, report).unwrap_or(config.accumulate);
    config.fresh = part(stage, "fresh", path, report).unwrap_or_default();
    config.drop = part(stage, "drop", path, report).unwrap_or_default();
    config.from = part(stage, "from", path, report);
    config.takes = part(stage, "takes", path, report).unwrap_or_default();
    config.rules = part(stage, "rules", path, report).unwrap_or_default();
    config.mixture = part(stage, "mixture", path, report).unwrap_or_default();
    config.moments = part(stage, "moments", path, report).unwrap_or_default();
    let train = items(stage, "train", path, "[encoder, align]", report).iter().enumerate();
    config.train =
        train.filter_map(|(i, t)| typed(t, &format!("{path}.train.{i}"), report)).collect();
    let gates = items(stage, "until", path, "[{ metric: judge.accuracy, above: 0.9 }]", report);
    let gates = gates.iter().enumerate();
    config.until = gates
        .filter_map(|(i, gate)| fields(gate, &format!("{path}.until.{i}"), &GATE_KEYS, report))
        .collect();
    let optimizer = stage.get("optimizer").filter(|o| !matches!(o.tree, Tree::Null));
    let full = format!("{path}.optimizer");
    config.optimizer = optimizer.and_then(|o| fields(o, &full, &OPTIMIZER_KEYS, report));
    config
}

fn part<T: DeserializeOwned>(
    at: &Located,
    key: &str,
    path: &str,
    report: &mut Report,
) -> Option<T> {
    at.get(key).and_then(|value| typed(value, &format!("{path}.{key}"), report))
}

/// Reports every key that is not known, with the nearest that is.
fn known_keys(at: &Located, path: &str, known: &[&str], report: &mut Report) {
    for (key, value) in at.entries() {
        if known.contains(&key.as_str()) {
            continue;
        }
        let hint = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", quoted(known)),
        };
        let message = format!("unknown key `{key}`");
        let problem = Diagnostic::new(Code::Unknown, &value.place, below(path, key), message);
        report.add(problem.hint(hint));
    }
}

/// Whether another key is most like this one.
pub(crate) fn misspelt(at: &Located, key: &str, known: &[&str]) -> bool {
    let unknown = at.entries().iter().filter(|(name, _)| !known.contains(&name.as_str()));
    unknown.into_iter().any(|(name, _)| nearest(name, known.iter().copied()) == Some(key))
}

/// Names in backticks, with commas.
pub(crate) fn quoted(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Entries of the mapping under a key; a value of another form is reported.
fn entries<'a>(
    tree: &'a Located,
    key: &str,
    path: &str,
    example: &str,
    report: &mut Report,
) -> &'a [(String, Located)] {
    let Some(value) = tree.get(key) else { return &[] };
    if !matches!(value.tree, Tree::Map(_) | Tree::Null) {
        wrong_form(value, (key, path), "a mapping", example, report);
    }
    value.entries()
}

/// Items of the list under a key; a value of another form is reported.
fn items<'a>(
    tree: &'a Located,
    key: &str,
    path: &str,
    example: &str,
    report: &mut Report,
) -> &'a [Located] {
    let Some(value) = tree.get(key) else { return &[] };
    if !matches!(value.tree, Tree::List(_) | Tree::Null) {
        wrong_form(value, (key, path), "a list", example, report);
    }
    value.items()
}

fn wrong_form(
    value: &Located,
    (key, path): (&str, &str),
    form: &str,
    example: &str,
    report: &mut Report,
) {
    let message = format!("`{key}` is {}, not {form}", value.what());
    let problem = Diagnostic::new(Code::Value, &value.place, below(path, key), message);
    report.add(problem.hint(format!("write, for example, `{key}: {example}`")));
}

/// Reports a section that must hold something and does not.
fn empty(tree: &Located, key: &str, what: &str, example: &str, report: &mut Report) {
    let value = tree.get(key);
    let good = |v: &Located| match v.tree {
        Tree::Map(_) => key == "graph",
        Tree::List(_) => key == "curriculum",
        _ => matches!(v.tree, Tree::Null),
    };
    if value.is_some_and(|v| !good(v)) {
        return; // reported before as a value of another form
    }
    if misspelt(tree, key, &TOP_KEYS) {
        return;
    }
    let how = if value.is_some() { "empty" } else { "missing" };
    let message = format!("`{key}` is {how}; it is {what}");
    let problem = Diagnostic::new(Code::Value, &tree.place_of(key), key, message);
    report.add(problem.hint(format!("write, for example, `{example}` below `{key}:`")));
}

fn section<T: DeserializeOwned>(tree: &Located, key: &str, report: &mut Report) -> Option<T> {
    tree.get(key).and_then(|value| typed(value, key, report))
}

/// Reads a value; what does not fit is reported at its own place.
fn typed<T: DeserializeOwned>(value: &Located, path: &str, report: &mut Report) -> Option<T> {
    match attempt(value, path) {
        Ok(read) => Some(read),
        Err((_, problem)) => {
            report.add(*problem);
            None
        }
    }
}

/// Reads a mapping and reports all its problems: a value that does not fit is left out, and the
/// rest is read again.
fn fields<T: DeserializeOwned>(
    at: &Located,
    path: &str,
    known: &[&str],
    report: &mut Report,
) -> Option<T> {
    known_keys(at, path, known, report);
    let mut rest = at.clone();
    if let Tree::Map(entries) = &mut rest.tree {
        entries.retain(|(key, _)| known.contains(&key.as_str()));
    }
    let mut left_out: Vec<String> = Vec::new();
    loop {
        let (inner, problem) = match attempt(&rest, path) {
            Ok(read) => return Some(read),
            Err(failed) => failed,
        };
        let again = left_out.iter().any(|key| problem.message == format!("`{key}` is missing"));
        if !again {
            report.add(*problem);
        }
        let key = inner.split('.').next().unwrap_or_default().to_owned();
        let Tree::Map(entries) = &mut rest.tree else { return None };
        let before = entries.len();
        entries.retain(|(name, _)| *name != key);
        if entries.len() == before {
            return None;
        }
        left_out.push(key);
    }
}

type Failed = (String, Box<Diagnostic>);

/// Reads a value, or gives the path inside it and the problem.
fn attempt<T: DeserializeOwned>(value: &Located, path: &str) -> Result<T, Failed> {
    serde_path_to_error::deserialize(value.to_json()).map_err(|error| {
        let inner = error.path().to_string().replace('[', ".").replace(']', "");
        let inner = if inner == "." { "" } else { inner.trim_start_matches('.') };
        let full = if inner.is_empty() { path.to_owned() } else { below(path, inner) };
        let (message, hint) = words::plain(&error.inner().to_string(), words::name(&full));
        let place = value.place_of(inner);
        let problem = Diagnostic::new(Code::Value, &place, full, message).hint(hint);
        (inner.to_owned(), Box::new(problem))
    })
}
