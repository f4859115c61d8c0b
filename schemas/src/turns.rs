//! Which steps each node of a stage works in: those of the losses that need it.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::flow::GradientFlow;
use crate::graph::{End, WEIGHTS, connected};
use crate::stage::LossWeight;
use crate::timetable::When;

/// The steps that each node works in, and those that it has a backward pass in.
pub(crate) fn turns(
    context: &Context<'_>,
    order: &[String],
    (losses, steps): (&BTreeMap<End, LossWeight>, u64),
    gradients: &GradientFlow,
) -> BTreeMap<String, (When, When)> {
    let mut turns: BTreeMap<String, (When, When)> = BTreeMap::new();
    for (end, loss) in losses {
        let (works, backs) = turns.entry(end.node.clone()).or_default();
        works.join(&loss.when(steps));
        if gradients.backward.contains(&end.node) {
            backs.join(&loss.when(steps));
        }
    }
    for name in order.iter().rev() {
        let (works, backs) = turns.get(name).cloned().unwrap_or_default();
        let Some(config) = context.experiment.graph.get(name) else { continue };
        for (port, from) in connected(config).into_iter().filter(|(port, _)| port != WEIGHTS) {
            let back = gradients.edges.contains(&(from.clone(), End::new(name, &port)));
            let producer = turns.entry(from.node).or_default();
            producer.0.join(&works);
            if back {
                producer.1.join(&backs);
            }
        }
    }
    turns
}
