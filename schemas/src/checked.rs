//! One stage, from what is written to what runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::diagnostic::Report;
use crate::dims::Dims;
use crate::experiment::{Frozen, NodeConfig};
use crate::graph::{Edge, End, Shape, StageGraph, StageNode, connected};
use crate::handoff::Takeover;
use crate::node::NodeSpec;
use crate::resolve::{self, Resolved};
use crate::stage::{LossWeight, Portion};
use crate::timetable::{Mixture, When};
use crate::{adapters, flow, follow, order, same, settings, stages, turns};

/// Checks a stage; none when its nodes feed each other.
pub(crate) fn check(context: &Context<'_>, report: &mut Report) -> Option<StageGraph> {
    let nodes = resolve::nodes(context, report);
    let (order, ordered) = order::order(context, &nodes, report);
    let shapes = flow::shapes(context, &nodes, &order, report);
    let losses = stages::losses(context, &nodes, report);
    // Where nodes or losses have problems, gradients that do not arrive only follow from them.
    let sound = report.is_empty() && nodes.len() == context.tree.get("graph")?.entries().len();
    let trained = stages::trained(context, &nodes, report);
    if !ordered {
        return None;
    }
    let active = flow::active(context);
    let mut unreached = Report::default();
    let learns = |name: &String| trained.contains_key(same::owner(context.experiment, name));
    let learning: BTreeSet<String> = nodes.keys().filter(|name| learns(name)).cloned().collect();
    let ends = (&losses, &learning);
    let gradients = flow::gradients(context, &nodes, &order, ends, &mut unreached);
    if sound {
        unreached.into_problems().into_iter().for_each(|problem| report.add(problem));
    }
    let mut stage = bare(context, losses);
    let turns = turns::turns(context, &order, (&stage.losses, stage.steps), &gradients);
    for name in &active {
        let (Some(node), Some(shape)) = (nodes.get(name), shapes.get(name)) else { continue };
        let edge = |(port, from): (String, End)| Edge {
            shape: shapes.get(&from.node).and_then(|s| s.outputs.get(&from.port)).cloned(),
            gradient: gradients.edges.contains(&(from.clone(), End::new(name, &port))),
            to: End::new(name, &port),
            from,
        };
        let turns = turns.get(name).cloned().unwrap_or_default();
        // A node that is there for its weights alone has no inputs.
        let inputs = connected(&context.experiment.graph[name]).into_iter();
        let edges: Vec<Edge> = inputs.filter(|_| !turns.0.is_never()).map(edge).collect();
        let owner = same::owner(context.experiment, name);
        let of = |other: &String| same::owner(context.experiment, other) == owner;
        let reached = gradients.backward.iter().any(of);
        let portion = trained.get(owner).filter(|_| reached);
        let mut spec = node_spec(context, name, node, (&shape.dims, &edges, portion));
        spec.backward = gradients.backward.contains(name) || portion.is_some();
        spec.lora = adapters::read(context, name, node, &spec, report);
        settings::check(context, name, node, &spec, report);
        let node = stage_node(context, name, (node, shape.outputs.clone()), (spec, turns));
        stage.nodes.insert(name.clone(), node);
        stage.edges.extend(edges);
    }
    follow::check_followers(context, &nodes, (&stage.nodes, &stage.edges), report);
    same::check(context, &nodes, &stage.nodes, report);
    Some(stage)
}

/// A stage without its nodes.
fn bare(context: &Context<'_>, losses: BTreeMap<End, LossWeight>) -> StageGraph {
    let config = context.config;
    let parts: Vec<_> = config.mixture.clone().into_iter().collect();
    let (seed, stage) = (context.experiment.seed, config.name.clone());
    StageGraph {
        name: config.name.clone(),
        steps: config.steps,
        first_step: 0,
        mixture: (!parts.is_empty()).then_some(Mixture { seed, stage, parts }),
        until: config.until.clone(),
        from: None,
        accumulate: config.accumulate,
        optimizer: config.optimizer.clone(),
        losses,
        nodes: BTreeMap::new(),
        edges: Vec::new(),
    }
}

type Outputs = BTreeMap<String, Shape>;

fn stage_node(
    context: &Context<'_>,
    name: &str,
    (node, outputs): (&Resolved, Outputs),
    (spec, (works, backs)): (NodeSpec, (When, When)),
) -> StageNode {
    StageNode {
        spec,
        ports: node.ports.clone(),
        outputs,
        host: place(context, name),
        source: node.entry.source,
        same: context.experiment.graph[name].same.clone(),
        works,
        backs,
        takeover: Takeover::default(),
    }
}

/// Host of a node; that of the node whose weights it shares, unless it has one of its own.
fn place(context: &Context<'_>, name: &str) -> Option<String> {
    let place = &context.experiment.place;
    place.get(name).or_else(|| place.get(same::owner(context.experiment, name))).cloned()
}

/// The device of a node: its own, the run's, or the first of the build.
fn device(context: &Context<'_>, config: &NodeConfig) -> String {
    let first = || context.around.devices.first().copied().unwrap_or_default();
    let named = config.device.as_deref().or(context.experiment.run.device.as_deref());
    named.unwrap_or_else(first).to_owned()
}

type SpecParts<'a> = (&'a Dims, &'a [Edge], Option<&'a Portion>);

fn node_spec(context: &Context<'_>, name: &str, node: &Resolved, parts: SpecParts<'_>) -> NodeSpec {
    let (dims, edges, portion) = parts;
    let config = &context.experiment.graph[name];
    let frames = edges.iter().filter(|e| !e.is_weights());
    let mut frozen = match &config.frozen {
        Frozen::Some(prefixes) => prefixes.clone(),
        Frozen::All(_) => Vec::new(),
    };
    frozen.extend(portion.iter().flat_map(|portion| portion.except.iter().cloned()));
    // Weights and averages belong to the node that a vertex shares them with.
    let own = config.same.is_none();
    NodeSpec {
        name: name.to_owned(),
        kind: config.kind.clone(),
        options: node.options.clone(),
        dims: dims.clone(),
        wired: frames.clone().map(|e| e.to.port.clone()).collect(),
        wants: frames.filter(|e| e.gradient).map(|e| e.to.port.clone()).collect(),
        backward: false,
        accumulate: context.config.accumulate,
        optimizer: portion.and(context.config.optimizer.clone()),
        frozen,
        only: portion.and_then(|portion| portion.only.clone()),
        seed: context.experiment.seed,
        device: device(context, config),
        precision: config.precision,
        checkpointing: config.checkpointing,
        weights: config.weights.as_ref().filter(|_| own).map(|path| context.around.locate(path)),
        ema: config.ema.filter(|_| own),
        lora: None,
        turns: None,
    }
}
