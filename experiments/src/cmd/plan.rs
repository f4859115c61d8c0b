use std::path::PathBuf;
use std::process::ExitCode;

use schemas::entry::{Count, find};
use schemas::graph::{End, StageGraph, StageNode};
use schemas::node::{NodeSpec, Precision};
use serde::Serialize;

use crate::out::say;
use crate::read::{self, Overrides};

/// Show placement, parameters, memory and traffic before anything runs
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Experiment file
    file: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct NodePlan {
    name: String,
    kind: String,
    host: String,
    device: String,
    parameters: u64,
    /// Parameters of the blocks alone, as published sizes often count.
    blocks: u64,
    trains: bool,
    /// Parameters, gradients and optimiser state, in bytes.
    memory: u64,
}

#[derive(Serialize)]
struct EdgePlan {
    from: String,
    to: String,
    bytes_per_step: u64,
    gradient: bool,
    crosses_hosts: bool,
}

#[derive(Serialize)]
struct StagePlan {
    name: String,
    steps: u64,
    nodes: Vec<NodePlan>,
    edges: Vec<EdgePlan>,
}

/// Prints the plan of each stage.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let checked = match read::experiment(&args.file, &args.overrides)? {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    let plans: Vec<StagePlan> = checked.graph.stages.iter().map(plan).collect();
    if args.json {
        say!("{}", serde_json::to_string_pretty(&plans)?);
    } else {
        plans.iter().for_each(print);
    }
    Ok(ExitCode::SUCCESS)
}

fn host(node: &StageNode) -> &str {
    node.host.as_deref().unwrap_or("supervisor")
}

fn plan(stage: &StageGraph) -> StagePlan {
    let node = |(name, node): (&String, &StageNode)| {
        let count = find(modules::REGISTRY, &node.spec.kind)
            .map_or_else(Count::default, |entry| (entry.count)(&node.spec));
        let parameters = count.parameters;
        let memory = parameters * bytes_per_parameter(&node.spec);
        NodePlan {
            name: name.clone(),
            kind: node.spec.kind.clone(),
            host: host(node).to_owned(),
            device: node.spec.device.clone(),
            parameters,
            blocks: count.blocks,
            trains: node.trains(),
            memory,
        }
    };
    let edges = stage.edges.iter().map(|edge| {
        let bytes = |end: &End| edge.bytes(stage.nodes[&end.node].spec.precision);
        let back = if edge.gradient { bytes(&edge.to) } else { 0 };
        EdgePlan {
            from: edge.from.to_string(),
            to: edge.to.to_string(),
            bytes_per_step: (bytes(&edge.from) + back) * u64::from(stage.accumulate),
            gradient: edge.gradient,
            crosses_hosts: host(&stage.nodes[&edge.from.node]) != host(&stage.nodes[&edge.to.node]),
        }
    });
    StagePlan {
        name: stage.name.clone(),
        steps: stage.steps,
        nodes: stage.nodes.iter().map(node).collect(),
        edges: edges.collect(),
    }
}

/// Trained: value, gradient and two moments in f32; otherwise the value alone. What changes and
/// computes in bf16 has a rounded copy beside it.
fn bytes_per_parameter(spec: &NodeSpec) -> u64 {
    let copy = spec.precision.bytes();
    let whole = if spec.optimizer.is_some() { 16 } else { 4 };
    match spec.precision {
        Precision::F32 => whole,
        Precision::Bf16 if spec.optimizer.is_some() || spec.ema.is_some() => whole + copy,
        Precision::Bf16 => copy,
    }
}

fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn print(stage: &StagePlan) {
    say!("stage {} ({} steps)", stage.name, stage.steps);
    say!(
        "  {:<16} {:<28} {:<12} {:<8} {:>14} {:>14} {:>11}",
        "node",
        "kind",
        "host",
        "device",
        "parameters",
        "in blocks",
        "memory"
    );
    for node in &stage.nodes {
        let trains = if node.trains { " trains" } else { "" };
        say!(
            "  {:<16} {:<28} {:<12} {:<8} {:>14} {:>14} {:>11}{trains}",
            node.name,
            node.kind,
            node.host,
            node.device,
            node.parameters,
            node.blocks,
            human(node.memory)
        );
    }
    for edge in &stage.edges {
        let back = if edge.gradient { "gradient back" } else { "" };
        let far = if edge.crosses_hosts { "between hosts" } else { "" };
        say!(
            "  {:<28} -> {:<28} {:>11} a step {back} {far}",
            edge.from,
            edge.to,
            human(edge.bytes_per_step)
        );
    }
    say!();
}
