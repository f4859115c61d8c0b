//! Files of weights: read, loaded into a network, imported; beside the safetensors package.
//!
//! Every side of every case is a process of its own, so that the peak of its memory is its own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use actors::clock::{Clock as _, RealClock};
use anyhow::Context as _;
use modules::archive::{self, Archive, Declared, Dtype};
use modules::weights::convert::{self, Wanted};
use schemas::dims::Dims;
use schemas::entry::{Entry, find};
use schemas::node::NodeSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::module::{best, peak};

const SCRIPT: &str = include_str!("weights.py");
const KIND: &str = "text/causal_lm";

/// What a side is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Case {
    /// `read`, `load` or `import`.
    what: String,
    file: PathBuf,
    /// Folder for what an import writes.
    out: PathBuf,
    options: Value,
    threads: usize,
}

/// What a side answers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Answer {
    seconds: f64,
    peak: u64,
}

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) what: String,
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// Best time of ours, in seconds.
    pub(crate) ours: f64,
    /// Most memory of ours over the bytes of the file.
    pub(crate) memory: f64,
    /// Best time and memory of the safetensors package.
    pub(crate) theirs: Option<[f64; 2]>,
}

fn entry() -> anyhow::Result<&'static Entry> {
    find(modules::REGISTRY, KIND).context("the kind is not known")
}

/// Options of a language model whose bf16 file has about so many bytes.
fn options(bytes: u64) -> anyhow::Result<Value> {
    let (width, hidden, vocabulary) = (1024, 2816, 8000);
    let block = 4 * width * width + 3 * width * hidden;
    let depth = (bytes / 2).saturating_sub(2 * vocabulary * width) / block;
    let options = json!({ "size": {
        "width": width, "depth": depth.max(1), "heads": 16, "kv_heads": 16, "hidden": hidden,
        "vocabulary": vocabulary,
    }});
    (entry()?.resolve)(&options).map_err(|problem| anyhow::anyhow!("{}", problem.message))
}

/// Writes a bf16 file as transformers does.
fn make(file: &Path, options: &Value) -> anyhow::Result<u64> {
    let entry = entry()?;
    let spec = NodeSpec::alone(KIND, options.clone(), Dims::new());
    let layouts = (entry.layouts)(&spec);
    let layout = layouts.first().context("the kind has a layout")?;
    let declare = |parameter: modules::parameters::Parameter| {
        let slot = layout.slot(&parameter.path);
        let shape = slot.file_shape(slot.stored(&parameter));
        Declared { key: slot.key, dtype: Dtype::Bf16, shape }
    };
    let declared: Vec<_> = (entry.parameters)(&spec).into_iter().map(declare).collect();
    let plan = archive::Plan::new(declared, BTreeMap::new())?;
    // Small numbers of both signs.
    let byte = |i: usize| [i as u8, 0x3c | ((i >> 8) as u8 & 0x80)][i % 2];
    let piece = |one: &Declared| {
        let size = 2 * one.shape.iter().product::<usize>();
        Ok((one.key.clone(), Cow::Owned((0..size).map(byte).collect())))
    };
    archive::write(file, &plan, plan.tensors().iter().map(piece), None)?;
    Ok(file.metadata()?.len())
}

/// Our side of a case: reads it from a line, prints the answer.
pub(crate) fn side() -> anyhow::Result<()> {
    let case: Case = serde_json::from_str(std::io::read_to_string(std::io::stdin())?.trim())?;
    let entry = entry()?;
    let clock = RealClock::start();
    let start = clock.now();
    match case.what.as_str() {
        "read" => {
            let held = Archive::open(&case.file)?;
            let mut values = Vec::new();
            for (key, _) in held.keys() {
                held.get(key)?.f32_into(&mut values);
            }
        }
        "load" => {
            let spec = NodeSpec::alone(KIND, case.options, Dims::new());
            let device = modules::device::available()[0].to_owned();
            let spec = NodeSpec { weights: Some(case.file), device, ..spec };
            let node = (entry.build)(&spec)?;
            std::hint::black_box(&node);
        }
        _ => {
            let wanted = Wanted { kind: KIND.to_owned(), options: case.options, dims: Dims::new() };
            let held = Archive::open(&case.file)?;
            convert::import(modules::REGISTRY, &held, &[wanted], &case.file, &case.out)?;
        }
    }
    let answer = Answer { seconds: clock.now().since(start), peak: peak() };
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

fn ask(mut command: Command, case: &Case) -> anyhow::Result<Answer> {
    std::fs::create_dir_all(&case.out)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a side")?;
    let mut input = child.stdin.take().context("a piped input")?;
    writeln!(input, "{}", serde_json::to_string(case)?)?;
    drop(input);
    let output = child.wait_with_output()?;
    std::fs::remove_dir_all(&case.out)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("a side gave up: {text}"))
}

/// Measures all cases on a file of `gibibytes`, made in the folder for temporary files.
pub(crate) fn bench(
    gibibytes: f64,
    rounds: usize,
    python: Option<&Path>,
) -> anyhow::Result<Vec<Row>> {
    let folder = std::env::temp_dir().join(format!("playhouse-bench-{}", std::process::id()));
    std::fs::create_dir(&folder).context("cannot make a folder for the file")?;
    let rows = measure(&folder, gibibytes, rounds, python);
    std::fs::remove_dir_all(&folder).context("cannot remove the folder of the file")?;
    rows
}

fn measure(
    folder: &Path,
    gibibytes: f64,
    rounds: usize,
    python: Option<&Path>,
) -> anyhow::Result<Vec<Row>> {
    let file = folder.join("model.safetensors");
    let options = options((gibibytes * f64::from(1 << 30)) as u64)?;
    let bytes = make(&file, &options)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    for what in ["read", "load", "import"] {
        let (file, out) = (file.clone(), folder.join("out"));
        let case = Case { what: what.to_owned(), file, out, options: options.clone(), threads };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["bench", "side", "weights"]);
            ours.push(ask(command, &case)?);
            if let Some(python) = python {
                let mut command = Command::new(python);
                command.args(["-c", SCRIPT]);
                theirs.push(ask(command, &case)?);
            }
        }
        let seconds = |side: &[Answer]| best(&side.iter().map(|a| a.seconds).collect::<Vec<_>>());
        let memory =
            |side: &[Answer]| side.iter().map(|a| a.peak).min().unwrap_or(0) as f64 / bytes as f64;
        let theirs = (!theirs.is_empty()).then(|| [seconds(&theirs), memory(&theirs)]);
        let (what, memory) = (what.to_owned(), memory(&ours));
        rows.push(Row { what, bytes, ours: seconds(&ours), memory, theirs });
    }
    Ok(rows)
}
