//! Part of build scripts: with the feature `tch`, programs and tests find libtorch by themselves.

use std::env;
use std::path::Path;

/// Writes the place of the libtorch that `LIBTORCH` names into the package's programs and tests.
pub(crate) fn link() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=../tools/libtorch.rs");
    let (true, Some(root)) = (env::var_os("CARGO_FEATURE_TCH").is_some(), env::var_os("LIBTORCH"))
    else {
        return;
    };
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", Path::new(&root).join("lib").display());
    // The CUDA libraries lie in other packages of the wheel, where only the loader finds them.
    println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
}
