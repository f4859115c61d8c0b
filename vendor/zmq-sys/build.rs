//! Builds libzmq 4.3.5 against the libsodium that `libsodium-sys-stable` has built.
//!
//! The published script passes no libsodium, which leaves CURVE out of the library. Needs g++ and make,
//! no system package: both sources are inside their crates.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let include = env::var_os("DEP_SODIUM_INCLUDE").map(PathBuf::from);
    let lib = env::var_os("DEP_SODIUM_LIB").map(PathBuf::from);
    let (include, lib) = match (include, lib) {
        (Some(include), Some(lib)) => (include, lib),
        _ => panic!("libsodium-sys-stable gave no include and lib directory; unset SODIUM_LIB_DIR and SODIUM_USE_PKG_CONFIG"),
    };
    // Their warnings are not ours to mend, and a path crate would print every one.
    let flags = env::var("CXXFLAGS").unwrap_or_default();
    env::set_var("CXXFLAGS", format!("{flags} -w"));
    zeromq_src::Build::new()
        .with_libsodium(Some(zeromq_src::LibLocation::new(lib, include)))
        .build();
}
