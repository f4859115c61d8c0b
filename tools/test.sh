#!/bin/sh
# Runs all tests with cargo-nextest when it is there, else with cargo test.
set -eu
cd "$(dirname "$0")/.."
if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --workspace --locked "$@"
fi
exec cargo test --workspace --locked "$@"
