#!/usr/bin/env bash
# Runs the queues of memif under miri: undefined behaviour, data races, and orderings that x86 hides.
set -euo pipefail
cd "$(dirname "$0")/.."

# Miri comes with nightly Rust only.
cargo +nightly miri --version >/dev/null 2>&1 ||
    rustup toolchain install nightly --profile minimal --component miri --component rust-src ||
    { echo "bowline: miri is missing: run 'rustup toolchain install nightly --component miri --component rust-src'" >&2; exit 1; }
# Several seeds: each is another order of the threads.
MIRIFLAGS="-Zmiri-many-seeds=0..${SEEDS:-4}" cargo +nightly miri test -p memif --lib ring::tests
