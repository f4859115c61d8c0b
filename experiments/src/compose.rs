//! From a checked graph to a running supervisor: the only place that knows modules and actors.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::{Actor, Addr, Arbiter, System};
use actors::checkpointer::{Checkpointer, Policy};
use actors::clock::RealClock;
use actors::crew::Crew;
use actors::edge::Directory;
use actors::fleet::{Fleet, Setup};
use actors::hosts::{Hosts, Remote};
use actors::message::Event;
use actors::node_actor::{Factory, Reporter};
use actors::observer::{Audience, Happening, Observer, Verdict};
use actors::record::Record;
use actors::supervisor::{Charge, Heard, Interrupt, Outcome, Start, Supervisor};
use anyhow::{Context as _, bail};
use schemas::checkpoint::Manifest;
use schemas::entry::find;
use schemas::experiment::ObserverConfig;
use schemas::graph::Graph;
use schemas::node::{NodeError, Notice};

use crate::origin::graph_hash;
use crate::summary::{QUARANTINE, Summary};

/// Makes nodes from their specs.
pub fn factory() -> Factory {
    Arc::new(|spec| match find(modules::REGISTRY, &spec.kind) {
        Some(entry) => (entry.build)(spec),
        None => Err(NodeError::Option {
            option: "kind".to_owned(),
            reason: format!("no kind is named `{}`", spec.kind),
        }),
    })
}

/// A run under way.
pub struct Running {
    supervisor: Addr<Supervisor>,
    /// Set by an interrupt: a supervisor that waits for agents reads no messages.
    stop: Arc<AtomicBool>,
    ended: crossbeam_channel::Receiver<Outcome>,
    run: PathBuf,
    _lock: File,
    /// Keeps the actors' threads.
    _system: actix::SystemRunner,
}

impl Running {
    /// Asks the run to stop at the next step boundary, from any thread.
    pub fn interrupter(&self) -> impl Fn() + Send + 'static {
        let (supervisor, stop) = (self.supervisor.clone(), self.stop.clone());
        move || {
            stop.store(true, Ordering::SeqCst);
            #[expect(clippy::disallowed_methods, reason = "an interrupt must not be lost")]
            supervisor.do_send(Interrupt { reason: String::new() });
        }
    }

    /// Waits for the end and writes `summary.json`.
    pub fn wait(self) -> anyhow::Result<Outcome> {
        let dead = |_| Outcome::Failed { cause: "the supervisor died".to_owned() };
        let outcome = self.ended.recv().unwrap_or_else(dead);
        let word = match &outcome {
            Outcome::Done => "done",
            Outcome::Interrupted { .. } => "interrupted",
            Outcome::Failed { .. } => "failed",
        };
        match self.summarize(word) {
            // The cause of the failure says more than what it entails.
            Err(error) if matches!(outcome, Outcome::Failed { .. }) => {
                tracing::warn!("{error:#}");
                Ok(outcome)
            }
            written => written.map(|()| outcome),
        }
    }

    fn summarize(&self, word: &str) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&Summary::of(&self.run, word)?)?;
        let path = self.run.join("summary.json");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What a run is started with, besides its graph.
pub struct Extras {
    /// Makes nodes in this process.
    pub factory: Factory,
    /// Observers of the caller's own.
    pub observers: Vec<Box<dyn Observer>>,
    /// The stage that runs alone; all of them when absent.
    pub only: Option<usize>,
    /// The checkpoint of another run that this one begins with.
    pub base: Option<(PathBuf, Manifest)>,
}

impl Default for Extras {
    fn default() -> Self {
        Self { factory: factory(), observers: Vec::new(), only: None, base: None }
    }
}

/// Starts a graph in a prepared run directory, from its newest checkpoint if it has one.
pub fn begin(graph: Graph, run: &Path, extras: Extras) -> anyhow::Result<Running> {
    let run = &std::path::absolute(run).context("cannot find the run directory")?;
    let lock = lock(run)?;
    let graph = Arc::new(graph);
    let system = System::new();
    let (outcome, ended) = crossbeam_channel::bounded(1);
    let stop = Arc::<AtomicBool>::default();
    let supervisor = start(&graph, run, extras, (outcome, &stop))?;
    #[expect(clippy::disallowed_methods, reason = "the first message")]
    supervisor.do_send(Start);
    Ok(Running { supervisor, stop, ended, run: run.to_owned(), _lock: lock, _system: system })
}

/// Runs a graph in a prepared run directory to its end.
pub fn run(graph: Graph, run: &Path) -> anyhow::Result<Outcome> {
    begin(graph, run, Extras::default())?.wait()
}

/// Two processes on one run directory would damage each other's files.
fn lock(run: &Path) -> anyhow::Result<File> {
    let path = run.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another process works on this run: {}", run.display())
        }
        Err(TryLockError::Error(error)) => {
            // Some network file systems have no locks.
            tracing::warn!(%error, path = %path.display(), "the run directory is not locked");
            Ok(file)
        }
    }
}

fn start(
    graph: &Arc<Graph>,
    run: &Path,
    extras: Extras,
    (outcome, wish): (crossbeam_channel::Sender<Outcome>, &Arc<AtomicBool>),
) -> anyhow::Result<Addr<Supervisor>> {
    let (policy, mut observers) = observers(graph, run)?;
    observers.extend(extras.observers);
    let checkpoints = run.join("checkpoints");
    let mut checkpointer = Checkpointer::open(&checkpoints, &graph_hash(graph), policy.keep)?;
    let record = run.join("metrics.csv");
    checkpointer.keep_boundaries(graph.stages.iter().map(|s| s.first_step + s.steps));
    checkpointer.fit(&record)?;
    if let Some(base) = extras.base {
        checkpointer.begin_with(base);
    }
    let record = Record::open(&record)?;
    // The supervisor and its observers need each other's address before either starts.
    let (events, inbox) = crossbeam_channel::bounded::<Addr<Supervisor>>(1);
    let late = Late::new(inbox);
    let (stop, heard) = (late.clone(), late.clone());
    let audience = Audience {
        observers,
        stop: Box::new(move |reason| {
            #[expect(clippy::disallowed_methods, reason = "a wish to stop must not be lost")]
            stop.get().do_send(Interrupt { reason });
        }),
        heard: Box::new(move || {
            #[expect(clippy::disallowed_methods, reason = "the end must not be lost")]
            heard.get().do_send(Heard);
        }),
    };
    let audience = Audience::start_in_arbiter(&Arbiter::new().handle(), move |_| audience);
    let report: Reporter = Arc::new(move |event: Event| {
        #[expect(clippy::disallowed_methods, reason = "events are few and must not be lost")]
        late.get().do_send(event);
    });
    let directory = Directory::default();
    let fleet = fleet(graph, &report, &directory, wish)?;
    let crew = Crew::new(extras.factory, report, directory);
    let hosts = Hosts::new(crew, graph.places(), fleet);
    let charge = Charge {
        graph: graph.clone(),
        hosts,
        record,
        checkpointer,
        policy,
        only: extras.only,
        audience,
        outcome,
        clock: Arc::new(RealClock::start()),
    };
    let arbiter = Arbiter::new();
    let supervisor =
        Supervisor::start_in_arbiter(&arbiter.handle(), move |_| Supervisor::new(charge));
    events.send(supervisor.clone()).context("the supervisor died")?;
    Ok(supervisor)
}

/// The agents of an experiment, if it places nodes on any.
fn fleet(
    graph: &Graph,
    report: &Reporter,
    directory: &Directory,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Option<Box<dyn Remote>>> {
    let experiment = &graph.experiment;
    let used: BTreeSet<&String> = experiment.place.values().collect();
    if used.is_empty() {
        return Ok(None);
    }
    let hosts = experiment.hosts.iter().filter(|(name, _)| used.contains(name));
    let setup = Setup {
        hosts: hosts.map(|(name, host)| (name.clone(), host.clone())).collect(),
        place: graph.places(),
        nodes: experiment.graph.keys().cloned().collect(),
        program: std::env::current_exe().context("cannot find this program")?,
        folder: std::env::temp_dir(), // paths of sockets must be short; a run's may not be
        keys: experiment.run.keys.clone(),
        stop: stop.clone(),
        report: report.clone(),
        directory: directory.clone(),
    };
    Ok(Some(Box::new(Fleet::start(setup).context("cannot open sockets for agents")?)))
}

/// An address that is known a moment later.
#[derive(Clone)]
struct Late {
    inbox: crossbeam_channel::Receiver<Addr<Supervisor>>,
    known: Arc<std::sync::OnceLock<Addr<Supervisor>>>,
}

impl Late {
    fn new(inbox: crossbeam_channel::Receiver<Addr<Supervisor>>) -> Self {
        Self { inbox, known: Arc::default() }
    }

    fn get(&self) -> &Addr<Supervisor> {
        self.known.get_or_init(|| self.inbox.recv().expect("the supervisor is sent at the start"))
    }
}

type Watching = (Policy, Vec<Box<dyn Observer>>);

fn observers(graph: &Graph, run: &Path) -> anyhow::Result<Watching> {
    let default = [ObserverConfig::Name("progress".into())];
    let given = &graph.experiment.observers;
    let configs = if given.is_empty() { &default[..] } else { given };
    let mut policy = Policy::default();
    let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Quarantine::open(run)?)];
    for config in configs {
        match config.kind() {
            "checkpoint" => {
                policy =
                    serde_json::from_value(config.options()).context("observer `checkpoint`")?;
            }
            "metrics_csv" => {} // every run has it
            kind => {
                let entry = actors::OBSERVERS.iter().find(|(name, _, _)| *name == kind);
                let (_, _, entry) = entry.with_context(|| format!("no observer `{kind}`"))?;
                let observer = (entry.make)(&config.options(), run)
                    .map_err(|reason| anyhow::anyhow!("observer `{kind}`: {reason}"))?;
                observers.push(observer);
            }
        }
    }
    Ok((policy, observers))
}

/// Keeps the list of files that were left out.
struct Quarantine {
    path: PathBuf,
}

impl Quarantine {
    fn open(run: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: run.join(QUARANTINE) })
    }
}

impl Observer for Quarantine {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        if let Happening::Noticed { notice: Notice::Quarantined { file, reason }, .. } = happening
            && let Ok(line) = serde_json::to_string(&(file, reason))
        {
            let file = OpenOptions::new().create(true).append(true).open(&self.path);
            if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
                tracing::error!(%error, path = %self.path.display(), "cannot write");
            }
        }
        Verdict::GoOn
    }
}
