//! Dependency direction, and the budgets that keep the code readable. Exceptions have a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::command::{files, root};

const CRATES: [&str; 5] = ["schemas", "modules", "actors", "experiments", "tests"];

/// Files of more than 400 lines, at most 600.
const LONG: [(&str, &str); 4] = [
    ("actors/src/node_actor.rs", "one actor: its state, its passes and its orders"),
    ("actors/src/supervisor.rs", "the main loop, and what it knows between two events"),
    ("modules/src/audio/beats.rs", "a network with a front end, positions and a head of its own"),
    (
        "modules/src/models/internvideo2.rs",
        "five position tables and two heads of one published network",
    ),
];

/// Functions of more than 60 lines, at most 90.
const LONG_FUNCTIONS: [(&str, &str); 0] = [];

/// Kinds without a tests module of their own.
const TESTED_ELSEWHERE: [(&str, &str); 3] = [
    ("losses/feature_alignment", "compared with reference tensors in tests/tests/golden.rs"),
    ("models/internvl_clip", "compared with reference tensors in tests/tests/golden.rs"),
    ("models/videomae_v2", "compared with reference tensors in tests/tests/golden.rs"),
];

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

fn rust() -> Vec<(String, String)> {
    let all = CRATES.iter().flat_map(|name| files(name, "rs"));
    all.map(|file| (file.to_str().unwrap().to_owned(), read(&file))).collect()
}

/// Names of the packages that a package of the workspace needs, directly or not.
fn reachable(metadata: &Value, from: &str) -> BTreeSet<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: BTreeMap<&str, &Value> =
        nodes.iter().map(|node| (node["id"].as_str().unwrap(), node)).collect();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let members = metadata["workspace_members"].as_array().unwrap().iter();
    let start = members.map(|m| m.as_str().unwrap()).find(|id| names[id] == from).unwrap();
    let (mut open, mut seen) = (vec![start], BTreeSet::from([start]));
    while let Some(id) = open.pop() {
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let mut kinds = dependency["dep_kinds"].as_array().unwrap().iter();
            let id = dependency["pkg"].as_str().unwrap();
            if kinds.any(|kind| kind["kind"].is_null()) && seen.insert(id) {
                open.push(id);
            }
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

/// The target triple of this machine, since packages of others may not be there.
fn platform() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

#[test]
fn dependencies_point_one_way() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &platform()])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (from, banned) in [
        ("schemas", &["burn", "actix", "zmq", "clap", "modules", "actors", "experiments"][..]),
        ("modules", &["actix", "zmq", "clap", "actors", "experiments"]),
        ("actors", &["burn", "clap", "modules", "experiments"]),
    ] {
        let reachable = reachable(&metadata, from);
        for name in banned {
            assert!(!reachable.contains(*name), "`{from}` must not depend on `{name}`");
        }
    }
}

#[test]
fn files_are_short() {
    for (file, text) in rust() {
        let lines = text.lines().count();
        let exception = LONG.iter().find(|(long, _)| *long == file);
        let limit = if exception.is_some() { 600 } else { 400 };
        assert!(lines <= limit, "{file} has {lines} lines; the limit is {limit}");
    }
    for (file, _) in LONG {
        let lines = read(Path::new(file)).lines().count();
        assert!(lines > 400, "{file} has {lines} lines and needs no exception");
    }
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for (file, text) in rust() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let words = code.split("fn ").next().unwrap_or_default();
            let modifiers = ["pub", "const", "async", "unsafe", "pub(crate)", "pub(super)"];
            let begins =
                code.contains("fn ") && words.split_whitespace().all(|w| modifiers.contains(&w));
            if !begins || code.ends_with(';') || code.ends_with('}') {
                continue;
            }
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[start..].iter().position(|line| *line == end).map_or(0, |n| n + 1);
            let name = code.split("fn ").nth(1).unwrap().split(['(', '<']).next().unwrap();
            let name = format!("{file} {name}");
            let exception = LONG_FUNCTIONS.iter().any(|(known, _)| *known == name);
            if length > if exception { 90 } else { 60 } {
                long.push(format!("{name}: {length} lines"));
            }
        }
    }
    assert!(long.is_empty(), "functions of more than 60 lines: {long:#?}");
}

#[test]
fn no_file_is_named_after_nothing() {
    for (file, _) in rust() {
        let stem = Path::new(&file).file_stem().unwrap().to_str().unwrap();
        let banned = ["utils", "util", "helpers", "helper", "common", "misc"];
        assert!(!banned.contains(&stem), "{file}: name what it holds");
    }
}

#[test]
fn every_kind_has_a_port_table_and_tests() {
    for (kind, about, _) in modules::REGISTRY {
        let text = read(Path::new(&format!("modules/src/{kind}.rs")));
        let docs: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let table = docs.iter().filter(|line| line.starts_with("//! |")).count();
        assert!(table >= 3, "{kind}: the docs have a table of ports");
        assert!(about.ends_with(['.', ':']), "{kind}: the first line is a sentence: {about}");
        let tested = text.contains("#[cfg(test)]\nmod tests {");
        let elsewhere = TESTED_ELSEWHERE.iter().any(|(known, _)| known == kind);
        assert!(tested != elsewhere, "{kind}: has tests, or is listed, not both");
    }
}

#[test]
fn every_kind_and_observer_is_named_in_the_docs() {
    let pages: Vec<String> = files("docs", "md").iter().map(|file| read(file)).collect();
    let kinds = modules::REGISTRY.iter().map(|(kind, about, _)| (*kind, *about));
    let observers = actors::OBSERVERS.iter().map(|(name, about, _)| (*name, *about));
    let rows = kinds.chain(observers).map(|(name, about)| format!("| `{name}` | {about} |"));
    let missing: Vec<String> =
        rows.filter(|row| !pages.iter().any(|page| page.contains(row))).collect();
    assert!(missing.is_empty(), "write in docs/src/kinds.md:\n{}", missing.join("\n"));
}

#[test]
fn no_tracked_file_holds_an_absolute_path() {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return; // a copy without git has no tracked files
    };
    let listed = String::from_utf8(output.stdout).unwrap();
    let homes = ["work", "root", "home", "Users"].map(|name| format!("/{name}/"));
    for file in listed.split('\0').filter(|file| !file.is_empty() && !file.starts_with("vendor/")) {
        let Ok(text) = fs::read_to_string(root().join(file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let found = homes.iter().any(|home| {
                let mut places = line.match_indices(home.as_str());
                places.any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*}".contains(c))
                })
            });
            assert!(!found, "{file}:{}: an absolute path: {line}", number + 1);
        }
    }
}
