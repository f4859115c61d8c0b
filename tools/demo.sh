#!/bin/sh
# The first run: makes moving shapes, trains two teachers and a student, and judges the student
# beside an encoder that never trained.
set -eu
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
playhouse="$target/release/playhouse"
run=${1:-runs/demo}
rm -rf "$run"
"$playhouse" data shapes data/shapes --plain --motions 4
"$playhouse" run experiments/internvideo2/stage1.yaml --out "$run"
