//! Roles of the nodes in a stage, from the checked graph.

use std::collections::{BTreeMap, BTreeSet};

use schemas::graph::{End, Graph, StageGraph, StageNode};
use schemas::stage::LossWeight;
use schemas::timetable::When;

use crate::message::{Assignment, Consumer};

/// Roles of all nodes that work in a stage.
pub(crate) fn roles(graph: &Graph, stage: usize, step: u64) -> BTreeMap<String, Assignment> {
    let plan = &graph.stages[stage];
    plan.nodes.keys().map(|name| (name.clone(), role(graph, stage, name, step))).collect()
}

/// Whether a node that listens to the weights of another begins this stage as its copy: it has no state yet,
/// and no file of its own to begin with.
fn copies(graph: &Graph, stage: usize, name: &str, step: u64) -> bool {
    let (earlier, plan) = (&graph.stages[..stage], &graph.stages[stage]);
    let node = &plan.nodes[name];
    if node.same.is_some() {
        return true; // its weights are nowhere else
    }
    let old = |of: &str| earlier.iter().any(|stage| stage.nodes.contains_key(of));
    let new = node.takeover.is_fresh() || !old(node.takeover.of.as_deref().unwrap_or(name));
    new && step == plan.first_step && node.spec.weights.is_none()
}

/// Who takes its parameters from whom in a stage: averages, and vertices on the weights of another node.
fn weights(plan: &StageGraph) -> impl Iterator<Item = (&str, &str)> {
    let edges = plan.edges.iter().filter(|edge| edge.is_weights());
    let edges = edges.map(|edge| (edge.to.node.as_str(), edge.from.node.as_str()));
    let same =
        plan.nodes.iter().filter_map(|(name, node)| Some((name.as_str(), node.same.as_deref()?)));
    edges.chain(same)
}

/// Who gives a node its parameters, and whom it gives its own.
#[derive(Default)]
struct Ties {
    follows: Option<String>,
    followers: Vec<String>,
    copies: bool,
    copied_by: Vec<String>,
}

fn ties(graph: &Graph, stage: usize, name: &str, step: u64) -> Ties {
    let plan = &graph.stages[stage];
    let mut ties = Ties::default();
    for (to, from) in weights(plan) {
        if from == name {
            ties.followers.push(to.to_owned());
            if copies(graph, stage, to, step) {
                ties.copied_by.push(to.to_owned());
            }
        }
        if to == name {
            ties.copies = copies(graph, stage, name, step);
            ties.follows = Some(from.to_owned());
        }
    }
    // Weights come only from nodes that train in this stage.
    ties.follows.take_if(|from| !plan.nodes.get(from).is_some_and(StageNode::trains));
    ties
}

type Ways = (BTreeMap<String, Vec<Consumer>>, BTreeMap<String, End>);

/// Consumers of the outputs of a node, and producers that its gradients go back to.
fn ways(plan: &StageGraph, name: &str) -> Ways {
    let mut outputs: BTreeMap<String, Vec<Consumer>> = BTreeMap::new();
    let mut gradients = BTreeMap::new();
    for edge in plan.edges.iter().filter(|edge| !edge.is_weights()) {
        if edge.from.node == name {
            let to = &plan.nodes[&edge.to.node];
            let backs = if edge.gradient { to.backs.clone() } else { When::default() };
            let consumer = Consumer { to: edge.to.clone(), works: to.works.clone(), backs };
            outputs.entry(edge.from.port.clone()).or_default().push(consumer);
        }
        if edge.to.node == name && edge.gradient {
            gradients.insert(edge.to.port.clone(), edge.from.clone());
        }
    }
    for consumers in outputs.values_mut() {
        consumers.sort_by(|a, b| a.to.cmp(&b.to));
    }
    (outputs, gradients)
}

fn role(graph: &Graph, stage: usize, name: &str, step: u64) -> Assignment {
    let plan = &graph.stages[stage];
    let node = &plan.nodes[name];
    let Ties { follows, followers, copies, copied_by } = ties(graph, stage, name, step);
    let (outputs, gradients) = ways(plan, name);
    let losses: BTreeMap<String, LossWeight> = plan
        .losses
        .iter()
        .filter(|(end, _)| end.node == name)
        .map(|(end, weight)| (end.port.clone(), weight.clone()))
        .collect();
    let sink = outputs.is_empty() && !node.source;
    let vertices = plan.vertices(name).filter(|(other, _)| *other != name);
    let vertices = match node.trains() {
        true => vertices.map(|(other, node)| (other.to_owned(), node.backs.clone())).collect(),
        false => BTreeMap::new(),
    };
    Assignment {
        spec: node.spec.clone(),
        stage: stage as u32,
        step,
        accumulate: plan.accumulate,
        synchronous: node.trains() || follows.is_some() || sink,
        outputs,
        gradients,
        losses,
        steps: plan.steps,
        timetable: plan.timetable(),
        works: node.works.clone(),
        backs: node.backs.clone(),
        same: node.same.clone(),
        vertices,
        follows,
        followers,
        copies,
        copied_by,
        source: node.source,
        fresh: node.takeover.is_fresh(),
    }
}

/// Nodes of a stage whose state changes in it, and must be written by every checkpoint.
pub(crate) fn changing(roles: &BTreeMap<String, Assignment>) -> BTreeSet<String> {
    let changes = |role: &Assignment| {
        let own = role.trains() || role.follows.is_some() || role.outputs.is_empty();
        own && role.same.is_none()
    };
    roles.iter().filter(|(_, role)| changes(role)).map(|(name, _)| name.clone()).collect()
}
