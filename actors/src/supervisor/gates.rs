//! What ends a stage before its last step.

use std::collections::VecDeque;
use std::path::Path;

use schemas::stage::GateConfig;

use super::SELF;
use crate::record::{self, Row};

/// What one gate has seen.
#[derive(Debug, Default)]
struct Gate {
    /// The newest values.
    window: VecDeque<f64>,
    best: Option<f64>,
    /// Steps since the mean was better than ever.
    worse: u64,
}

impl Gate {
    /// Takes a value; says whether the gate is open, and why.
    fn take(&mut self, config: &GateConfig, value: f64) -> Option<String> {
        self.window.push_back(value);
        if self.window.len() as u64 > config.over {
            self.window.pop_front();
        }
        if (self.window.len() as u64) < config.over {
            return None;
        }
        let mean = self.window.iter().sum::<f64>() / self.window.len() as f64;
        let (name, over) = (&config.metric, config.over);
        let said = |how: String| Some(format!("{name} is {mean:.4} over {over} steps, {how}"));
        if let Some(above) = config.above.filter(|above| mean > *above) {
            return said(format!("above {above}"));
        }
        if let Some(below) = config.below.filter(|below| mean < *below) {
            return said(format!("below {below}"));
        }
        let patience = config.plateau?;
        let falls = name.ends_with("loss") || name.ends_with("perplexity");
        let gain = |best: f64| if falls { best - mean } else { mean - best };
        if self.best.is_none_or(|best| gain(best) > config.by) {
            (self.best, self.worse) = (Some(mean), 0);
            return None;
        }
        self.worse += 1;
        (self.worse >= patience).then(|| format!("{name} is no better for {patience} steps"))
    }
}

/// All gates of a stage.
#[derive(Debug, Default)]
pub(super) struct Gates(Vec<Gate>);

impl Gates {
    /// Takes the numbers of a step; says why the stage is over, if it is.
    pub(super) fn take(&mut self, configs: &[GateConfig], rows: &[Row]) -> Option<String> {
        self.0.resize_with(configs.len(), Gate::default);
        let mut opened = None;
        for (gate, config) in self.0.iter_mut().zip(configs) {
            let (node, metric) = config.metric.split_once('.').unwrap_or((SELF, &config.metric));
            let row = rows.iter().find(|row| row.node == node && row.metric == metric);
            // A medium that does not come in this step measures nothing.
            let why = row.and_then(|row| gate.take(config, row.value));
            opened = opened.or(why);
        }
        opened
    }

    /// What the gates of a stage had seen, from the numbers that are written down.
    pub(super) fn again(configs: &[GateConfig], stage: &str, file: &Path) -> Result<Self, String> {
        let mut gates = Self::default();
        if configs.is_empty() {
            return Ok(gates);
        }
        let rows = record::read(file).map_err(|error| error.to_string())?;
        let mut rows = rows.into_iter().filter(|row| row.stage == stage).peekable();
        while let Some(first) = rows.next() {
            let step = first.step;
            let mut all = vec![first];
            while let Some(row) = rows.next_if(|row| row.step == step) {
                all.push(row);
            }
            gates.take(configs, &all);
        }
        Ok(gates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> GateConfig {
        serde_json::from_str(text).unwrap()
    }

    fn row(step: u64, value: f64) -> Row {
        let (stage, node, metric) = ("s".to_owned(), "judge".to_owned(), "accuracy".to_owned());
        Row { stage, step, node, metric, value }
    }

    #[test]
    fn a_gate_opens_when_the_mean_is_above() {
        let configs = [config(r#"{"metric": "judge.accuracy", "above": 0.5, "over": 3}"#)];
        let mut gates = Gates::default();
        let values = [0.9, 0.0, 0.5, 0.9, 0.9];
        let mut steps = values.iter().zip(0..);
        let opened = steps.position(|(v, step)| gates.take(&configs, &[row(step, *v)]).is_some());
        assert_eq!(opened, Some(4));
    }

    #[test]
    fn a_plateau_counts_steps_without_a_gain() {
        let text = r#"{"metric": "judge.accuracy", "plateau": 3, "by": 0.01, "over": 1}"#;
        let mut gates = Gates::default();
        let values = [0.1, 0.2, 0.3, 0.305, 0.2, 0.309];
        let mut steps = values.iter().zip(0..);
        let configs = [config(text)];
        let opened = steps.position(|(v, step)| gates.take(&configs, &[row(step, *v)]).is_some());
        assert_eq!(opened, Some(5));
    }
}
