use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use schemas::entry::{Against, Conformance, find};
use schemas::node::NodeSpec;
use serde_json::json;

use crate::cmd::weights::{dims, options, pair};
use crate::out::say;

/// Multiple of the tolerance that is accepted: other orders of sums need a little.
const SLACK: f64 = 4.0;

/// Compare a kind with reference tensors of another implementation
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kind, for example `models/siglip`
    kind: String,
    /// Folder with config.json, inputs, expected and weights as safetensors
    #[arg(long)]
    against: PathBuf,
    /// Option of the kind, over those that config.json tells; may be given several times
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Dim of its inputs that no input shows, for example `T=8`; may be given several times
    #[arg(long = "dim", value_name = "NAME=VALUE")]
    dims: Vec<String>,
    /// Share of an array's largest value that it may be off; from meta.json when absent
    #[arg(long)]
    tolerance: Option<f64>,
    /// Array of a port, where it has another name, for example `pooled=text_pooled`; may be given several
    /// times
    #[arg(long = "name", value_name = "PORT=ARRAY")]
    names: Vec<String>,
    /// Fail when an array was compared with nothing, instead of when more than half were
    #[arg(long)]
    all: bool,
    /// Accept any number of compared arrays from one
    #[arg(long, conflicts_with = "all")]
    any: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compares and prints; fails when an array is off, or too few were compared.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let entry = find(modules::REGISTRY, &args.kind);
    let entry = entry.with_context(|| format!("no kind is named `{}`", args.kind))?;
    let spec = NodeSpec::alone(&args.kind, options(&args.options)?, dims(&args.dims)?);
    let name = |text: &String| pair(text).map(|(port, array)| (port.to_owned(), array.to_owned()));
    let names: anyhow::Result<Vec<_>> = args.names.iter().map(name).collect();
    let (folder, tolerance) = (args.against.clone(), args.tolerance);
    let found = (entry.conform)(&spec, &Against { folder, tolerance, names: names? })?;
    if args.json {
        say!("{}", as_json(&found));
    } else {
        print(&found);
    }
    let off = found.compared.iter().any(|one| one.share > SLACK);
    let few = too_few(args, &found);
    if let Some(reason) = &few {
        eprintln!("{reason}");
    }
    Ok(if off || few.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Why the arrays that were compared say too little.
fn too_few(args: &Args, found: &Conformance) -> Option<String> {
    let (compared, left) = (found.compared.len(), found.left.len());
    if compared == 0 {
        return Some("no array of the folder is named like a port; `--name` names one".to_owned());
    }
    if args.all && left > 0 {
        return Some(format!("{left} arrays were not compared, and `--all` wants all of them"));
    }
    let few = !args.all && !args.any && left > compared;
    few.then(|| {
        "more than half of the arrays were not compared; `--name` names them, `--any` accepts it"
            .to_owned()
    })
}

fn as_json(found: &Conformance) -> serde_json::Value {
    let compared: Vec<_> = found
        .compared
        .iter()
        .map(|one| {
            json!({
                "name": one.name, "index": one.index, "got": one.got,
                "expected": one.expected, "share": one.share,
            })
        })
        .collect();
    json!({ "tolerance": found.tolerance, "compared": compared, "left": found.left })
}

fn print(found: &Conformance) {
    let mut compared = found.compared.clone();
    compared.sort_by(|a, b| b.share.total_cmp(&a.share));
    for one in &compared {
        let word = if one.share > SLACK { "OFF" } else { "ok " };
        say!(
            "{word} {:<48} {:>8.3} of tolerance, at {}: {:e}, expected {:e}",
            one.name,
            one.share,
            one.index,
            one.got,
            one.expected
        );
    }
    if let Some(worst) = compared.first() {
        say!(
            "tolerance {:.1e} of the largest value; worst `{}`[{}]: {:e}, expected {:e}",
            found.tolerance,
            worst.name,
            worst.index,
            worst.got,
            worst.expected
        );
    }
    let all = compared.len() + found.left.len();
    let left = match found.left.as_slice() {
        [] => String::new(),
        left => format!("; not compared: {}", left.join(", ")),
    };
    say!("compared {} of {all} arrays{left}", compared.len());
}
