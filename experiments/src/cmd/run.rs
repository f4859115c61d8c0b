use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use actors::node_actor::Factory;
use actors::observer::Observer;
use actors::supervisor::Outcome;
use anyhow::{Context as _, bail};
use schemas::checkpoint::{self, Manifest};
use schemas::graph::Graph;

use crate::compose::{self, Extras};
use crate::log::{self, Log};
use crate::origin::Origin;
use crate::read::{self, Overrides};
use crate::summary::Summary;

/// Run an experiment
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Experiment file
    file: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Directory of the run; `runs/<name>-<number>` when absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Run this stage alone
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Run, or checkpoint, of another run to begin with: the one at the beginning of `--stage`
    #[arg(long, value_name = "PATH", requires = "stage")]
    from: Option<PathBuf>,
}

/// Checks, prepares a run directory, and runs.
pub(crate) fn run(args: &Args, factory: &Factory) -> anyhow::Result<ExitCode> {
    let checked = match read::experiment(&args.file, &args.overrides)? {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => free_directory(&args.file),
    };
    if out.join("experiment.yaml").exists() {
        let shown = out.display();
        bail!("{shown} holds a run already; go on with `playhouse resume {shown}`");
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let here = std::env::current_dir().context("cannot find this folder")?;
    let base = here.join(&checked.around.base);
    let (stage, from) = (args.stage.clone(), args.from.as_ref().map(|from| here.join(from)));
    let origin = Origin { stage, from, ..Origin::of(&checked.graph, &base) };
    let beginning = Beginning::of(&checked.graph, &origin)?;
    let text = serde_json::to_string_pretty(&origin)?;
    write(&out, "origin.json", &text)?;
    write(&out, "experiment.yaml", &checked.tree.to_yaml())?;
    go(checked.graph, &out, factory, beginning)
}

/// Where a run begins, when that is not the first stage.
#[derive(Default)]
pub(crate) struct Beginning {
    only: Option<usize>,
    base: Option<(PathBuf, Manifest)>,
}

impl Beginning {
    /// As a run's origin says.
    pub(crate) fn of(graph: &Graph, origin: &Origin) -> anyhow::Result<Self> {
        let Some(name) = &origin.stage else { return Ok(Self::default()) };
        let only = graph.stages.iter().position(|stage| stage.name == *name);
        let names: Vec<_> = graph.stages.iter().map(|stage| format!("`{}`", stage.name)).collect();
        let only = only.with_context(|| {
            format!("no stage is named `{name}`; there are {}", names.join(", "))
        })?;
        let Some(from) = &origin.from else {
            if only > 0 {
                bail!(
                    "stage `{name}` begins with what the stages before it made; name their run with `--from`"
                );
            }
            return Ok(Self { only: Some(only), base: None });
        };
        let step = graph.stages[only].first_step;
        let own = checkpoint::name(name, step);
        let places = [from.clone(), from.join(&own), from.join("checkpoints").join(&own)];
        let place = places.iter().find(|place| place.ends_with(&own) && place.is_dir());
        let place = place.with_context(|| {
            let shown = from.display();
            format!("no checkpoint `{own}` in {shown}: it is written when the stage before `{name}` ends")
        })?;
        let manifest = checkpoint::read_manifest(place)?;
        Ok(Self { only: Some(only), base: Some((place.clone(), manifest)) })
    }

    /// The step behind the last one.
    pub(crate) fn end(&self, graph: &Graph) -> u64 {
        let last = self.only.map(|only| &graph.stages[only]);
        last.map_or(graph.steps(), |stage| stage.first_step + stage.steps)
    }
}

/// Writes a file that is whole or absent.
fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let (aside, path) = (folder.join(format!(".{name}.partial")), folder.join(name));
    let written = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Runs to the end and prints what came of it.
pub(crate) fn go(
    graph: Graph,
    out: &Path,
    factory: &Factory,
    beginning: Beginning,
) -> anyhow::Result<ExitCode> {
    eprintln!("run directory: {}", out.display());
    log::into(out)?;
    let observers: Vec<Box<dyn Observer>> = vec![Box::new(Log)];
    let Beginning { only, base } = beginning;
    let extras = Extras { factory: factory.clone(), observers, only, base };
    let running = compose::begin(graph, out, extras)?;
    let interrupt = running.interrupter();
    let mut asked = false;
    ctrlc::set_handler(move || {
        if asked {
            #[expect(clippy::disallowed_methods, reason = "the second interrupt ends at once")]
            std::process::exit(130);
        }
        asked = true;
        eprintln!("stopping after this step; a checkpoint will be made (again to stop at once)");
        interrupt();
    })
    .context("cannot listen for interrupts")?;
    let outcome = running.wait()?;
    match outcome {
        Outcome::Done => {
            Summary::of(out, "done")?.print();
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { step } => {
            let shown = out.display();
            eprintln!("interrupted before step {step}; go on with `playhouse resume {shown}`");
            Ok(ExitCode::from(130))
        }
        Outcome::Failed { cause } => {
            eprintln!("error: {cause}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn free_directory(file: &Path) -> PathBuf {
    let stem = file.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy());
    let path = |number: u32| Path::new("runs").join(format!("{stem}-{number:03}"));
    (1..).map(path).find(|path| !path.exists()).expect("numbers do not end")
}
