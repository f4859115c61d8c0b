//! Prints what the transport costs on this machine: `cargo run --release -p actors --example transport_bench`.
//!
//! The arguments are the number of rounds (default 5) and a part of the names of the cells to run. The second process is this same program.

use std::io::Write;

use actors::transport::bench::{Plan, bench_peer, bench_transport};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "peer") {
        return Ok(bench_peer(&arguments[1..])?);
    }
    let rounds = arguments.first().map_or(Ok(5), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("transport-bench-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let only = arguments.get(1).cloned().unwrap_or_default();
    let plan = Plan {
        rounds,
        only,
        peer: (std::env::current_exe()?, vec!["peer".to_owned()]),
        directory: directory.clone(),
        python: None,
    };
    let rows = bench_transport(&plan);
    std::fs::remove_dir_all(&directory)?;
    for row in rows? {
        writeln!(std::io::stdout(), "{row}")?;
    }
    Ok(())
}
