use std::path::PathBuf;
use std::process::ExitCode;

use crate::out::say;
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
    let (mut found, mut unreadable) = (0, 0);
    for file in &args.files {
        match read::experiment(file, &args.overrides) {
            Ok(Ok(checked)) => {
                let stages = counted(checked.graph.stages.len(), "stage");
                let nodes = counted(checked.graph.experiment.graph.len(), "node");
                say!("{}: ok, {nodes}, {stages}", file.display());
            }
            Ok(Err(problems)) => {
                let count = read::print(&problems);
                eprintln!("{}: {}", file.display(), counted(count, "problem"));
                found += count;
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                unreadable += 1;
            }
        }
    }
    Ok(match (unreadable, found) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        _ => ExitCode::from(2),
    })
}

fn counted(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}
