use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use actors::node_actor::Factory;
use anyhow::{Context as _, bail};
use schemas::checkpoint::{self, Manifest};
use schemas::layers::Layer;

use super::run::{Beginning, go};
use crate::origin::{Origin, graph_hash};
use crate::read;

/// Go on with a run from its newest checkpoint
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the run
    run: PathBuf,
    /// Overlay for this resume, such as another placement
    #[arg(long = "with", value_name = "FILE")]
    with: Vec<PathBuf>,
}

/// Reads the resolved experiment of the run and goes on.
pub(crate) fn run(args: &Args, factory: &Factory) -> anyhow::Result<ExitCode> {
    let file = args.run.join("experiment.yaml");
    let layer = |path: &PathBuf| -> anyhow::Result<Layer> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        Ok(Layer::File { name, text })
    };
    let mut layers = vec![layer(&file).context("this is not a run directory")?];
    for path in &args.with {
        layers.push(layer(path)?);
    }
    let origin = fs::read(args.run.join("origin.json")).context("cannot read origin.json")?;
    let origin: Origin = serde_json::from_slice(&origin).context("origin.json is damaged")?;
    let checked = match read::check(&layers, &origin.base) {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    if graph_hash(&checked.graph) != origin.graph {
        bail!("the graph or the curriculum differs from the one that the run began with");
    }
    let newest = checkpoint::list(&args.run.join("checkpoints")).pop();
    let recorded = fs::metadata(args.run.join("metrics.csv")).map_or(0, |file| file.len());
    let beginning = Beginning::of(&checked.graph, &origin)?;
    let end = beginning.end(&checked.graph);
    // A run whose numbers are gone is not complete: it goes back to where they are.
    let complete = |manifest: &Manifest| manifest.step >= end && manifest.metrics_bytes <= recorded;
    if newest.is_some_and(|(manifest, _)| complete(&manifest)) {
        eprintln!("this run is complete: {} steps", checked.graph.steps());
        return Ok(ExitCode::SUCCESS);
    }
    go(checked.graph, &args.run, factory, beginning)
}
