use std::process::ExitCode;

use crate::out::say;
use crate::schema;

/// Print the JSON Schema of experiment files, for editors
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Prints what `schemas/json/experiment.schema.json` holds.
pub(crate) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    say!("{}", schema::text().trim_end_matches('\n'));
    Ok(ExitCode::SUCCESS)
}
