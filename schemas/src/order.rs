//! The order in which nodes work.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Context;
use crate::diagnostic::{Code, Report};
use crate::graph::{WEIGHTS, connected};
use crate::resolve::Resolved;

/// Names of nodes, producers first, and whether there is such an order: where nodes feed each other, each circle
/// is reported and its nodes follow in some order. Weights arrive after an update and order nothing.
pub(crate) fn order(
    context: &Context<'_>,
    nodes: &BTreeMap<String, Resolved>,
    report: &mut Report,
) -> (Vec<String>, bool) {
    let (mut order, mut done, mut sound) = (Vec::new(), BTreeSet::new(), true);
    for name in nodes.keys() {
        while let Err(cycle) = visit(context, name, &mut Vec::new(), &mut done, &mut order) {
            sound = false;
            let first = &cycle[0];
            let message = format!("nodes feed each other in a circle: {}", cycle.join(" <- "));
            let hint = "break the circle; parameters may travel back through a `weights` port";
            let path = format!("graph.{first}.in");
            report.add(context.problem(Code::Cycle, &path, message).hint(hint));
            order.extend(cycle.into_iter().filter(|name| done.insert(name.clone())));
        }
    }
    (order, sound)
}

fn visit(
    context: &Context<'_>,
    name: &str,
    chain: &mut Vec<String>,
    done: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) -> Result<(), Vec<String>> {
    if done.contains(name) {
        return Ok(());
    }
    if let Some(start) = chain.iter().position(|other| other == name) {
        let mut cycle = chain[start..].to_vec();
        cycle.push(name.to_owned());
        return Err(cycle);
    }
    chain.push(name.to_owned());
    if let Some(config) = context.experiment.graph.get(name) {
        for (_, from) in connected(config).iter().filter(|(port, _)| port != WEIGHTS) {
            visit(context, &from.node, chain, done, order)?;
        }
    }
    chain.pop();
    done.insert(name.to_owned());
    order.push(name.to_owned());
    Ok(())
}
