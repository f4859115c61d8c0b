//! pyzmq's side of the benchmark: a Python process that measures one cell when asked.

use std::io::{BufRead, BufReader, Error, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;

use super::TransportError;
use super::bench_cells::Cell;
use super::bench_sink::failed;

const SCRIPT: &str = include_str!("bench.py");

/// What the script answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<String>,
    figures: Vec<f64>,
}

/// The process; it ends with its input.
pub(super) struct Python {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Python {
    /// Starts the script with this Python.
    pub(super) fn start(python: &Path) -> Result<Self, TransportError> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed("start"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("start")(Error::other("no pipes")));
        };
        let mut python = Self { child, input: Some(input), output: BufReader::new(output) };
        python.answer()?;
        Ok(python)
    }

    /// Figures of one cell that is pyzmq's.
    pub(super) fn measure(&mut self, cell: Cell) -> Result<Vec<f64>, TransportError> {
        let (link, what, size, total) = match cell {
            Cell::PyTcp(size) => ("tcp", "rate", size, 1 << 29),
            Cell::PyHandOver(size) => ("ipc", "hand_over", size, 0),
            _ => ("ipc", "rate", cell.name().1, 1 << 29),
        };
        let asked = serde_json::json!({ "link": link, "what": what, "size": size, "total": total });
        if let Some(input) = &mut self.input {
            writeln!(input, "{asked}").map_err(failed("ask"))?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Vec<f64>, TransportError> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(failed("hear of"))?;
        let answer: Answer =
            serde_json::from_str(&line).map_err(|error| failed("understand")(error.into()))?;
        match answer.error {
            Some(error) => Err(failed("use")(Error::other(error))),
            None => Ok(answer.figures),
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
