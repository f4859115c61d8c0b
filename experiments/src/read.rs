//! From files and flags to a checked graph.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use schemas::diagnostic::{Diagnostic, Report};
use schemas::graph::{Graph, Surroundings};
use schemas::layers::{self, Layer};
use schemas::yaml::Located;

/// The layers over an experiment file.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Overrides {
    /// Overlay merged over the experiment; may be given several times, the last one wins
    #[arg(long = "with", value_name = "FILE")]
    pub with: Vec<PathBuf>,
    /// One value, for example `graph.clips.batch=4`; may be given several times
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// An experiment that is sound.
#[derive(Debug)]
pub struct Checked {
    /// The merged tree.
    pub tree: Located,
    /// The checked graph.
    pub graph: Graph,
    /// Where relative paths are looked up.
    pub around: Surroundings,
}

/// What came of reading an experiment.
pub type Outcome = Result<Checked, Vec<Diagnostic>>;

/// What the graph check needs to know of this program.
pub fn surroundings(base: &Path) -> Surroundings {
    let mut observers: Vec<&'static str> =
        actors::OBSERVERS.iter().map(|(name, _, _)| *name).collect();
    observers.extend(["checkpoint", "metrics_csv"]);
    observers.sort_unstable();
    Surroundings {
        registry: modules::REGISTRY,
        devices: modules::device::available(),
        observers,
        base: base.to_owned(),
    }
}

/// Reads an experiment and its layers. The outer error is a file that cannot be read.
pub fn experiment(file: &Path, overrides: &Overrides) -> anyhow::Result<Outcome> {
    let base = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut layers = vec![file_layer(file)?];
    for overlay in &overrides.with {
        let beside = base.join(overlay);
        let found = if !overlay.exists() && beside.exists() { &beside } else { overlay };
        layers.push(file_layer(found)?);
    }
    layers.extend(Layer::environment(std::env::vars()));
    let mut problems = Vec::new();
    for text in &overrides.set {
        match Layer::set(text) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Ok(Err(problems));
    }
    Ok(check(&layers, &base))
}

fn file_layer(file: &Path) -> anyhow::Result<Layer> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    Ok(Layer::File { name, text })
}

/// Merges and checks layers.
pub fn check(layers: &[Layer], base: &Path) -> Outcome {
    let mut report = Report::default();
    let Some(tree) = layers::merge(layers, &mut report) else {
        return Err(report.into_problems());
    };
    let around = surroundings(base);
    let graph = Graph::check(&tree, &around);
    let mut problems = report.into_problems();
    match graph {
        Ok(graph) if problems.is_empty() => Ok(Checked { tree, graph, around }),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// Prints problems the way people read them; gives their number.
pub fn print(problems: &[Diagnostic]) -> usize {
    for problem in problems {
        eprintln!("{problem}\n");
    }
    problems.len()
}
