#!/usr/bin/env bash
# Fuzzes every parser of foreign bytes with libFuzzer, guided by coverage.
#
#   deploy/fuzz.sh SECONDS [NAME…]     SECONDS for each target; NAMEs of targets, default: all
#
# A target is an ordinary test that checks with bolero. What reaches something new goes to its corpus
# (`__fuzz__/NAME/corpus` beside its source), which is reduced afterwards to few files with the
# same coverage; what fails goes to `crashes` beside it. Commit both: every `cargo test` begins with
# them. Nothing here needs more than a stable Rust: the coverage is LLVM's own, without a sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

# The test's path, its package, and the one program of its tests that has targets: all code is built to
# report to a fuzzer, so that programs without one cannot be linked. For that reason cargo-bolero, which
# builds all of a package's programs, is no help here.
targets="
control_messages                                        memif               --test fuzz
any_bytes_decode_or_are_refused                         memif               --test fuzz
memory_of_a_hostile_client                              memif               --test fuzz
memory_of_a_hostile_server                              memif               --test fuzz
path::tests::noise::random_bytes_on_every_interface     bowline-dataplane   --lib --no-default-features
path::tests::noise::damaged_frames_on_every_interface   bowline-dataplane   --lib --no-default-features
control::noise::any_bytes_as_a_state                    bowline-dataplane   --lib --no-default-features
control::noise::almost_good_states                      bowline-dataplane   --lib --no-default-features
noise::bytes_on_stdin_and_in_the_environment            bowline-cni         --lib
noise::almost_good_configurations                       bowline-cni         --lib
noise_in_annotations_never_panics                       multinet            --test pods
almost_good_annotations_never_panic                     multinet            --test pods
"

# What bolero-libfuzzer is built by, and what libFuzzer wants to be told by the code.
flags="--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module"
for told in level=4 inline-8bit-counters pc-table trace-compares stack-depth; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$told"
done
# Named, so that build scripts and macros do not get these flags.
host=$(rustc -vV | sed -n 's/^host: //p')

# Builds a target's program and runs the target, with what is told to it by environment variables.
run() {
    RUSTFLAGS=$flags BOLERO_FUZZER=libfuzzer cargo test --profile fuzz --target "$host" \
        --target-dir target/fuzz -p "$package" "${options[@]}" \
        -- "$test" --exact --nocapture --test-threads 1 </dev/null
}

# Runs libFuzzer with ARGUMENTS. It has a line for each input that it keeps: the others tell enough.
fuzz() {
    BOLERO_TEST_NAME=$test BOLERO_LIBTEST_HARNESS=1 BOLERO_LIBFUZZER_ARGS="$*" run 2>&1 |
        grep -vE $'^#[0-9]+\t(NEW|REDUCE|RELOAD)'
}

# The folder of a target's corpus, as bolero names it.
folder() { CARGO_BOLERO_SELECT=one run | sed -n 's/.*"work_dir":"\([^"]*\)".*/\1/p'; }

seconds=$1
shift
ran=0
failed=0
while read -r test package options; do
    [ -n "$test" ] || continue
    [ $# = 0 ] || [[ " $* " == *" ${test##*::} "* ]] || continue
    ran=$((ran + 1))
    echo "== $test, $seconds s"
    read -ra options <<<"$options"
    at=$(folder)
    [ -n "$at" ] || { echo "fuzz: $package has no target $test in ${options[*]}" >&2; exit 1; }
    mkdir -p "$at/corpus" "$at/crashes"
    if ! fuzz "$at/corpus" "$at/crashes" "-artifact_prefix=$at/crashes/" -timeout=10 -max_len=4096 "-max_total_time=$seconds"; then
        echo "== $test FAILED: the input is in $at/crashes; 'cargo test -p $package ${options[*]} $test' runs it"
        failed=1
        continue
    fi
    rm -rf "$at/reduced"
    mkdir "$at/reduced"
    fuzz -merge=1 "$at/reduced" "$at/corpus"
    rm -r "$at/corpus"
    mv "$at/reduced" "$at/corpus"
done <<<"$targets"
[ "$ran" -gt 0 ] || { echo "fuzz: no target is called $*; deploy/fuzz.sh lists them" >&2; exit 1; }
exit $failed
