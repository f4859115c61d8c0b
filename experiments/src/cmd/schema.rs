use std::process::ExitCode;

use crate::schema;

/// Print the JSON Schema of experiment files, for editors
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Prints what `schemas/json/experiment.schema.json` holds.
pub(crate) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    print!("{}", schema::text());
    Ok(ExitCode::SUCCESS)
}
