use std::process::ExitCode;

use crate::out::say;

/// List all kinds
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Prints kinds and observers, one line each.
pub(crate) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    for (kind, about, _) in modules::REGISTRY {
        say!("{kind:<28} {about}");
    }
    for (name, about, _) in actors::OBSERVERS {
        say!("observers/{name:<18} {about}");
    }
    Ok(ExitCode::SUCCESS)
}
