use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use schemas::checkpoint;
use schemas::entry::find;

use crate::out::say;
use crate::read::{self, Overrides};

/// Weights files: take a trained node out of a run
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write a node's parameters as safetensors with the keys of the public checkpoints
    Export {
        /// Directory of the run
        run: PathBuf,
        /// The node
        node: String,
        /// File to write
        file: PathBuf,
    },
}

/// Exports from the newest checkpoint.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let What::Export { run, node, file } = &args.what;
    let checked = match read::experiment(&run.join("experiment.yaml"), &Overrides::default())? {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut stages = checked.graph.stages.iter().rev();
    let Some(found) = stages.find_map(|stage| stage.nodes.get(node)) else {
        bail!("no node of the run is named `{node}`");
    };
    let newest = checkpoint::list(&run.join("checkpoints")).pop();
    let (manifest, folder) = newest.context("the run has no checkpoint")?;
    let part = manifest.parts.get(node);
    let part = part.with_context(|| format!("`{node}` never trained in this run"))?;
    let part = checkpoint::read_part(&folder, part)?;
    let entry = find(modules::REGISTRY, &found.spec.kind).context("the kind is not known")?;
    (entry.export)(&found.spec, &part, file)?;
    say!("wrote {} as of step {}", file.display(), manifest.step);
    Ok(ExitCode::SUCCESS)
}
