//! Roles of the nodes in a stage, from the checked graph.

use std::collections::{BTreeMap, BTreeSet};

use schemas::graph::Graph;

use crate::message::{Assignment, Consumer};

/// Roles of all nodes that work in a stage.
pub(crate) fn roles(graph: &Graph, stage: usize, step: u64) -> BTreeMap<String, Assignment> {
    let plan = &graph.stages[stage];
    plan.nodes.keys().map(|name| (name.clone(), role(graph, stage, name, step))).collect()
}

/// Roles of nodes that worked in earlier stages and rest in this one: they only keep their state.
pub(crate) fn resting(graph: &Graph, stage: usize, step: u64) -> BTreeMap<String, Assignment> {
    let active = &graph.stages[stage].nodes;
    let mut resting = BTreeMap::new();
    for (index, plan) in graph.stages[..stage].iter().enumerate() {
        for name in plan.nodes.keys().filter(|name| !active.contains_key(*name)) {
            let mut role = role(graph, index, name, step);
            role.outputs.clear();
            role.gradients.clear();
            role.losses.clear();
            role.followers.clear();
            role.follows = None;
            role.copies = false;
            role.copied_by.clear();
            resting.insert(name.clone(), role);
        }
    }
    resting
}

/// Whether a node that listens to the weights of another begins this stage as its copy: it has no state yet,
/// and no file of its own to begin with.
fn copies(graph: &Graph, stage: usize, name: &str, step: u64) -> bool {
    let (earlier, plan) = (&graph.stages[..stage], &graph.stages[stage]);
    let node = &plan.nodes[name];
    let new = node.fresh || !earlier.iter().any(|stage| stage.nodes.contains_key(name));
    new && step == plan.first_step && node.spec.weights.is_none()
}

fn role(graph: &Graph, stage: usize, name: &str, step: u64) -> Assignment {
    let plan = &graph.stages[stage];
    let node = &plan.nodes[name];
    let (mut copies_now, mut copied_by) = (false, Vec::new());
    let mut outputs: BTreeMap<String, Vec<Consumer>> = BTreeMap::new();
    let mut gradients = BTreeMap::new();
    let mut followers = Vec::new();
    let mut follows = None;
    for edge in &plan.edges {
        if edge.is_weights() {
            if edge.from.node == name {
                followers.push(edge.to.node.clone());
                if copies(graph, stage, &edge.to.node, step) {
                    copied_by.push(edge.to.node.clone());
                }
            }
            if edge.to.node == name {
                copies_now = copies(graph, stage, name, step);
                follows = Some(edge.from.node.clone());
            }
            continue;
        }
        if edge.from.node == name {
            let consumer = Consumer { to: edge.to.clone(), gradient: edge.gradient };
            outputs.entry(edge.from.port.clone()).or_default().push(consumer);
        }
        if edge.to.node == name && edge.gradient {
            gradients.insert(edge.to.port.clone(), edge.from.clone());
        }
    }
    for consumers in outputs.values_mut() {
        consumers.sort_by(|a, b| a.to.cmp(&b.to));
    }
    // Weights come only from nodes that train in this stage.
    let follows = follows.filter(|from| plan.nodes.get(from).is_some_and(|n| n.trains()));
    let losses: BTreeMap<String, f64> = plan
        .losses
        .iter()
        .filter(|(end, _)| end.node == name)
        .map(|(end, weight)| (end.port.clone(), *weight))
        .collect();
    let sink = outputs.is_empty() && !node.source;
    Assignment {
        spec: node.spec.clone(),
        stage: stage as u32,
        step,
        accumulate: plan.accumulate,
        synchronous: node.trains() || follows.is_some() || sink,
        outputs,
        gradients,
        losses,
        follows,
        followers,
        copies: copies_now,
        copied_by,
        source: node.source,
        fresh: node.fresh,
    }
}

/// Nodes of a stage whose state changes in it, and must be written by every checkpoint.
pub(crate) fn changing(roles: &BTreeMap<String, Assignment>) -> BTreeSet<String> {
    let changes = |role: &Assignment| {
        role.spec.optimizer.is_some() || role.follows.is_some() || role.outputs.is_empty()
    };
    roles.iter().filter(|(_, role)| changes(role)).map(|(name, _)| name.clone()).collect()
}
