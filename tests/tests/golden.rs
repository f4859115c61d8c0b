//! Every fixture folder: the numbers of the published code, within the tolerance they come with.
//!
//! `PLAYHOUSE_GOLDEN` names another folder of fixtures, `PLAYHOUSE_DEVICE` another device.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use tests::golden;

fn folders() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let root = std::env::var_os("PLAYHOUSE_GOLDEN").map_or(here, PathBuf::from);
    let entries = std::fs::read_dir(&root).expect("the folder of fixtures is readable");
    let mut folders: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn every_golden_fixture_is_met() {
    let (mut failures, mut met) = (Vec::new(), 0);
    for folder in folders() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match catch_unwind(|| golden::check(&folder)) {
            Ok(Some(report)) => {
                println!("{report}");
                met += 1;
                failures.extend(report.problems.iter().map(|problem| format!("{name}: {problem}")));
            }
            Ok(None) => failures.push(format!("{name}: no program checks it")),
            // The message is above; the other fixtures are still checked.
            Err(_) => failures.push(format!("{name}: stopped")),
        }
    }
    assert!(met > 0, "no fixture was found");
    for name in golden::KNOWN {
        let other = std::env::var_os("PLAYHOUSE_GOLDEN").is_some();
        let there = folders().iter().any(|folder| folder.ends_with(name));
        assert!(other || there, "the fixture {name} is missing");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
