//! What a data set on disk says of itself, and whether its files bear it out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Options, ShapesError};
use crate::video::named::named;

/// What `shapes.json` says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) format: u32,
    pub(super) options: Options,
    pub(super) encoder: String,
    pub(super) notice: Option<String>,
    /// Bytes of every other file; absent before format 3.
    #[serde(default)]
    sizes: BTreeMap<String, u64>,
}

/// The layout that this version writes.
pub(super) const FORMAT: u32 = 4;

/// The record of a data set.
pub(super) fn read(out: &Path) -> Option<Origin> {
    serde_json::from_slice(&std::fs::read(out.join("shapes.json")).ok()?).ok()
}

impl Origin {
    pub(super) fn new(options: &Options, encoder: &str, notice: Option<String>) -> Self {
        let (options, encoder) = (options.clone(), encoder.to_owned());
        Self { format: FORMAT, options, encoder, notice, sizes: BTreeMap::new() }
    }

    /// The files beside `shapes.json`, which follow from the options.
    fn files(&self) -> Vec<String> {
        let Options { train, test, untrimmed, .. } = self.options;
        let mut files = vec!["manifest.csv".to_owned()];
        for (split, count) in [("train", train), ("test", test), ("untrimmed", untrimmed)] {
            files.extend((0..count).map(|number| format!("{split}/{number:05}.mp4")));
            files.extend(["csv", "jsonl"].map(|end| format!("{split}/manifest.{end}")));
        }
        // Of an older set these would be somebody else's.
        if self.format >= 4 {
            let files_of_4 =
                ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "untrimmed/grounding.csv"];
            files.extend(files_of_4.map(str::to_owned));
        }
        files
    }

    /// Notes the size of every file in a folder.
    pub(super) fn measure(&mut self, part: &Path) -> Result<(), ShapesError> {
        for name in self.files() {
            let path = part.join(&name);
            let meta = std::fs::metadata(&path);
            let meta = meta.map_err(|source| ShapesError::Io { path, source })?;
            self.sizes.insert(name, meta.len());
        }
        Ok(())
    }

    /// What is wrong with the first file that is not as it was written.
    pub(super) fn broken(&self, out: &Path) -> Option<String> {
        self.files().into_iter().find_map(|name| {
            let path = out.join(&name);
            let found = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file);
            match (found.map(|meta| meta.len()), self.sizes.get(&name)) {
                (None, _) => Some(format!("`{}` is missing", named(path))),
                (Some(found), Some(size)) if found == *size => None,
                (Some(found), size) => {
                    let size = size.map_or("another number of".to_owned(), u64::to_string);
                    Some(format!("`{}` has {found} bytes, not {size}", named(path)))
                }
            }
        })
    }

    /// Refuses a folder with anything in it that would be lost with the set.
    pub(super) fn refuse_foreign(&self, out: &Path) -> Result<(), ShapesError> {
        let mut known: Vec<PathBuf> = self.files().iter().map(|name| out.join(name)).collect();
        known.extend(["shapes.json", "train", "test", "untrimmed"].map(|name| out.join(name)));
        let known = std::collections::BTreeSet::from_iter(known);
        for folder in ["", "train", "test", "untrimmed"] {
            let folder = out.join(folder);
            let Ok(items) = std::fs::read_dir(&folder) else { continue };
            for item in items {
                let item =
                    item.map_err(|source| ShapesError::Io { path: folder.clone(), source })?;
                if !known.contains(&item.path()) {
                    let (dir, file) = (out.to_owned(), item.path());
                    return Err(ShapesError::Foreign { dir, file });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, ShapesError, generate};

    fn tiny() -> Options {
        Options { train: 3, test: 1, untrimmed: 1, size: 16, frames: 4, ..Options::default() }
    }

    #[test]
    fn a_set_whose_files_are_gone_or_empty_is_made_again_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        let make = || generate(&out, &tiny(), &|_, _| {}).unwrap();
        assert!(!make().reused && make().reused);
        for name in ["train/00001.mp4", "untrimmed/manifest.csv", "manifest.csv"] {
            std::fs::remove_file(out.join(name)).unwrap();
            let again = make();
            assert!(!again.reused && again.notice.unwrap().contains(name), "{name}");
            std::fs::write(out.join(name), "").unwrap();
            let again = make();
            assert!(!again.reused && again.notice.unwrap().contains("0 bytes"), "{name}");
            assert!(make().reused && out.join(name).metadata().unwrap().len() > 0, "{name}");
        }
        assert_eq!(make().notice, None);
    }

    #[test]
    fn a_set_with_a_strange_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        generate(&out, &tiny(), &|_, _| {}).unwrap();
        let other = Options { seed: 1, ..tiny() };
        for name in ["thesis.tex", "train/mine.mp4"] {
            std::fs::write(out.join(name), "mine").unwrap();
            assert!(generate(&out, &tiny(), &|_, _| {}).unwrap().reused);
            let error = generate(&out, &other, &|_, _| {}).unwrap_err();
            assert!(matches!(error, ShapesError::Foreign { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(std::fs::read_to_string(out.join(name)).unwrap(), "mine");
            std::fs::remove_file(out.join(name)).unwrap();
        }
        assert!(!generate(&out, &other, &|_, _| {}).unwrap().reused);
    }
}
