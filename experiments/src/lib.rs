//! Composes experiments from YAML graphs and runs them: the `playhouse` command.
//!
//! This is the only crate that sees both the modules and the actors.

use std::process::ExitCode;

use actors::node_actor::Factory;
use clap::{Parser, Subcommand};

mod bench;
mod cmd;
pub mod compose;
mod log;
mod openmp;
pub mod origin;
mod out;
pub mod plain;
pub mod read;
pub mod schema;
mod score;
pub mod summary;

/// Actor-based research platform for video foundation models
#[derive(Parser)]
#[command(name = "playhouse", bin_name = "playhouse", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(cmd::run::Args),
    Resume(cmd::resume::Args),
    Check(cmd::check::Args),
    Plan(cmd::plan::Args),
    Graph(cmd::graph::Args),
    List(cmd::list::Args),
    Explain(cmd::explain::Args),
    New(cmd::new::Args),
    Schema(cmd::schema::Args),
    Status(cmd::status::Args),
    Agent(cmd::agent::Args),
    Keys(cmd::keys::Args),
    Data(cmd::data::Args),
    Bench(cmd::bench::Args),
    Weights(cmd::weights::Args),
    Conform(cmd::conform::Args),
    Score(cmd::score::Args),
}

/// Runs the command line. Exit codes: 0 done, 1 the work failed, 2 usage or unreadable input,
/// 130 interrupted after a checkpoint.
pub fn main() -> ExitCode {
    main_with(&compose::factory())
}

/// Runs the command line with nodes of another factory; tests make nodes fail with it.
pub fn main_with(factory: &Factory) -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "tch")]
    if let Command::Run(_) | Command::Resume(_) | Command::Agent(_) | Command::Bench(_) =
        arguments.command
    {
        openmp::settle();
    }
    log::begin();
    let outcome = match arguments.command {
        Command::Run(args) => cmd::run::run(&args, factory),
        Command::Resume(args) => cmd::resume::run(&args, factory),
        Command::Check(args) => cmd::check::run(&args),
        Command::Plan(args) => cmd::plan::run(&args),
        Command::Graph(args) => cmd::graph::run(&args),
        Command::List(args) => cmd::list::run(&args),
        Command::Explain(args) => cmd::explain::run(&args),
        Command::New(args) => cmd::new::run(&args),
        Command::Schema(args) => cmd::schema::run(&args),
        Command::Status(args) => cmd::status::run(&args),
        Command::Agent(args) => cmd::agent::run(&args, factory),
        Command::Keys(args) => cmd::keys::run(&args),
        Command::Data(args) => cmd::data::run(&args),
        Command::Weights(args) => cmd::weights::run(&args),
        Command::Conform(args) => cmd::conform::run(&args),
        Command::Score(args) => cmd::score::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
