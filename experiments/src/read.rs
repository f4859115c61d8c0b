//! From files and flags to a checked graph.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use actors::checkpointer::Policy;
use anyhow::Context as _;
use schemas::diagnostic::{Diagnostic, Report};
use schemas::entry::{OptionProblem, read_options};
use schemas::graph::{Graph, Surroundings};
use schemas::layers::{self, Layer};
use schemas::yaml::Located;

use crate::origin::Origin;

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
        observe,
        rule: modules::archive::rules::shape,
        base: base.to_owned(),
    }
}

/// Reads the options of an observer without making it.
fn observe(kind: &str, options: &serde_json::Value) -> Result<(), OptionProblem> {
    match kind {
        "checkpoint" => {
            let policy: Policy = read_options(options)?;
            let least = [("every", policy.every), ("keep", policy.keep as u64)];
            least.into_iter().find(|(_, value)| *value == 0).map_or(Ok(()), |(key, _)| {
                let message = format!("`{key}` is 0, but must be at least 1");
                Err(OptionProblem::new(key, message, "write a number from 1"))
            })
        }
        "metrics_csv" => read_options::<Nothing>(options).map(|_| ()),
        _ => match actors::OBSERVERS.iter().find(|(name, _, _)| *name == kind) {
            Some((_, _, entry)) => (entry.check)(options),
            None => Ok(()),
        },
    }
}

/// Options of an observer that has none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Reads an experiment and its layers. The outer error is a file that cannot be read.
pub fn experiment(file: &Path, overrides: &Overrides) -> anyhow::Result<Outcome> {
    let base = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut layers = vec![file_layer(file)?];
    for overlay in &overrides.with {
        let beside = base.join(overlay);
        let found = if !overlay.exists() && beside.exists() { &beside } else { overlay };
        layers.push(file_layer(found)?);
    }
    // Variables that are not text are somebody else's.
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    layers.extend(Layer::environment(std::env::vars_os().filter_map(text)));
    let mut problems = Vec::new();
    for text in &overrides.set {
        match Layer::set(text) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    let outcome = check(&layers, &base);
    if problems.is_empty() {
        return Ok(outcome);
    }
    problems.extend(outcome.err().unwrap_or_default());
    Ok(Err(problems))
}

/// Reads the experiment of a run; relative paths are looked up where it began.
pub fn run(folder: &Path) -> anyhow::Result<Outcome> {
    let layer = file_layer(&folder.join("experiment.yaml"))?;
    let origin = fs::read(folder.join("origin.json")).ok();
    let origin = origin.and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
    let base = origin.map_or_else(|| folder.to_owned(), |origin| origin.base);
    Ok(check(&[layer], &base))
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
    match Graph::check(&tree, &around) {
        Ok(graph) if report.is_empty() => return Ok(Checked { tree, graph, around }),
        Ok(_) => {}
        Err(problems) => problems.into_iter().for_each(|problem| report.add(problem)),
    }
    Err(report.into_problems())
}

/// Prints problems the way people read them; gives their number.
pub fn print(problems: &[Diagnostic]) -> usize {
    for problem in problems {
        eprintln!("{problem}\n");
    }
    problems.len()
}
