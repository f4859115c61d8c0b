//! `multiblock_masks`: blocks, visible and hidden patches from recorded draws.

use std::collections::BTreeSet;
use std::path::Path;

use modules::layers::visible;
use modules::masks::multiblock::{Config, Hidden};
use serde_json::{Value, json};

use super::fixture::{Array, Fixture};
use super::report::Report;

/// Options of a group of calls.
fn options(group: &str, from: &Value) -> Config {
    let rest = group.starts_with("next") || from["full_complement"] == true;
    let mut options = json!({
        "blocks": from["blocks"],
        "area": from["spatial"],
        "max_keep": from["max_keep"],
        "hidden": if rest { "rest" } else { "blocks" },
        "patch": 1,
    });
    let others =
        [("time", "temporal"), ("aspect", "aspect"), ("context", "max_context_frames_ratio")];
    for (ours, theirs) in others {
        if let Some(value) = from.get(theirs) {
            options[ours] = value.clone();
        }
    }
    serde_json::from_value(options).expect("the options are right")
}

fn rows(samples: &[Vec<i64>]) -> Vec<f64> {
    samples.iter().flatten().map(|index| *index as f64).collect()
}

/// What no block covers, per sample: draws that left nothing were drawn again.
fn contexts(config: &Config, lattice: [usize; 3], sizes: &Array, places: &Array) -> Vec<Vec<i64>> {
    let [t, s, a] = sizes.values[..] else { panic!("a size has three draws") };
    let block = config.extents(lattice, [t, s, a]);
    let corners: Vec<[usize; 3]> =
        places.values.chunks(3).map(|row| [0, 1, 2].map(|i| row[i] as usize)).collect();
    let drawn = corners.chunks(config.blocks).map(|some| config.context(lattice, block, some));
    drawn.filter(|context| !context.is_empty()).collect()
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let io = fixture.arrays("io.safetensors");
    let mut report = Report::new(&fixture, io.clone());
    let grid = &fixture.config["grid"];
    let lattice =
        ["frames", "height", "width"].map(|side| grid[side].as_u64().expect("a number") as usize);
    let all: usize = lattice.iter().product();
    let call = |name: &String| name.rsplit_once('.').map(|(call, _)| call.to_owned());
    let calls: BTreeSet<String> = io.keys().filter_map(call).collect();
    for call in calls {
        let group = call.split('.').next().unwrap_or_default();
        let config = options(group, &fixture.config["groups"][group]);
        let [sizes, places] =
            ["size_draws", "pos_draws"].map(|draws| report.take(&format!("{call}.{draws}")));
        let contexts = contexts(&config, lattice, &sizes, &places);
        report.same(&format!("{call}: samples"), &contexts.len(), &fixture.count("batch"));
        let [seen, hidden] = config.collate(contexts, all);
        if config.hidden == Hidden::Rest {
            let others: Vec<_> = seen.iter().map(|seen| visible::others(seen, all)).collect();
            report.same(&format!("{call}: all others are hidden"), &others, &hidden);
        }
        if group.starts_with("next") {
            let mask = report.take(&format!("{call}.mask"));
            report.same(&format!("{call}.mask"), &rows(&seen), &mask.places(0.0, 0).values);
            continue;
        }
        for (name, found) in [("enc", seen), ("pred", hidden)] {
            let expected = report.take(&format!("{call}.{name}"));
            report.same(&format!("{call}.{name}"), &rows(&found), &expected.values);
        }
    }
    report.finish()
}
