use std::path::PathBuf;
use std::process::ExitCode;

use schemas::checkpoint;

use crate::out::say;
use crate::summary::Summary;

/// Show how far a run is
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the run
    run: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints stages, losses and checkpoints of a run.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let summary = Summary::of(&args.run, "unknown")?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(ExitCode::SUCCESS);
    }
    summary.print();
    for (manifest, path) in checkpoint::list(&args.run.join("checkpoints")) {
        say!("checkpoint before step {}: {}", manifest.step, path.display());
    }
    Ok(ExitCode::SUCCESS)
}
