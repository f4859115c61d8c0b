use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::out::say;

/// Write the smallest experiment that checks and runs
#[derive(clap::Args)]
pub(crate) struct Args {
    /// File to write, for example `my/first.yaml`
    file: PathBuf,
}

const SMALLEST: &str = include_str!("../../templates/smallest.yaml");

/// Writes the file; never overwrites one.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = args.file.with_extension("yaml");
    let shown = file.display();
    if file.exists() {
        bail!("{shown} exists already; choose another name");
    }
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&file, SMALLEST).with_context(|| format!("cannot write {shown}"))?;
    say!("wrote {shown}; run it with `playhouse run {shown}`");
    Ok(ExitCode::SUCCESS)
}
