//! A progress bar with the live loss and the time left; plain lines when not on a terminal.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use schemas::node::Notice;
use serde::Deserialize;

use crate::clock::{Clock, Moment, RealClock};
use crate::observer::{self, Happening, Observer, Open, Verdict};

/// Options and state.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// Seconds between plain lines.
    every: f64,
    #[serde(skip)]
    bar: Option<ProgressBar>,
    #[serde(skip)]
    clock: Option<Arc<dyn Clock>>,
    #[serde(skip)]
    stage: Option<Stage>,
    #[serde(skip)]
    loss: Option<f64>,
}

struct Stage {
    name: String,
    first: u64,
    end: u64,
    total: u64,
    began: Moment,
    said: Moment,
}

impl Default for Progress {
    fn default() -> Self {
        Self { every: 10.0, bar: None, clock: None, stage: None, loss: None }
    }
}

impl Open for Progress {
    fn open(&mut self, _: &Path) -> Result<(), String> {
        self.clock = Some(Arc::new(RealClock::start()));
        if stderr().is_terminal() {
            let bar = ProgressBar::new(0);
            let style = "{prefix:>14} [{bar:30}] {pos}/{len} {msg} {elapsed} (left {eta})";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            self.bar = Some(bar);
        }
        Ok(())
    }
}

impl Progress {
    fn now(&self) -> Moment {
        self.clock.as_ref().map_or(Moment::at(0.0), |clock| clock.now())
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn stepped(&mut self, step: u64, loss: Option<f64>) {
        self.loss = loss.map(|new| self.loss.map_or(new, |old| 0.9 * old + 0.1 * new));
        let now = self.now();
        let shown = self.loss.map_or(String::new(), |loss| format!("loss {loss:.4}"));
        if let Some(bar) = &self.bar {
            let first = self.stage.as_ref().map_or(0, |stage| stage.first);
            bar.set_position(step + 1 - first);
            bar.set_message(shown);
            return;
        }
        let Some(stage) = &mut self.stage else { return };
        let last = step + 1 == stage.end;
        if now.since(stage.said) < self.every && !last {
            return;
        }
        stage.said = now;
        let done = (step + 1 - stage.first).max(1) as f64;
        let pace = now.since(stage.began) / done;
        let left = pace * (stage.end - step - 1) as f64;
        let (name, total) = (&stage.name, stage.total);
        let text = format!(
            "{name}: step {}/{total} {shown}, {:.0} ms a step, {left:.0} s left in the stage",
            step + 1,
            1000.0 * pace
        );
        self.line(&text);
    }
}

impl Observer for Progress {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        match happening {
            Happening::StageBegan { stage, step, end, total } => {
                let now = self.now();
                self.loss = None;
                if let Some(bar) = &self.bar {
                    bar.reset();
                    bar.set_length(end - step);
                    bar.set_prefix(stage.clone());
                }
                self.stage = Some(Stage {
                    name: stage.clone(),
                    first: *step,
                    end: *end,
                    total: *total,
                    began: now,
                    said: now,
                });
            }
            Happening::Stepped { step, rows, .. } => {
                let mut own = rows.iter().filter(|row| row.node == "supervisor");
                let loss = own.find(|row| row.metric == "loss").map(|row| row.value);
                self.stepped(*step, loss);
            }
            Happening::Noticed { node, notice: Notice::Quarantined { file, reason } } => {
                self.line(&format!("warning: `{node}` leaves out {file}: {reason}"));
            }
            Happening::Rewound { step, cause } => {
                self.line(&format!("warning: {cause}; going on from step {step}"));
            }
            Happening::Saved { .. } => {}
            Happening::Ended => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
        Verdict::GoOn
    }
}

/// Observer `progress`.
pub const ENTRY: observer::Entry = observer::entry::<Progress>();
