//! The system's allocator, which C libraries use whatever allocator Rust has.

/// Keeps freed memory in the process.
///
/// libzmq takes fresh memory for every frame, libtorch for every tensor. By default glibc gives large pieces back
/// to the system at once; then half the time of receiving, and a fifteenth of a training step on libtorch, goes
/// into page faults. Bounds, not reservations: 512 MiB may stay unused in each arena.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes two thresholds of the allocator, which it does under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}
