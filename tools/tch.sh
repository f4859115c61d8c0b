#!/bin/sh
# Runs cargo with the libtorch of a PyTorch installation, for builds with the feature `tch`.
#   PYTHON=venv/bin/python tools/tch.sh build --release --package experiments --features tch
set -eu
python=${PYTHON:-python3}
find='import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")'
LIBTORCH=$("$python" -c "$find")
if [ -z "$LIBTORCH" ]; then
    echo "\`$python\` has no torch; set PYTHON to one that has torch 2.9 to 2.12" >&2
    exit 1
fi
# The binding asks for torch 2.9.0 exactly, and builds with 2.9.0 to 2.12.1.
export LIBTORCH LIBTORCH_BYPASS_VERSION_CHECK=1
exec cargo "$@"
