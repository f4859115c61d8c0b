use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Subcommand;
use modules::shapes::{self, Options};

use crate::out::say;

/// Make data sets
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Shapes(Shapes),
}

/// Moving shapes: labelled H.264 clips whose look and motion are independent
///
/// Pitch names the shape, timbre the motion; only the sound tells the beats. Manifests have labels
/// (appearance, motion, beats), captions of what is seen, heard and said, questions with choices,
/// boxes and masks. Words are in vocab.txt and tokenizer.json. docs/src/moving_shapes.md describes
/// all files and fields.
#[derive(clap::Args)]
struct Shapes {
    /// Folder to write; a complete one with the same options is kept
    out: PathBuf,
    /// Clips to train on
    #[arg(long, default_value_t = Options::default().train)]
    train: usize,
    /// Clips to test on
    #[arg(long, default_value_t = Options::default().test)]
    test: usize,
    /// Longer videos with several events; half of them for testing
    #[arg(long, default_value_t = Options::default().untrimmed)]
    untrimmed: usize,
    /// Rows and columns in pixels; even
    #[arg(long, default_value_t = Options::default().size)]
    size: usize,
    /// Frames per clip
    #[arg(long, default_value_t = Options::default().frames)]
    frames: usize,
    /// Motion classes; even, at most 14
    #[arg(long, default_value_t = Options::default().motions)]
    motions: usize,
    /// Appearance classes; at most 24
    #[arg(long, default_value_t = Options::default().appearances)]
    appearances: usize,
    /// Leave out textures, patterned backgrounds and still dots
    #[arg(long)]
    plain: bool,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
}

/// Writes a data set.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let What::Shapes(shapes) = &args.what;
    let options = Options {
        train: shapes.train,
        test: shapes.test,
        untrimmed: shapes.untrimmed,
        size: shapes.size,
        frames: shapes.frames,
        motions: shapes.motions,
        appearances: shapes.appearances,
        seed: shapes.seed,
        clutter: !shapes.plain,
        ..Options::default()
    };
    let terminal = stderr().is_terminal();
    let said = AtomicUsize::new(0);
    let progress = |done: usize, all: usize| {
        let tenth = 10 * done / all.max(1);
        if said.fetch_max(tenth, Ordering::Relaxed) < tenth && terminal {
            eprint!("\rwriting {}: {done} of {all} files", shapes.out.display());
        }
    };
    let made = shapes::generate(&shapes.out, &options, &progress)?;
    if terminal {
        eprintln!();
    }
    let word = if made.reused { "found" } else { "wrote" };
    say!("{word} {} clips in {} ({})", made.files, made.dir.display(), made.encoder);
    if let Some(notice) = &made.notice {
        eprintln!("warning: {notice}");
    }
    Ok(ExitCode::SUCCESS)
}
