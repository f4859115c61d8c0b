//! Starts the `playhouse` command and keeps what it printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// All of it, as a snapshot keeps it.
    pub fn shown(&self) -> String {
        let Self { code, out, err } = self;
        let parts = [("", out), ("standard error:\n", err)].into_iter();
        let parts = parts.filter(|(_, text)| !text.is_empty());
        let text: Vec<String> = parts.map(|(title, text)| format!("{title}{text}")).collect();
        format!("{}\nexit code: {code}", text.join("\n").trim_end())
    }

    /// Standard output of a command that must work.
    pub fn done(self) -> String {
        assert_eq!(self.code, 0, "{}", self.shown());
        self.out
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of a workspace").to_owned()
}

/// Runs `program`, the command built with the tests, in a folder. Variables that set values are removed.
pub fn playhouse(program: &str, folder: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLAYHOUSE_")) {
        command.env_remove(name);
    }
    let output = command.args(arguments).current_dir(folder).output().expect("the command starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran {
        code: output.status.code().expect("the command was not killed"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// Files below a folder of the repository with this ending, as paths from its root, sorted.
pub fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut open = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("a readable folder").path();
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            if path.is_dir() && !hidden && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Experiments of the repository, without overlays.
pub fn experiments() -> Vec<PathBuf> {
    let mut found = files("experiments", "yaml");
    found.retain(|file| !is_overlay(file));
    found
}

/// Overlays of the repository.
pub fn overlays() -> Vec<PathBuf> {
    let mut found = files("experiments", "yaml");
    found.retain(|file| is_overlay(file));
    found
}

/// Whether a file says so in its first line.
fn is_overlay(file: &Path) -> bool {
    let text = fs::read_to_string(root().join(file)).expect("a readable file");
    text.starts_with("# Overlay: ")
}
