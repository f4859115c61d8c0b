//! Ends the run when a loss stays NaN or infinite.

use schemas::graph::End;
use serde::Deserialize;

use crate::observer::{self, Happening, Observer, Open, Verdict};

/// Options and state.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopOnNan {
    /// Bad steps in a row that end the run.
    patience: u32,
    #[serde(skip)]
    bad: u32,
}

impl Default for StopOnNan {
    fn default() -> Self {
        Self { patience: 1, bad: 0 }
    }
}

impl Open for StopOnNan {}

impl Observer for StopOnNan {
    fn observe(&mut self, happening: &Happening) -> Verdict {
        let Happening::Stepped { step, rows, .. } = happening else { return Verdict::GoOn };
        let Some(row) = rows.iter().find(|row| !row.value.is_finite()) else {
            self.bad = 0;
            return Verdict::GoOn;
        };
        self.bad += 1;
        if self.bad < self.patience.max(1) {
            return Verdict::GoOn;
        }
        let end = End::new(&row.node, &row.metric);
        let times = self.bad;
        Verdict::Stop(format!("`{end}` is {} at step {step}, {times} times in a row", row.value))
    }
}

/// Observer `stop_on_nan`.
pub const ENTRY: observer::Entry = observer::entry::<StopOnNan>();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Row;

    fn stepped(value: f64) -> Happening {
        let row =
            Row { stage: "s".into(), step: 4, node: "align".into(), metric: "loss".into(), value };
        Happening::Stepped { stage: "s".into(), step: 4, rows: vec![row] }
    }

    #[test]
    fn only_bad_steps_in_a_row_stop_the_run() {
        let mut observer = StopOnNan { patience: 2, bad: 0 };
        assert_eq!(observer.observe(&stepped(f64::NAN)), Verdict::GoOn);
        assert_eq!(observer.observe(&stepped(1.0)), Verdict::GoOn);
        assert_eq!(observer.observe(&stepped(f64::INFINITY)), Verdict::GoOn);
        let Verdict::Stop(reason) = observer.observe(&stepped(f64::NAN)) else { panic!() };
        assert_eq!(reason, "`align.loss` is NaN at step 4, 2 times in a row");
    }
}
