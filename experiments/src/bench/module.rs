//! Single networks, beside the same networks in transformers.
//!
//! Every side of every case is a process of its own, so that the peak of its memory is its own; the
//! sides take turns.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use actors::clock::{Clock as _, RealClock, busy};
use anyhow::{Context as _, bail};
use modules::generate::{self, Settings, decoder::Prompt};
use modules::init::Init;
use modules::kind::Kind as _;
use modules::parameters;
use modules::rng::Key;
use modules::text::causal_lm;
use schemas::entry::find;
use schemas::frame::{Frame, Frames};
use schemas::node::{At, NodeSpec, Optimizer, Precision};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("module.py");

/// What a process of one side answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Seconds of each pass.
    wall: Vec<f64>,
    /// Seconds of all cores together.
    cpu: Vec<f64>,
    /// Most bytes of memory that the process held.
    peak: u64,
    /// Parameters of the network.
    parameters: u64,
    /// Version of PyTorch.
    #[serde(default)]
    torch: String,
}

/// A case: a network, and what it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Case {
    /// The network.
    name: String,
    /// `forward`, `backward` or `generate`.
    what: String,
    /// New words, of `generate`.
    new: usize,
    batch: usize,
    tokens: usize,
    threads: usize,
    times: usize,
    device: String,
    precision: Precision,
}

/// What to measure.
pub(crate) struct Plan<'a> {
    /// Rounds; sides take turns.
    pub(crate) rounds: usize,
    /// Passes in each round.
    pub(crate) times: usize,
    /// Threads of each side.
    pub(crate) threads: usize,
    /// Only cases whose name holds this.
    pub(crate) only: &'a str,
    /// A Python with transformers.
    pub(crate) python: Option<&'a Path>,
    /// Device of our side.
    pub(crate) device: &'a str,
    /// What both sides compute in.
    pub(crate) precision: Precision,
}

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Network and pass.
    pub(crate) name: String,
    /// Best pass of ours, in seconds.
    pub(crate) ours: f64,
    /// Best pass of PyTorch, in seconds.
    pub(crate) torch: Option<f64>,
    /// Ours over PyTorch: best passes, median passes, CPU time, peak memory.
    pub(crate) ratios: Option<[f64; 4]>,
    /// Most bytes that our process held.
    pub(crate) peak: u64,
}

/// Kind, options, dims, inputs (port, extents, how many values an int has) and output of a network.
struct Network {
    kind: &'static str,
    options: Value,
    inputs: Vec<(&'static str, Vec<usize>, Option<usize>)>,
    output: &'static str,
}

const NAMES: [&str; 4] = ["vit_s", "bert_base", "qformer", "llama_12x768"];

fn network(case: &Case) -> anyhow::Result<Network> {
    let (batch, tokens) = (case.batch, case.tokens);
    let ids = |most| vec![("ids", vec![batch, tokens], Some(most))];
    Ok(match case.name.as_str() {
        "vit_s" => Network {
            kind: "models/videomae_v2",
            options: json!({ "size": {
                "patch": 14, "tubelet": 2, "width": 384, "depth": 12, "heads": 6, "hidden": 1536,
            }}),
            inputs: vec![
                ("video", vec![batch, 3, 16, 224, 224], None),
                ("visible", vec![batch, 410], Some(0)),
            ],
            output: "tokens",
        },
        "bert_base" => Network {
            kind: "text/bert",
            options: json!({ "preset": "bert_base" }),
            inputs: ids(30_000),
            output: "tokens",
        },
        "qformer" => Network {
            kind: "models/qformer",
            options: json!({ "preset": "blip2", "text": false }),
            inputs: vec![("memory", vec![batch, tokens, 1408], None)],
            output: "tokens",
        },
        "llama_12x768" => Network {
            kind: "text/causal_lm",
            options: json!({ "size": {
                "width": 768, "depth": 12, "heads": 12, "kv_heads": 12, "hidden": 2048,
                "vocabulary": 32_000, "context": 2048,
            }}),
            inputs: ids(32_000),
            output: "logits",
        },
        other => bail!("no network is named `{other}`; there are {}", NAMES.join(", ")),
    })
}

/// A frame of draws; an int port of 0 values counts every fifth patch.
fn frame(name: &str, shape: &[usize], most: Option<usize>) -> Frame {
    let mut rng = Key::new(0, name).rng();
    let count: usize = shape.iter().product();
    match most {
        None => Frame::f32(shape.to_vec(), (0..count).map(|_| rng.between(-1.0, 1.0) as f32)),
        Some(0) => Frame::i64(shape.to_vec(), (0..count).map(|i| (i % shape[1] * 5 % 2048) as i64)),
        Some(most) => Frame::i64(shape.to_vec(), (0..count).map(|_| rng.below(most) as i64)),
    }
}

fn spec(case: &Case, network: &Network) -> anyhow::Result<NodeSpec> {
    let entry = find(modules::REGISTRY, network.kind).context("the kind is not known")?;
    let options = (entry.resolve)(&network.options);
    let options = options.map_err(|problem| anyhow::anyhow!("{}", problem.message))?;
    let wired: Vec<String> = network.inputs.iter().map(|(port, ..)| (*port).to_owned()).collect();
    let ports = (entry.ports)(&options, &wired);
    let mut spec = NodeSpec::alone(network.kind, options, Default::default());
    for (name, shape, _) in &network.inputs {
        let port = ports.find_input(name).with_context(|| format!("no port `{name}`"))?;
        for (dim, extent) in port.dims.split_whitespace().zip(shape) {
            if dim.chars().all(|c| c.is_ascii_alphabetic()) {
                spec.dims.insert(dim.to_owned(), *extent);
            }
        }
    }
    let backward = case.what == "backward";
    spec.wired = wired;
    spec.backward = backward;
    spec.device = case.device.clone();
    spec.precision = case.precision;
    if backward {
        let optimizer: Optimizer = serde_json::from_value(json!({ "lr": 1e-4 }))?;
        spec.optimizer = Some(optimizer);
    }
    Ok(spec)
}

/// Our side of a case: reads it from a line, prints the answer.
pub(crate) fn side() -> anyhow::Result<()> {
    let case: Case = serde_json::from_str(std::io::read_to_string(std::io::stdin())?.trim())?;
    let network = network(&case)?;
    let spec = spec(&case, &network)?;
    let entry = find(modules::REGISTRY, network.kind).context("the kind is not known")?;
    if case.what == "generate" {
        return write(&case, &spec);
    }
    let mut node = (entry.build)(&spec)?;
    let inputs: Frames = network
        .inputs
        .iter()
        .map(|(port, shape, most)| ((*port).to_owned(), frame(port, shape, *most)))
        .collect();
    let clock = RealClock::start();
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for number in 0..=case.times {
        let (start, used) = (clock.now(), busy());
        let outputs = node.forward(At::default(), inputs.clone())?.frames;
        let output = &outputs[network.output];
        if case.what == "backward" {
            // The gradient of the mean of squares, as the other side has it.
            let factor = 2.0 / output.shape().iter().product::<usize>() as f32;
            let values: Vec<f32> = output.to_f32().iter().map(|v| factor * v).collect();
            let gradient = Frame::f32(output.shape().to_vec(), values);
            node.backward(At::default(), vec![(network.output.to_owned(), gradient)])?;
            // What clipping needs, on both sides; it waits until all gradients are there.
            node.squared_norm()?;
            node.rewind();
        } else {
            output.bytes();
        }
        if number > 0 {
            wall.push(clock.now().since(start));
            cpu.push(busy() - used);
        }
    }
    let parameters = (entry.count)(&spec).parameters;
    let answer = Answer { wall, cpu, peak: peak(), parameters, torch: String::new() };
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

/// Writes new words behind a prompt, one after the other.
fn write(case: &Case, spec: &NodeSpec) -> anyhow::Result<()> {
    let kind: causal_lm::Config = serde_json::from_value(spec.options.clone())?;
    let device = modules::device::by_name(&case.device)?;
    let module = kind.init(&spec.dims, &Init::new(0, "bench", &device));
    let module = parameters::map(module, &mut |_, value| value);
    let mut rng = Key::new(0, "ids").rng();
    let prompt: Vec<i64> = (0..case.tokens).map(|_| rng.below(32_000) as i64).collect();
    let prompt = Prompt::of_words(&[prompt], &device);
    let settings = Settings { max_tokens: case.new, ..Settings::default() };
    let clock = RealClock::start();
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for number in 0..=case.times {
        let (start, used) = (clock.now(), busy());
        let texts = generate::generate(&module, &prompt, &settings, None, &Key::new(0, "words"))?;
        if texts[0].tokens.len() != case.new {
            bail!("{} words were written, not {}", texts[0].tokens.len(), case.new);
        }
        if number > 0 {
            wall.push(clock.now().since(start));
            cpu.push(busy() - used);
        }
    }
    let parameters = parameters::count(&module);
    let answer = Answer { wall, cpu, peak: peak(), parameters, torch: String::new() };
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

/// Most bytes that this process held.
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kilobytes.unwrap_or(0)
}

fn ask(mut command: Command, case: &Value) -> anyhow::Result<Answer> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a side")?;
    let mut input = child.stdin.take().context("a piped input")?;
    writeln!(input, "{case}")?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("a side gave up: {text}"))
}

fn ours(case: &Case) -> anyhow::Result<Answer> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["bench", "side"]);
    for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"] {
        command.env(name, case.threads.to_string());
    }
    ask(command, &serde_json::to_value(case)?)
}

fn theirs(python: &Path, case: &Case) -> anyhow::Result<Answer> {
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).env("HF_HUB_OFFLINE", "1");
    command.env("OMP_NUM_THREADS", case.threads.to_string());
    let mut case = serde_json::to_value(case)?;
    let cuda = case["device"].as_str().and_then(|name| name.strip_prefix("tch:"));
    case["device"] = cuda.unwrap_or("cpu").into();
    ask(command, &case)
}

/// The smallest.
pub(crate) fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures all cases; `each` sees a row as soon as it is there.
pub(crate) fn bench(plan: &Plan<'_>, each: &mut dyn FnMut(&Row)) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, batch, tokens) in
        [("vit_s", 2, 2048), ("bert_base", 4, 128), ("qformer", 4, 257), ("llama_12x768", 1, 512)]
    {
        let writes = name.starts_with("llama");
        for what in ["forward", "backward", "generate"].into_iter().take(if writes { 3 } else { 2 })
        {
            let title = format!("{name} {what}");
            if !title.contains(plan.only) {
                continue;
            }
            let case = Case {
                name: name.to_owned(),
                what: what.to_owned(),
                new: 64,
                batch,
                tokens,
                threads: plan.threads,
                times: plan.times,
                device: plan.device.to_owned(),
                precision: plan.precision,
            };
            let row = compare(&case, title, plan)?;
            each(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn compare(case: &Case, name: String, plan: &Plan<'_>) -> anyhow::Result<Row> {
    let mut sides = [Vec::new(), Vec::new()];
    for _ in 0..plan.rounds {
        sides[0].push(ours(case)?);
        if let Some(python) = plan.python {
            sides[1].push(theirs(python, case)?);
        }
    }
    let of = |side: &[Answer], what: fn(&Answer) -> &Vec<f64>| -> Vec<f64> {
        side.iter().flat_map(|answer| what(answer).iter().copied()).collect()
    };
    let peak = |side: &[Answer]| side.iter().map(|answer| answer.peak).min().unwrap_or(0);
    let [ours, theirs] = &sides;
    if let (Some(a), Some(b)) = (ours.first(), theirs.first())
        && a.parameters.abs_diff(b.parameters) * 100 > b.parameters
    {
        bail!("`{name}` has {} parameters here, but {} in PyTorch", a.parameters, b.parameters);
    }
    let wall = of(ours, |answer| &answer.wall);
    let torch = of(theirs, |answer| &answer.wall);
    let ratios = (!torch.is_empty()).then(|| {
        let cpu = best(&of(ours, |answer| &answer.cpu)) / best(&of(theirs, |answer| &answer.cpu));
        let memory = peak(ours) as f64 / peak(theirs) as f64;
        [best(&wall) / best(&torch), median(&wall) / median(&torch), cpu, memory]
    });
    let torch = (!torch.is_empty()).then(|| best(&torch));
    Ok(Row { name, ours: best(&wall), torch, ratios, peak: peak(ours) })
}
