use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use modules::metrics::{Interval, over_seeds};
use serde_json::{Map, Value, json};

use crate::out::say;
use crate::score::{Kind, Report, read};

/// Score a file of predictions and references
///
/// docs/src/metrics.md describes the files. Shares are percentages.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the file holds
    kind: Kind,
    /// JSON; for matrices also safetensors. Several files, one per seed, give means with 95 % intervals
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON, with all digits and the values of each class, object or kind of question
    #[arg(long)]
    json: bool,
}

/// Scores and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let each = args.files.iter().map(|file| {
        read(args.kind, file).with_context(|| format!("cannot score {}", file.display()))
    });
    let reports = each.collect::<anyhow::Result<Vec<Report>>>()?;
    match &reports[..] {
        [report] if args.json => say!("{}", as_json(args.kind, report)),
        [report] => print(report),
        _ => over_files(args, &reports)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(kind: Kind, report: &Report) -> Value {
    let metrics: Map<String, Value> =
        report.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let counts: Map<String, Value> =
        report.counts.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect();
    json!({ "kind": kind.name(), "metrics": metrics, "counts": counts, "details": report.details })
}

/// Width of the longest name.
fn width(report: &Report) -> usize {
    let names = report.metrics.iter().map(|(name, _)| name.chars().count());
    names.chain(report.counts.iter().map(|(name, _)| name.len())).max().unwrap_or_default()
}

fn print(report: &Report) {
    let width = width(report);
    for (name, value) in &report.metrics {
        say!("{name:<width$} {value:>9.4}");
    }
    for (name, count) in &report.counts {
        say!("{name:<width$} {count:>9}");
    }
}

/// Mean and interval of each metric over files.
fn over_files(args: &Args, reports: &[Report]) -> anyhow::Result<()> {
    let mut rows: Vec<(&str, Interval)> = Vec::new();
    for (at, (name, _)) in reports[0].metrics.iter().enumerate() {
        let mut values = Vec::with_capacity(reports.len());
        for (report, file) in reports.iter().zip(&args.files) {
            let same = report.metrics.get(at).filter(|(other, _)| other == name);
            let same = same.filter(|_| report.metrics.len() == reports[0].metrics.len());
            let differ = || {
                let first = args.files[0].display();
                format!("{} has other metrics than {first}; score them apart", file.display())
            };
            values.push(same.with_context(differ)?.1);
        }
        rows.push((name, over_seeds(&values)?));
    }
    if args.json {
        let row = |(name, of): &(&str, Interval)| {
            let value = json!({
                "mean": of.mean, "deviation": of.deviation, "low": of.low, "high": of.high,
                "count": of.count,
            });
            ((*name).to_owned(), value)
        };
        let metrics: Map<String, Value> = rows.iter().map(row).collect();
        let files: Vec<_> = args.files.iter().map(|file| file.display().to_string()).collect();
        say!("{}", json!({ "kind": args.kind.name(), "files": files, "metrics": metrics }));
        return Ok(());
    }
    let width = width(&reports[0]);
    for (name, of) in rows {
        let half = of.high - of.mean;
        say!("{name:<width$} {:>9.4} ± {half:.4} (n = {})", of.mean, of.count);
    }
    Ok(())
}
