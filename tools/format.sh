#!/bin/sh
# Formats every Rust file. `cargo fmt` does not see the files that a build script includes.
set -eu
cd "$(dirname "$0")/.."
git ls-files -co --exclude-standard '*.rs' | grep -v '^vendor/' |
    xargs rustfmt --edition 2024 --config-path .rustfmt.toml "$@"
