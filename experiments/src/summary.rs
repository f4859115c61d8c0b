//! `summary.json`: the run in a few numbers, read back from `metrics.csv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::out::say;

/// One number over a stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Mean over the first tenth of the stage.
    pub first: f64,
    /// Mean over the last tenth.
    pub last: f64,
    /// Mean over the whole stage.
    pub mean: f64,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Name.
    pub name: String,
    /// Steps done.
    pub steps: u64,
    /// `node.metric` over the stage.
    pub metrics: BTreeMap<String, Series>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `done`, `interrupted` or `failed`.
    pub outcome: String,
    /// Stages in the order they ran.
    pub stages: Vec<StageSummary>,
    /// Files that were left out, with the reason.
    pub quarantined: BTreeMap<String, String>,
}

type Values = BTreeMap<String, Vec<f64>>;

impl Summary {
    /// Reads the record of a run.
    pub fn of(run: &Path, outcome: &str) -> anyhow::Result<Self> {
        let path = run.join("metrics.csv");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut stages: Vec<(String, Values)> = Vec::new();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let [stage, _, node, metric, value] = fields[..] else { continue };
            if stages.last().is_none_or(|(name, _)| name != stage) {
                stages.push((stage.to_owned(), Values::new()));
            }
            let (Some((_, values)), Ok(value)) = (stages.last_mut(), value.parse()) else {
                continue;
            };
            values.entry(format!("{node}.{metric}")).or_default().push(value);
        }
        let stages = stages.into_iter().map(|(name, values)| StageSummary {
            steps: values.get("supervisor.loss").map_or(0, |v| v.len() as u64),
            metrics: values.into_iter().map(|(metric, v)| (metric, series(&v))).collect(),
            name,
        });
        Ok(Self {
            outcome: outcome.to_owned(),
            stages: stages.collect(),
            quarantined: quarantined(run),
        })
    }

    /// What a person wants to see at the end.
    pub fn print(&self) {
        for stage in &self.stages {
            let Some(loss) = stage.metrics.get("supervisor.loss") else { continue };
            say!(
                "{:<16} {:>5} steps   loss {:.4} -> {:.4}",
                stage.name,
                stage.steps,
                loss.first,
                loss.last
            );
        }
        if let Some(stage) = self.stages.last() {
            let judged = stage.metrics.iter().filter(|(name, _)| name.ends_with(".accuracy"));
            for (name, series) in judged {
                say!("{:<40} {:>5.1} %", name, 100.0 * series.mean);
            }
        }
        say!("quarantined files: {}", self.quarantined.len());
        for (file, reason) in &self.quarantined {
            say!("  {file}: {reason}");
        }
    }
}

fn series(values: &[f64]) -> Series {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let tenth = (values.len() / 10).max(1).min(values.len());
    Series {
        first: mean(&values[..tenth]),
        last: mean(&values[values.len() - tenth..]),
        mean: mean(values),
    }
}

/// Name of the file that lists what was left out.
pub const QUARANTINE: &str = "quarantined.jsonl";

fn quarantined(run: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(run.join(QUARANTINE)).unwrap_or_default();
    let read = |line: &str| serde_json::from_str::<(String, String)>(line).ok();
    text.lines().filter_map(read).collect()
}
