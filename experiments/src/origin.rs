//! `origin.json`: what a run was made from, so that it can be made again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use schemas::checkpoint::hex;
use schemas::graph::Graph;
use schemas::handoff::Waiver;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where a run comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Origin {
    /// Version of the program.
    pub version: String,
    /// Commit of the folder that it was started in, when that is a git checkout.
    pub git: Option<String>,
    /// Name of the machine.
    pub host: String,
    /// Seed of all draws.
    pub seed: u64,
    /// Command line.
    pub command: Vec<String>,
    /// Folder of the experiment file; relative paths are looked up here too.
    pub base: PathBuf,
    /// Hash of graph, curriculum and seed. A run resumes only under the same.
    pub graph: String,
    /// SHA-256 of every weights file, those of adapters too.
    pub weights: BTreeMap<String, String>,
    /// What begins fresh or is dropped between stages, because the experiment says so.
    #[serde(default)]
    pub waivers: Vec<Waiver>,
    /// The stage that runs alone; all of them when absent.
    #[serde(default)]
    pub stage: Option<String>,
    /// The checkpoint of another run that this one begins with.
    #[serde(default)]
    pub from: Option<PathBuf>,
}

impl Origin {
    /// Describes a run that begins now.
    pub fn of(graph: &Graph, base: &Path) -> Self {
        let mut weights = BTreeMap::new();
        for node in graph.stages.iter().flat_map(|stage| stage.nodes.values()) {
            let adapters = node.spec.lora.as_ref().and_then(|lora| lora.from.as_ref());
            let adapters = adapters.map(|folder| folder.join("adapter_model.safetensors"));
            for file in node.spec.weights.iter().chain(&adapters) {
                if let Ok(bytes) = fs::read(file) {
                    weights.insert(file.display().to_string(), hex(&Sha256::digest(bytes)));
                }
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git: output("git", &["rev-parse", "HEAD"]),
            host: output("hostname", &[]).unwrap_or_default(),
            seed: graph.experiment.seed,
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            base: base.to_owned(),
            graph: graph_hash(graph),
            weights,
            waivers: graph.waivers.clone(),
            stage: None,
            from: None,
        }
    }
}

/// Hash of what decides the numbers: graph, curriculum and seed, but not placement or observers.
pub fn graph_hash(graph: &Graph) -> String {
    let experiment = &graph.experiment;
    let parts = (&experiment.graph, &experiment.curriculum, experiment.seed);
    let text = serde_json::to_vec(&parts).expect("an experiment is plain data");
    hex(&Sha256::digest(text))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
