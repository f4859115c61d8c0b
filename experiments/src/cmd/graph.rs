use std::path::PathBuf;
use std::process::ExitCode;

use schemas::graph::{Shape, StageGraph};

use crate::out::say;
use crate::read::{self, Overrides};

/// Print the graph of each stage with its dims and gradient paths
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Experiment file
    file: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Print Graphviz text instead
    #[arg(long)]
    dot: bool,
}

/// Prints nodes and edges stage by stage.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let checked = match read::experiment(&args.file, &args.overrides)? {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    for stage in &checked.graph.stages {
        if args.dot { print_dot(stage) } else { print_text(stage) }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(shape: Option<&Shape>) -> String {
    let Some(shape) = shape else { return "parameters".to_owned() };
    let dims: Vec<String> = shape.dims.iter().map(ToString::to_string).collect();
    match &shape.lattice {
        Some(lattice) => {
            format!("{} {} (lattice {lattice:?})", shape.elements.name(), dims.join("x"))
        }
        None => format!("{} {}", shape.elements.name(), dims.join("x")),
    }
}

fn print_text(stage: &StageGraph) {
    say!("stage {} ({} steps)", stage.name, stage.steps);
    for (name, node) in &stage.nodes {
        let state = match (node.trains(), node.spec.backward) {
            (true, _) => "trains",
            (false, true) => "frozen, gradient passes",
            (false, false) => "no gradient",
        };
        say!("  {name}: {} ({state})", node.spec.kind);
        for edge in stage.edges.iter().filter(|edge| edge.to.node == *name) {
            let back = if edge.gradient { "<->" } else { "<--" };
            say!("    {} {back} {}  {}", edge.to.port, edge.from, shown(edge.shape.as_ref()));
        }
    }
    say!();
}

fn print_dot(stage: &StageGraph) {
    say!("digraph {:?} {{\n  rankdir=LR; node [shape=box];", stage.name);
    for (name, node) in &stage.nodes {
        let style = if node.trains() { "bold" } else { "solid" };
        say!("  {name:?} [label=\"{name}\\n{}\", style={style}];", node.spec.kind);
    }
    for edge in &stage.edges {
        let dir = if edge.gradient { "both" } else { "forward" };
        say!(
            "  {:?} -> {:?} [label=\"{}\\n{}\", dir={dir}];",
            edge.from.node,
            edge.to.node,
            edge.from.port,
            shown(edge.shape.as_ref())
        );
    }
    say!("}}");
}
