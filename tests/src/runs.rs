//! Runs of the real command in processes of their own, interrupted and killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use actors::clock::{Clock as _, RealClock};
use tempfile::TempDir;

/// Seconds that anything may take; a test that waits longer fails and says for what.
pub const DEADLINE: f64 = 90.0;

/// The experiment of all these tests: two teachers, a mask from attention, a student that feeds
/// three losses, a moving average of it, a trained head; two stages that train, one that measures.
pub const EXPERIMENT: &str = include_str!("runs.yaml");

/// A folder with an experiment and its runs.
pub struct Place {
    folder: TempDir,
    program: &'static str,
}

impl Place {
    /// A folder with [`EXPERIMENT`].
    pub fn new(program: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Self { folder, program };
        place.write("experiment.yaml", EXPERIMENT);
        place
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// The command, with arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove(crate::faults::VARIABLE).env("TMPDIR", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// `playhouse run` into `out`, with an overlay of this text.
    pub fn run(&self, out: &str, overlay: &str) -> Command {
        let mut command = self.command(&["run", "experiment.yaml", "--out", out]);
        if !overlay.is_empty() {
            let name = format!("{out}.overlay.yaml");
            self.write(&name, overlay);
            command.args(["--with", &name]);
        }
        command
    }

    /// `playhouse resume` of `out`.
    pub fn resume(&self, out: &str) -> Command {
        self.command(&["resume", out])
    }

    /// The numbers of a run.
    pub fn metrics(&self, out: &str) -> String {
        fs::read_to_string(self.path(out).join("metrics.csv")).unwrap_or_default()
    }

    /// Steps that have begun to be written.
    pub fn steps(&self, out: &str) -> u64 {
        let text = self.metrics(out);
        let steps = text.lines().skip(1).filter_map(|l| l.split(',').nth(1)?.parse::<u64>().ok());
        steps.max().map_or(0, |last| last + 1)
    }

    /// Committed checkpoints, oldest first.
    pub fn checkpoints(&self, out: &str) -> Vec<(u64, PathBuf)> {
        let found = schemas::checkpoint::list(&self.path(out).join("checkpoints"));
        found.into_iter().map(|(manifest, path)| (manifest.step, path)).collect()
    }

    /// Waits until a run has a checkpoint and none is being written.
    pub fn settled(&self, out: &str) {
        let folder = self.path(out).join("checkpoints");
        until("checkpoints to be written", || {
            let entries = fs::read_dir(&folder).ok()?.flatten();
            let names: Vec<_> = entries.map(|e| e.file_name()).collect();
            let whole = names.iter().all(|name| !name.to_string_lossy().starts_with('.'));
            (whole && !names.is_empty()).then_some(())
        });
    }

    /// Agents that work for runs in this folder.
    pub fn agents(&self) -> Vec<i32> {
        let wanted = self.folder.path().to_string_lossy().into_owned();
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("\0agent\0") && line.contains(&wanted)
        })
        .collect()
    }

    /// Waits until no agent is left, and no socket.
    pub fn assert_alone(&self) {
        until("agents to end", || self.agents().is_empty().then_some(()));
        let left = || {
            let entries = fs::read_dir(self.folder.path()).expect("the folder").flatten();
            let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with("playhouse-")).collect::<Vec<_>>()
        };
        until("sockets to be removed", || left().is_empty().then_some(()));
    }
}

/// Asserts that a record begins like this one; names the first line that differs.
pub fn assert_begins(whole: &str, part: &str) {
    for (number, (expected, found)) in whole.lines().zip(part.lines()).enumerate() {
        assert_eq!(expected, found, "line {}", number + 1);
    }
    assert!(whole.starts_with(part), "{part:?} goes beyond {whole:?}");
}

/// Polls until something is there; panics with its name after [`DEADLINE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let clock = RealClock::start();
    let start = clock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let waited = clock.now().since(start);
        assert!(waited < DEADLINE, "waited {waited:.0} s for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A run under way; killed when the test fails.
pub struct Going {
    child: Child,
    log: PathBuf,
}

impl Going {
    /// Starts a command; what it prints is kept.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = fs::File::create(log).expect("a log");
        let both = file.try_clone().expect("a log");
        let child = command.stdout(file).stderr(both).spawn().expect("the command");
        Self { child, log: log.to_owned() }
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.id() as i32, name);
    }

    /// Waits for the end; gives status and what was printed.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let log = self.log.clone();
        let text = || fs::read_to_string(&log).unwrap_or_default();
        let status = until("the command to end", || self.child.try_wait().expect("a status"));
        (status, text())
    }

    /// What was printed so far.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, or the test has failed
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
pub fn signal(pid: i32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(status.expect("kill").success(), "cannot signal {pid}");
}

/// Runs a command to its end.
pub fn output(mut command: Command) -> Output {
    command.output().expect("the command")
}

/// Runs a command to its end; it must exit with this code. Gives what it printed.
pub fn exits(code: i32, command: Command) -> String {
    let output = output(command);
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}
