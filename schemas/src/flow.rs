//! What flows: the order of the nodes, the dims through the edges, the gradients back.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::dims::{Dim, DimError, Dims};
use crate::graph::{End, Shape, connected};
use crate::port::{Grad, Port};
use crate::resolve::{Resolved, join};
use crate::same;
use crate::stage::{LossWeight, TrainConfig};

/// Dims of a node and what its outputs give.
pub(crate) struct NodeShapes {
    /// Values of its symbols.
    pub(crate) dims: Dims,
    /// Outputs by port.
    pub(crate) outputs: BTreeMap<String, Shape>,
}

/// Unifies dims along all edges; nodes with problems are left out, and so is what they feed.
pub(crate) fn shapes(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    order: &[String],
    report: &mut Report,
) -> BTreeMap<String, NodeShapes> {
    let mut shapes: BTreeMap<String, NodeShapes> = BTreeMap::new();
    for name in order {
        let Some(node) = nodes.get(name) else { continue };
        let inputs: BTreeMap<String, End> =
            connected(&context.experiment.graph[name]).into_iter().collect();
        let mut binding =
            Binding { context, name, dims: Dims::new(), from: BTreeMap::new(), sound: true };
        let mut known = true;
        for port in &node.ports.inputs {
            let Some(from) = inputs.get(&port.name) else {
                known &= port.optional;
                continue;
            };
            let producer = nodes.get(&from.node).and_then(|n| n.ports.find_output(&from.port));
            let shape = shapes.get(&from.node).and_then(|s| s.outputs.get(&from.port));
            let (Some(producer), Some(shape)) = (producer, shape) else {
                known = false;
                continue;
            };
            binding.take(port, producer, (from, shape), report);
        }
        // Options that are wrong by themselves are named even when an input is not known.
        let (sound, none) = (known && binding.sound, Dims::new());
        let dims = if sound { &binding.dims } else { &none };
        let problems = (node.entry.check)(&node.options, dims);
        for problem in &problems {
            let path = join(&format!("graph.{name}"), &problem.option);
            let found = context.problem(Code::Value, &path, problem.message.clone());
            report.add(found.hint(problem.hint.clone()));
        }
        if !sound || !problems.is_empty() {
            continue;
        }
        if let Some(outputs) = binding.give(&node.ports.outputs, report) {
            shapes.insert(name.clone(), NodeShapes { dims: binding.dims, outputs });
        }
    }
    shapes
}

/// The symbols of one node on their way to values.
struct Binding<'a> {
    context: &'a Context<'a>,
    name: &'a str,
    dims: Dims,
    /// Who bound a symbol, for messages.
    from: BTreeMap<String, String>,
    sound: bool,
}

impl Binding<'_> {
    fn take(&mut self, port: &Port, producer: &Port, source: (&End, &Shape), report: &mut Report) {
        let (from, shape) = source;
        let path = format!("graph.{}.in.{}", self.name, port.name);
        let ends = format!("`{}.{}` takes `{}`", self.name, port.name, port.dims);
        let gives = format!("`{from}` gives {:?}", shape.dims);
        let mut fail = |message: String, hint: String| {
            report.add(self.context.problem(Code::Mismatch, &path, message).hint(hint));
        };
        if port.elements != shape.elements {
            let (takes, found) = (port.elements.name(), shape.elements.name());
            let (name, port) = (self.name, &port.name);
            let message = format!("`{name}.{port}` takes {takes}s, but `{from}` gives {found}s");
            fail(message, format!("connect an output of {takes}s"));
            self.sound = false;
            return;
        }
        let patterns = match Dim::parse_all(&port.dims) {
            Ok(patterns) => patterns,
            Err(error) => {
                fail(error.to_string(), "this is a mistake in the kind".to_owned());
                self.sound = false;
                return;
            }
        };
        if patterns.len() != shape.dims.len() {
            let (takes, found) = (patterns.len(), shape.dims.len());
            let message = format!("{ends} (rank {takes}), but {gives} (rank {found})");
            fail(message, format!("connect an output of rank {takes}"));
            self.sound = false;
            return;
        }
        for (index, (pattern, value)) in patterns.iter().zip(&shape.dims).enumerate() {
            if let Err(why) = self.bind(pattern, *value, from) {
                let hint =
                    "change the options that set it on one side, so that both agree".to_owned();
                fail(format!("{ends}, but {gives}: dim {index} is {value}, {why}"), hint);
                self.sound = false;
            }
        }
        self.take_lattice(port, (from, shape), report);
        for (tag, value) in &port.tags {
            let Some(found) = producer.tags.get(tag).filter(|found| *found != value) else {
                continue;
            };
            let (name, port) = (self.name, &port.name);
            let message =
                format!("`{name}.{port}` takes {tag} `{value}`, but `{from}` gives `{found}`");
            let hint = format!("connect an output with {tag} `{value}`");
            report.add(self.context.problem(Code::Mismatch, &path, message).hint(hint));
            self.sound = false;
        }
    }

    fn take_lattice(&mut self, port: &Port, source: (&End, &Shape), report: &mut Report) {
        let (from, shape) = source;
        let (Some(pattern), Some(lattice)) = (&port.lattice, &shape.lattice) else { return };
        let patterns = Dim::parse_all(pattern).unwrap_or_default();
        let bound: Vec<_> = patterns.iter().map(|p| p.value(&self.dims)).collect();
        let own = |error: &&DimError| !matches!(error, DimError::Unbound { .. });
        if let Some(error) = bound.iter().filter_map(|value| value.as_ref().err()).find(own) {
            // It has no lattice to compare. A division by 0 is named by its option.
            self.sound = false;
            if matches!(error, DimError::Remainder { .. }) {
                let message = format!("`{}` has no token lattice: {error}", self.name);
                let path = format!("graph.{}", self.name);
                let problem = self.context.problem(Code::Value, &path, message);
                report.add(problem.hint(self.origins(error)));
            }
            return;
        }
        for (pattern, value) in patterns.iter().zip(lattice) {
            if self.bind(pattern, *value, from).is_ok() {
                continue;
            }
            let expected: Vec<usize> =
                bound.iter().filter_map(|b| b.as_ref().ok().copied()).collect();
            let first = match pattern {
                Dim::Symbol(symbol) => self.from.get(symbol),
                _ => None,
            };
            let other = first.map_or(self.name, String::as_str);
            let message = format!(
                "the token lattice of `{from}` is {lattice:?} (frames, rows, columns), that of `{other}` is {expected:?}"
            );
            let path = format!("graph.{}.in.{}", self.name, port.name);
            let hint = "choose frames, size, patch and tubelet so that both give the same lattice";
            report.add(self.context.problem(Code::Mismatch, &path, message).hint(hint));
            self.sound = false;
            return;
        }
    }

    /// Binds a free symbol, or compares with what is bound.
    fn bind(&mut self, pattern: &Dim, value: usize, from: &End) -> Result<(), String> {
        if let Dim::Symbol(symbol) = pattern
            && !self.dims.contains_key(symbol)
        {
            self.dims.insert(symbol.clone(), value);
            self.from.insert(symbol.clone(), from.to_string());
            return Ok(());
        }
        match pattern.value(&self.dims) {
            Ok(expected) if expected == value => Ok(()),
            Ok(expected) => Err(match pattern {
                Dim::Symbol(symbol) => {
                    let first = self.from.get(symbol).map_or("", String::as_str);
                    format!("but `{symbol}` is {expected} at `{first}`")
                }
                Dim::Number(_) => format!("expected {expected}"),
                Dim::Join(..) | Dim::Keep(..) | Dim::Floor(..) => {
                    format!("expected {pattern} = {expected}")
                }
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    fn give(&self, ports: &[Port], report: &mut Report) -> Option<BTreeMap<String, Shape>> {
        let mut outputs = BTreeMap::new();
        let values = |text: &str| -> Result<Vec<usize>, DimError> {
            Dim::parse_all(text)?.iter().map(|dim| dim.value(&self.dims)).collect()
        };
        for port in ports {
            let lattice = port.lattice.as_deref().map(values).transpose();
            let shape = values(&port.dims)
                .and_then(|dims| Ok(Shape { elements: port.elements, dims, lattice: lattice? }));
            match shape {
                Ok(shape) => {
                    outputs.insert(port.name.clone(), shape);
                }
                Err(error) => {
                    let (name, port) = (self.name, &port.name);
                    let message = format!("`{name}.{port}` has no shape: {error}");
                    let path = format!("graph.{}", self.name);
                    report.add(
                        self.context
                            .problem(Code::Value, &path, message)
                            .hint(self.origins(&error)),
                    );
                    return None;
                }
            }
        }
        Some(outputs)
    }

    /// Where the symbols of an error come from.
    fn origins(&self, error: &DimError) -> String {
        let divided = match error {
            DimError::Remainder { what, divisor, .. } => {
                self.from.get(what).zip(Some((what, divisor)))
            }
            _ => None,
        };
        match divided {
            Some((from, (what, divisor))) => format!(
                "{what} comes from `{from}`; make it a multiple of {divisor}, or divide by another number in `{}`",
                self.name
            ),
            None => format!("change the options of `{}` that its dims depend on", self.name),
        }
    }
}

/// Nodes that the losses need, in name order.
pub(crate) fn active(context: &Context<'_>) -> BTreeSet<String> {
    let mut active = BTreeSet::new();
    let losses = context.config.losses.keys().filter_map(|end| end.split('.').next());
    let mut open: Vec<String> = losses.map(str::to_owned).collect();
    while let Some(name) = open.pop() {
        if !active.insert(name.clone()) {
            continue;
        }
        if let Some(config) = context.experiment.graph.get(&name) {
            open.extend(connected(config).into_iter().map(|(_, from)| from.node));
        }
    }
    // A node whose weights another one works with is there, also when it does not work itself.
    let graph = &context.experiment.graph;
    let owners = active.iter().filter_map(|name| graph.get(name)?.same.clone());
    let owners: Vec<String> = owners.collect();
    active.extend(owners);
    active
}

/// Where gradients go.
#[derive(Default)]
pub(crate) struct GradientFlow {
    /// Nodes with a backward pass.
    pub(crate) backward: BTreeSet<String>,
    /// Edges that a gradient comes back on.
    pub(crate) edges: BTreeSet<(End, End)>,
}

type Ends<'a> = (&'a BTreeMap<End, LossWeight>, &'a BTreeSet<String>);

/// Finds the edges that gradients travel on; reports trained nodes that none reaches.
pub(crate) fn gradients(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    order: &[String],
    (losses, trained): Ends<'_>,
    report: &mut Report,
) -> GradientFlow {
    let grad_of = |end: &End, output: bool| {
        let ports = nodes.get(&end.node).map(|n| &n.ports)?;
        let port = if output { ports.find_output(&end.port) } else { ports.find_input(&end.port) };
        port.map(|p| p.grad)
    };
    let mut edges = Vec::new();
    for name in order {
        let Some(config) = context.experiment.graph.get(name) else { continue };
        for (port, from) in connected(config) {
            let to = End::new(name, &port);
            let flows = grad_of(&to, false) == Some(Grad::Flows)
                && grad_of(&from, true) == Some(Grad::Flows);
            edges.push((from, to, flows));
        }
    }
    let mut needs: BTreeSet<&str> = BTreeSet::new();
    for name in order {
        let fed = edges.iter().any(|(from, to, flows)| {
            *flows && to.node == *name && needs.contains(from.node.as_str())
        });
        if fed || trained.contains(name) {
            needs.insert(name);
        }
    }
    let mut reaches: BTreeSet<&str> = losses.keys().map(|end| end.node.as_str()).collect();
    for name in order.iter().rev() {
        let feeds = edges.iter().any(|(from, to, flows)| {
            *flows && from.node == *name && reaches.contains(to.node.as_str())
        });
        if feeds {
            reaches.insert(name);
        }
    }
    let reached: BTreeSet<&str> =
        reaches.iter().map(|name| same::owner(context.experiment, name)).collect();
    let owners = trained.iter().filter(|name| same::owner(context.experiment, name) == *name);
    for name in owners.filter(|name| !reached.contains(name.as_str())) {
        report_unreached(context, name, &edges, losses, report);
    }
    let both = |name: &str| needs.contains(name) && reaches.contains(name);
    GradientFlow {
        backward: order.iter().filter(|name| both(name)).cloned().collect(),
        edges: edges
            .into_iter()
            .filter(|(from, to, flows)| *flows && both(&from.node) && both(&to.node))
            .map(|(from, to, _)| (from, to))
            .collect(),
    }
}

fn report_unreached(
    context: &Context<'_>,
    name: &str,
    edges: &[(End, End, bool)],
    losses: &BTreeMap<End, LossWeight>,
    report: &mut Report,
) {
    let named = |entry: &TrainConfig| entry.nodes().iter().any(|(other, _)| *other == name);
    let place = context.config.train.iter().position(named).unwrap_or_default();
    let path = format!("{}.train.{place}", context.path());
    let stage = &context.config.name;
    // Does any path, also through stopped ports, end at a loss?
    let mut seen = BTreeSet::from([name.to_owned()]);
    let mut open = vec![name.to_owned()];
    let mut stopped: Option<&End> = None;
    let mut found = false;
    while let Some(at) = open.pop() {
        found |= losses.keys().any(|end| end.node == at);
        for (_, to, flows) in edges.iter().filter(|(from, ..)| from.node == at) {
            if !flows && stopped.is_none() {
                stopped = Some(to);
            }
            if seen.insert(to.node.clone()) {
                open.push(to.node.clone());
            }
        }
    }
    let (message, hint) = match stopped.filter(|_| found) {
        Some(end) => (
            format!(
                "`{name}` trains in stage `{stage}`, but its gradient would have to pass `{end}`, where gradients end"
            ),
            format!(
                "leave `{name}` out of `train`, or connect it to a port that gradients flow through"
            ),
        ),
        None => (
            format!("`{name}` trains in stage `{stage}`, but no loss of the stage reaches it"),
            format!("leave `{name}` out of `train`, or add a loss that depends on it to `losses`"),
        ),
    };
    report.add(context.problem(Code::Gradient, &path, message).hint(hint));
}
