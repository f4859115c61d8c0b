//! Links libtorch when the feature `tch` is on.

#[path = "../tools/libtorch.rs"]
mod libtorch;

fn main() {
    libtorch::link();
}
