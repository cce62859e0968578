#!/usr/bin/env bash
# Fuzzes every parser of foreign bytes with libFuzzer, guided by coverage.
#
#   deploy/fuzz.sh SECONDS [NAME…]     SECONDS for each target; NAMEs of targets, default: all
#
# A target is an ordinary test that checks with bolero. What reaches something new goes to its corpus
# (`__fuzz__/NAME/corpus` beside its source), which is reduced afterwards to the smallest files with the
# same coverage; what fails goes to `crashes` beside it. Commit both: every `cargo test` begins with
# them. Nothing here needs more than a stable Rust: the coverage is LLVM's own, without a sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

# The test's path, its package, and how that is built fastest.
targets="
control_messages                                        memif
any_bytes_decode_or_are_refused                         memif
memory_of_a_hostile_client                              memif
memory_of_a_hostile_server                              memif
path::tests::noise::random_bytes_on_every_interface     bowline-dataplane   --no-default-features
path::tests::noise::damaged_frames_on_every_interface   bowline-dataplane   --no-default-features
any_bytes_as_a_state                                    bowline-dataplane   --no-default-features
almost_good_states                                      bowline-dataplane   --no-default-features
bytes_on_stdin_and_in_the_environment                   bowline-cni
almost_good_configurations                              bowline-cni
noise_in_annotations_never_panics                       multinet
almost_good_annotations_never_panic                     multinet
"

# The version of the library in Cargo.lock and that of its tool go together.
command -v cargo-bolero >/dev/null ||
    cargo install cargo-bolero --locked --version '^0.13' --no-default-features --features libfuzzer

seconds=$1
shift
failed=0
while read -r test package options; do
    [ -n "$test" ] || continue
    [ $# = 0 ] || [[ " $* " == *" ${test##*::} "* ]] || continue
    echo "== $test, $seconds s"
    # shellcheck disable=SC2086
    how=(-p "$package" --profile fuzz --sanitizer NONE $options)
    if ! cargo bolero test "$test" "${how[@]}" -T "${seconds}s" -l 4096 </dev/null; then
        echo "== $test FAILED: the input is in __fuzz__/…/crashes; run its test to see it"
        failed=1
        continue
    fi
    cargo bolero reduce "$test" "${how[@]}" </dev/null
done <<<"$targets"
exit $failed
