//! The `playhouse` command.

use std::process::ExitCode;

/// Tensors come and go at every operation. The system's allocator gives large ones back to the
/// kernel each time and faults their pages in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds after which the allocator gives unused memory back: its number among the options.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // The next step takes the memory that this one frees. A network of 100 million parameters
    // spends a fifth of its step in page faults where memory is given back in between.
    // SAFETY: sets a number before other threads are there.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    actors::memory::keep();
    experiments::main()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(super::PURGE_DELAY) }, 1000);
    }
}
