use std::path::PathBuf;
use std::process::ExitCode;

use crate::read::{self, Overrides};

/// Check experiments without running them
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Experiment files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Prints all problems of all files; fails if there is one.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut found = 0;
    for file in &args.files {
        match read::experiment(file, &args.overrides)? {
            Ok(checked) => {
                let stages = checked.graph.stages.len();
                let nodes = checked.graph.experiment.graph.len();
                println!("{}: ok, {nodes} nodes, {stages} stages", file.display());
            }
            Err(problems) => {
                let count = read::print(&problems);
                let s = if count == 1 { "" } else { "s" };
                eprintln!("{}: {count} problem{s}", file.display());
                found += count;
            }
        }
    }
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
