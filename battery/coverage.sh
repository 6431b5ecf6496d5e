#!/bin/sh
# Lines and branches of the protection code that its tests reach. Fails below 100 %.
#
# Needs llvm-profdata and llvm-cov of the compiler's LLVM: `rustup component add llvm-tools`, or a distribution's package;
# LLVM_BIN names their folder when they are elsewhere. Branch counting is not stable yet, hence RUSTC_BOOTSTRAP.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
bin=${LLVM_BIN:-$(rustc --print sysroot)/lib/rustlib/$host/bin}
[ -x "$bin/llvm-cov" ] || bin=$(dirname "$(command -v "llvm-cov-$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')" || echo /usr/bin/llvm-cov)")
version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
tool() { [ -x "$bin/$1" ] && [ "$bin" != /usr/bin ] && echo "$bin/$1" || command -v "$1-$version" || command -v "$1"; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/coverage" RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-C instrument-coverage -Z coverage-options=branch" LLVM_PROFILE_FILE="$out/%p-%m.profraw"
test_bin=$(cargo test -q -p helio-battery --lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
"$test_bin" -q protection >&2
"$(tool llvm-profdata)" merge -sparse "$out"/*.profraw -o "$out/all"
"$(tool llvm-cov)" report "$test_bin" --instr-profile="$out/all" --show-branch-summary --show-region-summary=false \
  battery/src/protection/kinds.rs battery/src/protection/limits.rs battery/src/protection/mod.rs \
  battery/src/protection/watch.rs battery/src/protection/diagnostics.rs | tee "$out/report"
awk '/^TOTAL/ { exit !($7 == "100.00%" && $NF == "100.00%") }' "$out/report"
