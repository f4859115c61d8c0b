use std::path::{Path, PathBuf};
use std::process::ExitCode;

use actors::transport::bench::{Plan, Row, bench_peer, bench_transport};
use anyhow::Context as _;
use clap::Subcommand;
use schemas::node::Precision;
use serde_json::json;

use crate::bench::{module, step, weights};
use crate::out::say;
use crate::read::{self, Overrides};

/// Measure what things cost here, beside another side in the same run
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Messages: ours beside memcpy, raw TCP and pyzmq
    Transport {
        /// Rounds; every cell is measured once in each
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Only cells whose name holds this
        #[arg(long, default_value = "")]
        only: String,
        /// A Python with pyzmq, which takes turns with the same messages
        #[arg(long)]
        python: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// A training step: through actors beside plain calls and PyTorch
    Step {
        /// Experiment file
        #[arg(default_value = "experiments/internvideo2/stage1.yaml")]
        file: PathBuf,
        #[command(flatten)]
        overrides: Overrides,
        /// Stage to measure
        #[arg(long, default_value = "reconstruct")]
        stage: String,
        /// Rounds; sides take turns
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Steps in each round
        #[arg(long, default_value_t = 20)]
        steps: u64,
        /// A Python with PyTorch, which takes turns with the same step
        #[arg(long)]
        python: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Single networks: forward and backward, beside transformers
    Module {
        /// Rounds; sides take turns
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Passes in each round, after one that is not counted
        #[arg(long, default_value_t = 5)]
        times: usize,
        /// Threads of each side; all cores when absent
        #[arg(long)]
        threads: Option<usize>,
        /// Only cases whose name holds this
        #[arg(long, default_value = "")]
        only: String,
        /// A Python with PyTorch and transformers
        #[arg(long)]
        python: Option<PathBuf>,
        /// Device of our side; the first of this build when absent
        #[arg(long)]
        device: Option<String>,
        /// Compute in bf16 on both sides
        #[arg(long)]
        bf16: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Files of weights: read, loaded and imported, beside the safetensors package
    Weights {
        /// Size of the bf16 file, in GiB
        #[arg(long, default_value_t = 1.0)]
        gibibytes: f64,
        /// Rounds; sides take turns
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// A Python with PyTorch and safetensors
        #[arg(long)]
        python: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// One side of a case of `bench module` or `bench weights`
    #[command(hide = true)]
    Side {
        /// Which of them
        #[arg(default_value = "module")]
        of: String,
    },
    /// The second process of `bench transport`
    #[command(hide = true)]
    Peer {
        /// What it is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Measures and prints, ratios first.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Transport { rounds, only, python, json } => {
            transport(*rounds, only, python.as_deref(), *json)?
        }
        What::Step { file, overrides, stage, rounds, steps, python, json } => {
            let checked = match read::experiment(file, overrides)? {
                Ok(checked) => checked,
                Err(problems) => {
                    read::print(&problems);
                    return Ok(ExitCode::FAILURE);
                }
            };
            let (rounds, steps, python) = ((*rounds).max(1), (*steps).max(2), python.as_deref());
            let plan = step::Plan { stage, rounds, steps, python };
            let found = step::bench(&checked.graph, &plan)?;
            print_step(&found, *json)?;
        }
        What::Module { rounds, times, threads, only, python, device, bf16, json } => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let first = || modules::device::available()[0].to_owned();
            let device = device.clone().unwrap_or_else(first);
            let plan = module::Plan {
                rounds: (*rounds).max(1),
                times: (*times).max(1),
                threads: threads.unwrap_or(cores),
                only,
                python: python.as_deref(),
                device: &device,
                precision: if *bf16 { Precision::Bf16 } else { Precision::F32 },
            };
            let mut each = |row: &module::Row| {
                if !json {
                    print_module(row);
                }
            };
            let rows = module::bench(&plan, &mut each)?;
            if *json {
                say!("{}", serde_json::to_string_pretty(&rows)?);
            }
        }
        What::Weights { gibibytes, rounds, python, json } => {
            let rows = weights::bench(*gibibytes, (*rounds).max(1), python.as_deref())?;
            if *json {
                say!("{}", serde_json::to_string_pretty(&rows)?);
            } else {
                rows.iter().for_each(print_weights);
            }
        }
        What::Side { of } if of == "weights" => weights::side()?,
        What::Side { .. } => module::side()?,
        What::Peer { arguments } => bench_peer(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn transport(rounds: usize, only: &str, python: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let name = format!("playhouse-bench-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).context("cannot make a folder for sockets")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let peer = (program, vec!["bench".to_owned(), "peer".to_owned()]);
    let rows = bench_transport(&Plan {
        rounds: rounds.max(1),
        peer,
        only: only.to_owned(),
        directory: directory.clone(),
        python: python.map(Path::to_owned),
    });
    std::fs::remove_dir_all(&directory).context("cannot remove the folder for sockets")?;
    let mut rows = rows?;
    rows.sort_by_key(|row| row.against.is_empty());
    if json {
        let rows: Vec<_> = rows.iter().map(as_json).collect();
        say!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        rows.iter().for_each(|row| say!("{row}"));
    }
    Ok(())
}

fn as_json(row: &Row) -> serde_json::Value {
    let against = row.against.iter().map(
        |(side, best, median)| json!({ "side": side, "ratio_best": best, "ratio_median": median }),
    );
    let against: Vec<_> = against.collect();
    json!({
        "against": against, "what": row.what, "bytes": row.size, "unit": row.unit,
        "best": row.best, "median": row.median,
    })
}

fn print_module(row: &module::Row) {
    let module::Row { name, ours, torch, ratios, peak } = row;
    let (ms, mib) = (1000.0 * ours, *peak as f64 / f64::from(1 << 20));
    match (torch, ratios) {
        (Some(torch), Some([best, median, cpu, memory])) => say!(
            "{name:<24} {ms:>9.1} ms, PyTorch {:>9.1} ms: {best:>5.2} best, {median:>5.2} median, \
             {cpu:>5.2} of CPU time, {memory:>5.2} of memory",
            1000.0 * torch
        ),
        _ => say!("{name:<24} {ms:>9.1} ms, {mib:>7.0} MiB"),
    }
}

fn print_weights(row: &weights::Row) {
    let weights::Row { what, bytes, ours, memory, theirs } = row;
    let rate = |seconds: f64| *bytes as f64 / seconds / 1e9;
    let theirs = theirs.map_or(String::new(), |[seconds, memory]| {
        let rate = rate(seconds);
        format!("; safetensors {rate:.2} GB/s, {memory:.2} times")
    });
    say!("{what:<8} {:>6.2} GB/s, memory {memory:.2} times the file{theirs}", rate(*ours));
}

fn print_step(found: &step::StepBench, json: bool) -> anyhow::Result<()> {
    if json {
        say!("{}", serde_json::to_string_pretty(found)?);
        return Ok(());
    }
    let torch = found.torch.as_ref().map_or(String::new(), |v| format!(", PyTorch {v}"));
    say!("device {}, {} threads{torch}", found.device, found.threads);
    for ratio in &found.ratios {
        let step::Ratio { of, best, median, cpu } = ratio;
        say!("{of:<40} {best:>6.3} best, {median:>6.3} median, {cpu:>6.3} of CPU time");
    }
    for side in &found.sides {
        let step::Side { name, best, median, cpu } = side;
        let [best, median, cpu] = [best, median, cpu].map(|seconds| 1000.0 * seconds);
        say!(
            "{name:<22} {best:>8.1} ms a step best, {median:>8.1} ms median, {cpu:>8.1} ms of CPU"
        );
    }
    Ok(())
}
