//! How libtorch's threads wait.

/// Starts the program again, as the same process, with threads of OpenMP that sleep while they
/// wait.
///
/// Each thread that computes on libtorch has a team of threads. By default those of an idle team
/// spin, which takes the cores from other nodes and other programs. OpenMP reads the setting when
/// the program is loaded. A setting that is there already stays.
#[cfg(feature = "tch")]
pub(crate) fn settle() {
    use std::os::unix::process::CommandExt as _;
    use std::{env, process::Command};
    if env::var_os(WAIT).is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // It returns only when it fails; then the threads spin, and all else works.
        let _ = Command::new(program).args(env::args_os().skip(1)).env(WAIT, PASSIVE).exec();
    }
}

/// The setting.
pub(crate) const WAIT: &str = "OMP_WAIT_POLICY";
/// Sleep.
pub(crate) const PASSIVE: &str = "passive";
