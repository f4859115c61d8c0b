//! Writes parts of checkpoints beside the work, and commits a checkpoint when all are there.
//!
//! A node hands over its state at a step boundary without copying it; one thread per process
//! writes it. The supervisor's process collects the parts and commits the manifest last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crossbeam_channel::Sender;
use schemas::checkpoint::{self, CheckpointError, FORMAT, Manifest, PartFile};
use schemas::node::Part;

use crate::message::{Event, Generation, What};
use crate::node_actor::Reporter;

/// One part to write.
pub struct Job {
    /// Generation of the node.
    pub generation: Generation,
    /// The node.
    pub node: String,
    /// Folder of the checkpoint before it is committed.
    pub folder: PathBuf,
    /// Number of the checkpoint.
    pub step: u64,
    /// The state.
    pub part: Part,
    /// Way to the supervisor.
    pub report: Reporter,
}

/// Starts the writing thread of a process.
pub fn start_writer() -> Sender<Job> {
    let (sender, jobs) = crossbeam_channel::unbounded::<Job>();
    let run = move || {
        for job in jobs {
            let write = || checkpoint::write_part(&job.folder, &job.node, &job.part);
            // A device that fails while its tensors are read panics.
            let what = match catch_unwind(AssertUnwindSafe(write)) {
                Ok(Ok(part)) => What::Saved { step: job.step, part },
                Ok(Err(error)) => What::Failed { error: error.to_string(), final_: true },
                Err(_) => {
                    let error = "panicked while its state was written".to_owned();
                    What::Failed { error, final_: false }
                }
            };
            (job.report)(Event { generation: job.generation, node: job.node, what });
        }
    };
    let thread = std::thread::Builder::new().name("checkpoint-writer".to_owned());
    if let Err(error) = thread.spawn(run) {
        tracing::error!(%error, "cannot start the checkpoint writer");
    }
    sender
}

/// When checkpoints are made and how many stay.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Steps between checkpoints.
    pub every: u64,
    /// Checkpoints that stay.
    pub keep: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { every: 100, keep: 3 }
    }
}

/// A checkpoint on its way.
#[derive(Debug)]
struct Pending {
    aside: PathBuf,
    stage: String,
    step: u64,
    metrics_bytes: u64,
    waiting: BTreeSet<String>,
    parts: BTreeMap<String, PartFile>,
}

/// What is said when no checkpoint is left to go back to.
pub(crate) const NONE_LEFT: &str = "there is no older checkpoint that can be used: put the file back \
    from a copy, or begin a new run";

/// Collects parts and commits.
#[derive(Debug)]
pub struct Checkpointer {
    folder: PathBuf,
    graph: String,
    keep: usize,
    /// Steps between stages: their checkpoints stay.
    boundaries: BTreeSet<u64>,
    pending: Option<Pending>,
    attempts: u64,
    /// Parts of the last committed checkpoint, for nodes that did not change since.
    last: Option<(PathBuf, Manifest)>,
}

impl Checkpointer {
    /// Checkpoints in `folder`, of a graph with this hash. One of another graph is refused.
    pub fn open(folder: &Path, graph: &str, keep: usize) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(|error| CheckpointError::Io {
            what: format!("cannot make {}", folder.display()),
            error,
        })?;
        checkpoint::sweep(folder)?;
        let broken = checkpoint::broken(folder);
        for error in &broken {
            tracing::warn!(%error, "a checkpoint is damaged and left out");
        }
        let last = checkpoint::list(folder).pop().map(|(manifest, path)| (path, manifest));
        // Work that was done is not thrown away without a word.
        if last.is_none()
            && let Some(error) = broken.first()
        {
            let file = folder.display().to_string();
            let reason = format!("no checkpoint is whole ({error}); {NONE_LEFT}");
            return Err(CheckpointError::Damaged { file, reason });
        }
        if let Some((path, _)) = last.as_ref().filter(|(_, manifest)| manifest.graph != graph) {
            let reason = "belongs to another graph or curriculum".to_owned();
            return Err(CheckpointError::Damaged { file: path.display().to_string(), reason });
        }
        let (folder, graph) = (folder.to_owned(), graph.to_owned());
        let boundaries = BTreeSet::new();
        Ok(Self { folder, graph, keep, boundaries, pending: None, attempts: 0, last })
    }

    /// Begins with a checkpoint of another run, unless there is one of this run. Its numbers are not this run's.
    pub fn begin_with(&mut self, (folder, manifest): (PathBuf, Manifest)) {
        let manifest = Manifest { metrics_bytes: 0, ..manifest };
        self.last.get_or_insert((folder, manifest));
    }

    /// Keeps the checkpoints of these steps, whatever else is removed.
    pub fn keep_boundaries(&mut self, steps: impl IntoIterator<Item = u64>) {
        self.boundaries.extend(steps);
    }

    /// Goes back to the newest checkpoint whose steps are all in the record of a run.
    pub fn fit(&mut self, record: &Path) -> Result<(), CheckpointError> {
        let there = fs::metadata(record).map_or(0, |file| file.len());
        while let Some((path, manifest)) = self.last.as_ref()
            && manifest.metrics_bytes > there
        {
            let shown = path.display();
            let needed = manifest.metrics_bytes;
            let has = if record.exists() { format!("has {there}") } else { "is missing".into() };
            let reason = format!("{has}, {shown} needs {needed} bytes");
            let file = record.display().to_string();
            if self.step_back() {
                tracing::warn!(%file, %reason, "numbers are gone; going back to an older checkpoint");
            } else {
                let reason = format!("{reason}; {NONE_LEFT}");
                return Err(CheckpointError::Damaged { file, reason });
            }
        }
        Ok(())
    }

    /// Goes back behind the newest checkpoint, which is damaged; false when none is older.
    pub fn step_back(&mut self) -> bool {
        let Some((_, damaged)) = self.last.take() else { return false };
        let found = checkpoint::list(&self.folder).into_iter();
        let mut older = found.filter(|(m, _)| m.step < damaged.step && m.graph == self.graph);
        self.last = older.next_back().map(|(manifest, path)| (path, manifest));
        self.last.is_some()
    }

    /// Nodes that the checkpoint on its way waits for.
    pub fn waiting(&self) -> Vec<String> {
        self.pending.iter().flat_map(|pending| pending.waiting.iter().cloned()).collect()
    }

    /// The newest committed checkpoint.
    pub fn newest(&self) -> Option<&(PathBuf, Manifest)> {
        self.last.as_ref()
    }

    /// The committed checkpoint of a step.
    pub fn at(&self, step: u64) -> Option<(PathBuf, Manifest)> {
        let found = checkpoint::list(&self.folder).into_iter();
        let mut found = found.filter(|(m, _)| m.step == step && m.graph == self.graph);
        found.next_back().map(|(manifest, path)| (path, manifest))
    }

    /// Whether a checkpoint is being written.
    pub fn busy(&self) -> bool {
        self.pending.is_some()
    }

    /// Begins a checkpoint; gives the folder that nodes write into. Nodes in `changed` write,
    /// the others keep their last part.
    pub fn begin(
        &mut self,
        (stage, step): (&str, u64),
        metrics_bytes: u64,
        changed: &BTreeSet<String>,
    ) -> Result<PathBuf, CheckpointError> {
        self.attempts += 1;
        let aside = checkpoint::aside(&self.folder, stage, step, self.attempts);
        let fail = |error| CheckpointError::Io {
            what: format!("cannot prepare {}", aside.display()),
            error,
        };
        fs::create_dir_all(&aside).map_err(fail)?;
        let mut parts = BTreeMap::new();
        if let Some((path, manifest)) = &self.last {
            for (node, part) in manifest.parts.iter().filter(|(n, _)| !changed.contains(*n)) {
                let (from, to) = (path.join(&part.file), aside.join(&part.file));
                if fs::hard_link(&from, &to).is_err() {
                    fs::copy(&from, &to).map_err(fail)?;
                }
                parts.insert(node.clone(), part.clone());
            }
        }
        let (stage, waiting) = (stage.to_owned(), changed.clone());
        let folder = aside.clone();
        self.pending = Some(Pending { aside, stage, step, metrics_bytes, waiting, parts });
        Ok(folder)
    }

    /// Takes a written part; commits when it was the last one.
    pub fn take(
        &mut self,
        node: &str,
        step: u64,
        part: PartFile,
    ) -> Result<Option<&(PathBuf, Manifest)>, CheckpointError> {
        let Some(pending) = self.pending.as_mut().filter(|p| p.step == step) else {
            return Ok(None);
        };
        pending.waiting.remove(node);
        pending.parts.insert(node.to_owned(), part);
        self.commit_if_complete()
    }

    /// Commits the checkpoint when nothing is missing.
    pub fn commit_if_complete(&mut self) -> Result<Option<&(PathBuf, Manifest)>, CheckpointError> {
        if self.pending.as_ref().is_none_or(|pending| !pending.waiting.is_empty()) {
            return Ok(None);
        }
        let Some(pending) = self.pending.take() else { return Ok(None) };
        let manifest = Manifest {
            format: FORMAT,
            stage: pending.stage,
            step: pending.step,
            graph: self.graph.clone(),
            metrics_bytes: pending.metrics_bytes,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            parts: pending.parts,
        };
        let path = checkpoint::commit(&self.folder, &pending.aside, &manifest)?;
        self.last = Some((path, manifest));
        checkpoint::prune(&self.folder, self.keep, &self.boundaries)?;
        Ok(self.last.as_ref())
    }

    /// Gives up the checkpoint on its way.
    pub fn abandon(&mut self) {
        if let Some(pending) = self.pending.take() {
            // A part may still be under way; the rest is swept at the next start.
            let _ = fs::remove_dir_all(&pending.aside);
        }
    }
}
