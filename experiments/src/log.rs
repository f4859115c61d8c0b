//! Logs: warnings on standard error, and what happened to a run in its `run.log`.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::OnceLock;

use actors::observer::{Happening, Observer, Verdict};
use anyhow::Context as _;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// The log of the run that this process supervises, once there is one.
static RUN: OnceLock<File> = OnceLock::new();

/// Writes into the log of the run; into nothing before there is one.
struct ToRun;

impl io::Write for ToRun {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match RUN.get() {
            // A full disk ends the run elsewhere, with a message; the log may lack its end.
            Some(mut file) => file.write(bytes).or(Ok(bytes.len())),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to log. `PLAYHOUSE_LOG` sets what goes to standard error, as `RUST_LOG` does elsewhere.
pub(crate) fn begin() {
    let wanted =
        EnvFilter::try_from_env("PLAYHOUSE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = io::stderr().is_terminal();
    let people = fmt::layer().with_ansi(colours).with_writer(io::stderr).with_filter(wanted);
    let run =
        fmt::layer().with_ansi(false).with_writer(|| ToRun).with_filter(EnvFilter::new("info"));
    tracing_subscriber::registry().with(people).with(run).init();
}

/// Logs into `run.log` of a run directory from now on.
pub(crate) fn into(run: &Path) -> anyhow::Result<()> {
    let path = run.join("run.log");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    // A process supervises one run; a second one would go on in the first one's log.
    let _ = RUN.set(file);
    Ok(())
}

/// Logs what happens to a run beside its steps.
pub(crate) struct Log;

impl Observer for Log {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        match happening {
            Happening::StageBegan { stage, step, end, .. } => {
                tracing::info!(stage, step, end, "a stage begins");
            }
            Happening::Saved { step } => tracing::info!(step, "a checkpoint is written"),
            Happening::Rewound { step, cause } => tracing::info!(step, cause, "the run goes back"),
            Happening::Noticed { node, notice } => tracing::info!(node, ?notice, "noticed"),
            Happening::Ended => tracing::info!("the run is over"),
            Happening::Stepped { .. } => {}
        }
        Verdict::GoOn
    }
}
