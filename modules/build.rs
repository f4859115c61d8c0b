//! Lists the files that are kinds, so that a new kind is one new file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../tools/libtorch.rs"]
mod libtorch;

const FOLDERS: [&str; 6] = ["data", "losses", "masks", "models", "probes", "text"];

fn main() {
    libtorch::link();
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let (mut tree, mut list) = (String::new(), String::new());
    for folder in FOLDERS {
        let path = Path::new(&root).join("src").join(folder);
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(tree, "/// Kinds `{folder}/...`.\npub mod {folder} {{").expect("a string");
        for (name, file) in files(&path) {
            let text = fs::read_to_string(&file).expect("just listed");
            let file = file.display().to_string();
            let Some(summary) = text.lines().next().and_then(|line| line.strip_prefix("//! "))
            else {
                println!("cargo::error={file}: begin with `//! <one line that says what it is>`");
                continue;
            };
            writeln!(tree, "    #[path = {file:?}]\n    pub mod {name};").expect("a string");
            let kind = format!("{folder}/{name}");
            writeln!(list, "    ({kind:?}, {summary:?}, {folder}::{name}::ENTRY),")
                .expect("a string");
        }
        tree.push_str("}\n");
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("kinds.rs");
    let text = format!(
        "{tree}\n/// All kinds, sorted by name.\npub const REGISTRY: schemas::entry::Registry = &[\n{list}];\n"
    );
    fs::write(out, text).expect("the build folder is writable");
}

/// Rust files of a folder, sorted by name.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path)))
        .collect();
    files.sort();
    files
}
