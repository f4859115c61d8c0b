use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use actors::transport::Keys;
use anyhow::{Context as _, bail};

use crate::out::say;

/// Make CURVE key pairs for a supervisor and its agents
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to write into; it is made readable by its owner only
    folder: PathBuf,
    /// Names of hosts; `supervisor` is always made
    names: Vec<String>,
}

/// Writes `<name>.key` and `<name>.key_secret` for each name that has none.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.folder)
        .with_context(|| format!("cannot make {}", args.folder.display()))?;
    let supervisor = actors::agent::SUPERVISOR.to_owned();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if let Some(bad) = args.names.iter().find(|name| name.is_empty() || !name.chars().all(good)) {
        bail!("`{bad}` is not a name of a host: use letters, digits, `_` and `-`");
    }
    for name in std::iter::once(&supervisor).chain(&args.names) {
        if args.folder.join(format!("{name}.key_secret")).exists() {
            say!("{name}: kept");
            continue;
        }
        let (public, secret) = Keys::generate()?.save(&args.folder, name)?;
        say!("{name}: {} (secret: {})", public.display(), secret.display());
    }
    say!("give each host its own secret and supervisor.key; give the supervisor all .key files");
    Ok(ExitCode::SUCCESS)
}
