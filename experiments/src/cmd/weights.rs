use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use modules::archive::{Archive, Change};
use modules::weights::convert::{self, Imported, Wanted};
use schemas::checkpoint;
use schemas::dims::Dims;
use schemas::entry::{Export, find};
use serde_json::{Map, Value, json};

use crate::out::say;
use crate::read;

/// Weights files: look into them, bring published ones in, take trained ones out
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Show what a file or a folder holds, and which kinds know it
    Inspect {
        /// safetensors, .pt, .pth, .bin, an index, or a folder with them
        path: PathBuf,
        /// Part of a pickled checkpoint, for example `model`
        #[arg(long)]
        part: Option<String>,
        /// Print one JSON object, with every tensor
        #[arg(long)]
        json: bool,
    },
    /// Split a published checkpoint into one file for each kind that knows it
    Import {
        /// safetensors, .pt, .pth, .bin, an index, or a folder with them
        path: PathBuf,
        /// Folder to write
        folder: PathBuf,
        /// Part of a pickled checkpoint, for example `model`
        #[arg(long)]
        part: Option<String>,
        /// Kind to look for, where `config.json` does not tell
        #[arg(long)]
        kind: Option<String>,
        /// Option of this kind, for example `preset=1b`; may be given several times
        #[arg(long = "option", value_name = "NAME=VALUE", requires = "kind")]
        options: Vec<String>,
        /// Change of the tensors whose keys fit a pattern, for example
        /// `pos_embed={"resize_time":{"from":4,"to":8,"leading":1}}`; may be given several times
        #[arg(long = "rule", value_name = "KEYS=RULE")]
        rules: Vec<String>,
        /// Dim of its inputs that the weights depend on, for example `T=8`; may be given several times
        #[arg(long = "dim", value_name = "NAME=VALUE", requires = "kind")]
        dims: Vec<String>,
    },
    /// Write an imported checkpoint, or a node of a run, with the keys of the public checkpoints
    Export {
        /// Folder that `import` wrote, or directory of a run
        from: PathBuf,
        /// The node, of a run
        #[arg(value_names = ["NODE] [FILE"], num_args = 1..=2, required = true)]
        to: Vec<PathBuf>,
        /// Layout of an imported checkpoint; the one that it had when absent
        #[arg(long)]
        layout: Option<String>,
        /// Add the low-rank adapters of the node to their matrices
        #[arg(long, conflicts_with = "layout")]
        merge: bool,
        /// Write the low-rank adapters of the node alone, as a folder that PEFT reads
        #[arg(long, conflicts_with_all = ["layout", "merge"])]
        adapters: bool,
    },
}

/// Runs one of them.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Inspect { path, part, json } => inspect(path, part.as_deref(), *json),
        What::Import { path, folder, part, kind, options, dims, rules } => {
            let wanted = match kind {
                Some(kind) => vec![named(kind, options, dims)?],
                None => convert::recognise(modules::REGISTRY, &folder_of(path))?,
            };
            let done = import((path, part.as_deref()), folder, &wanted, &changes(rules)?);
            done.map_err(|error| match kind {
                None if !wanted.is_empty() => anyhow::anyhow!("{error}{}", told(&wanted)),
                _ => error,
            })
        }
        What::Export { from, to, layout, merge, adapters } => match to.as_slice() {
            [_] if *merge || *adapters => bail!("adapters belong to a node of a run; name it"),
            [file] => {
                let layout = layout.as_deref();
                let count = convert::export(modules::REGISTRY, from, layout, file)?;
                say!("wrote {count} tensors to {}", file.display());
                Ok(ExitCode::SUCCESS)
            }
            [node, file] => {
                let what = match (merge, adapters) {
                    (true, _) => Export::Merged,
                    (_, true) => Export::Adapters,
                    _ => Export::Parameters,
                };
                export_node(from, &node.to_string_lossy(), what, file)
            }
            _ => bail!("name a file to write"),
        },
    }
}

/// What to do when a checkpoint does not hold what the `config.json` beside it tells of.
fn told(wanted: &[Wanted]) -> String {
    let kinds: Vec<String> = wanted.iter().map(|one| format!("`{}`", one.kind)).collect();
    format!(
        "\nthe `config.json` beside it tells of {}; `--kind` names another kind, and adapters are taken \
         by `lora: {{ from: FOLDER }}` of a node",
        kinds.join(", ")
    )
}

/// Where `config.json` lies.
fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(path).to_owned() }
}

/// The two sides of an equals sign.
pub(crate) fn pair(text: &str) -> anyhow::Result<(&str, &str)> {
    text.split_once('=').with_context(|| format!("`{text}` is no NAME=VALUE"))
}

/// Options from the command line, as one object; dots in names go inside.
pub(crate) fn options(given: &[String]) -> anyhow::Result<Value> {
    let mut options = Map::new();
    for option in given {
        let (name, value) = pair(option)?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let mut place = &mut options;
        let mut names: Vec<&str> = name.split('.').collect();
        let last = names.pop().unwrap_or_default();
        for name in names {
            let inner = place.entry(name).or_insert_with(|| json!({}));
            place = inner.as_object_mut().with_context(|| format!("`{option}` sets twice"))?;
        }
        place.insert(last.to_owned(), value);
    }
    Ok(Value::Object(options))
}

/// Dims from the command line.
pub(crate) fn dims(given: &[String]) -> anyhow::Result<Dims> {
    let one = |dim: &String| {
        let (name, value) = pair(dim)?;
        let value = value.parse().with_context(|| format!("`{dim}` is no number"))?;
        Ok((name.to_owned(), value))
    };
    given.iter().map(one).collect()
}

/// A kind with options and dims from the command line.
fn named(kind: &str, given: &[String], sizes: &[String]) -> anyhow::Result<Wanted> {
    let entry = find(modules::REGISTRY, kind);
    let entry =
        entry.with_context(|| format!("no kind is named `{kind}`; see `playhouse list`"))?;
    let options = (entry.resolve)(&options(given)?);
    let options = options.map_err(|problem| {
        anyhow::anyhow!("option `{}` of `{kind}`: {}", problem.option, problem.message)
    })?;
    Ok(Wanted { kind: kind.to_owned(), options, dims: dims(sizes)? })
}

/// Rules from the command line.
fn changes(rules: &[String]) -> anyhow::Result<Vec<Change>> {
    let one = |text: &String| {
        let (keys, rule) = pair(text)?;
        let rule = serde_json::from_str(rule).with_context(|| format!("`{rule}` is no rule"))?;
        Ok(Change { keys: keys.to_owned(), rule })
    };
    rules.iter().map(one).collect()
}

fn import(
    (path, part): (&Path, Option<&str>),
    folder: &Path,
    wanted: &[Wanted],
    changes: &[Change],
) -> anyhow::Result<ExitCode> {
    let mut archive = Archive::open_at(path, part)?;
    notes(&archive);
    archive.change(changes)?;
    let imported = convert::import(modules::REGISTRY, &archive, wanted, path, folder)?;
    report(&imported);
    say!("wrote {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

fn report(imported: &Imported) {
    let all = imported.tensors.len();
    for part in &imported.parts {
        let before = match part.prefix.as_str() {
            "" => String::new(),
            prefix => format!(", after `{prefix}`"),
        };
        say!("{:<28} {:>5} tensors, layout {}{before}", part.kind, part.tensors, part.layout);
    }
    say!("{} of {all} tensors belong to a kind", all - imported.rest.len());
    for (key, reason) in &imported.rest {
        say!("kept as it is: `{key}`: {reason}");
    }
}

fn notes(archive: &Archive) {
    for note in &archive.metadata().notes {
        say!("{note}");
    }
    for skipped in &archive.metadata().skipped {
        say!("skipped `{}`, a {}", skipped.path, skipped.what);
    }
}

/// A key with stars for its numbers.
fn group(key: &str) -> String {
    let star = |name: &str| {
        let number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        if number { "*".to_owned() } else { name.to_owned() }
    };
    key.split('.').map(star).collect::<Vec<_>>().join(".")
}

fn inspect(path: &Path, part: Option<&str>, print_json: bool) -> anyhow::Result<ExitCode> {
    let archive = Archive::open_at(path, part)?;
    let wanted = convert::recognise(modules::REGISTRY, &folder_of(path))?;
    let found = wanted.iter().map(|wanted| {
        let found = convert::cover(modules::REGISTRY, &archive, wanted);
        (wanted.kind.clone(), found.map_err(|error| error.to_string()))
    });
    let found: Vec<_> = found.collect();
    if print_json {
        let tensors: BTreeMap<&str, Value> = archive
            .keys()
            .map(|(key, info)| (key, json!({ "dtype": info.dtype.name(), "shape": info.shape })))
            .collect();
        let kinds: BTreeMap<&String, Value> = found
            .iter()
            .map(|(kind, found)| {
                let value = match found {
                    Ok(part) => json!({ "tensors": part.tensors, "layout": part.layout }),
                    Err(reason) => json!({ "problem": reason }),
                };
                (kind, value)
            })
            .collect();
        let bytes = archive.total_bytes();
        let format = archive.metadata().format.name();
        say!("{}", json!({ "format": format, "bytes": bytes, "tensors": tensors, "kinds": kinds }));
        return Ok(ExitCode::SUCCESS);
    }
    notes(&archive);
    let mut groups: Vec<(String, String, usize)> = Vec::new();
    for (key, info) in archive.keys() {
        let what = format!("{} {:?}", info.dtype.name(), info.shape);
        let key = group(key);
        match groups.iter_mut().find(|(other, of, _)| *other == key && *of == what) {
            Some((_, _, count)) => *count += 1,
            None => groups.push((key, what, 1)),
        }
    }
    for (key, what, count) in groups {
        let times = if count > 1 { format!("  x {count}") } else { String::new() };
        say!("{key:<60} {what}{times}");
    }
    let values: usize = archive.keys().map(|(_, info)| info.shape.iter().product::<usize>()).sum();
    say!();
    let format = archive.metadata().format.name();
    let bytes = archive.total_bytes();
    say!("{format}: {} tensors, {values} values, {bytes} bytes", archive.keys().len());
    for (kind, found) in &found {
        match found {
            Ok(part) => say!("{kind}: {} tensors, layout {}", part.tensors, part.layout),
            Err(reason) => say!("{kind}: {reason}"),
        }
    }
    if found.is_empty() {
        say!("no `config.json` beside it that a kind knows; `import --kind` names one");
    }
    Ok(ExitCode::SUCCESS)
}

/// Exports a node from the newest checkpoint of a run.
fn export_node(run: &Path, node: &str, what: Export, file: &Path) -> anyhow::Result<ExitCode> {
    let checked = match read::run(run)? {
        Ok(checked) => checked,
        Err(problems) => {
            read::print(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut stages = checked.graph.stages.iter().rev();
    let Some(found) = stages.find_map(|stage| stage.nodes.get(node)) else {
        bail!("no node of the run is named `{node}`");
    };
    let newest = checkpoint::list(&run.join("checkpoints")).pop();
    let (manifest, folder) = newest.context("the run has no checkpoint")?;
    let part = manifest.parts.get(node);
    let part = part.with_context(|| format!("`{node}` never trained in this run"))?;
    let part = checkpoint::read_part(&folder, part)?;
    let entry = find(modules::REGISTRY, &found.spec.kind).context("the kind is not known")?;
    (entry.export)(&found.spec, &part, what, file)?;
    say!("wrote {} as of step {}", file.display(), manifest.step);
    if what == Export::Parameters && found.spec.lora.is_some() {
        say!("its adapters stand beside their matrices; `--merge` adds them, `--adapters` writes");
        say!("them alone");
    }
    Ok(ExitCode::SUCCESS)
}
