//! One experiment, many ways to run it, one series of numbers.

use tests::runs::{Place, exits};

const PROGRAM: &str = env!("CARGO_BIN_EXE_playhouse-test");

#[test]
fn a_run_is_done() {
    let place = Place::new(PROGRAM);
    println!("{}", exits(0, place.run("a", "")));
    println!("{}", place.metrics("a"));
}
