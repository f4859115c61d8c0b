//! Lists the files that are observers and edges, so that a new one is one new file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut text = String::new();
    let mut list = String::new();
    for (folder, about) in [("edges", "Edges, one per transport."), ("observers", "Observers.")] {
        let path = Path::new(&root).join("src").join(folder);
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(text, "/// {about}\npub mod {folder} {{").expect("a string");
        let Ok(entries) = fs::read_dir(&path) else { continue };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == "rs"));
        files.sort();
        for file in files {
            let name = file.file_stem().expect("a file").to_string_lossy().into_owned();
            let source = fs::read_to_string(&file).expect("just listed");
            let Some(summary) = source.lines().next().and_then(|l| l.strip_prefix("//! ")) else {
                println!("cargo::error={}: begin with a `//!` line", file.display());
                continue;
            };
            let shown = file.display().to_string();
            writeln!(text, "    #[path = {shown:?}]\n    pub mod {name};").expect("a string");
            if folder == "observers" {
                writeln!(list, "    ({name:?}, {summary:?}, observers::{name}::ENTRY),")
                    .expect("a string");
            }
        }
        text.push_str("}\n");
    }
    writeln!(
        text,
        "/// All observers, sorted by name.\npub const OBSERVERS: &[(&str, &str, observer::Entry)] = &[\n{list}];"
    )
    .expect("a string");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("lists.rs");
    fs::write(out, text).expect("the build folder is writable");
}
