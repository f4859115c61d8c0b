//! The `playhouse` command.

use std::process::ExitCode;

/// Tensors come and go at every operation. The system's allocator gives large ones back to the
/// kernel each time and faults their pages in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    actors::memory::keep();
    experiments::main()
}
