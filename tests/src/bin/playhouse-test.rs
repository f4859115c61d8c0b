//! The `playhouse` command with nodes that fail when they are told to.

use std::process::ExitCode;

fn main() -> ExitCode {
    experiments::main_with(&tests::faults::factory())
}
