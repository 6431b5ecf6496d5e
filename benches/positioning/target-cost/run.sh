#!/bin/sh
# Builds for thumbv7em-none-eabihf and runs on QEMU's mps2-an386 (Cortex-M4F), where one
# instruction takes one nanosecond of virtual time. Needs qemu-system-arm and a Rust that has the
# target or its sources: RUSTC and CARGO choose it, LINKER names rust-lld if it is not found.
set -eu
cd "$(dirname "$0")"
cargo=${CARGO:-cargo}
export RUSTFLAGS="-C link-arg=-Tlink.x -C linker=${LINKER:-rust-lld} -C linker-flavor=ld.lld"
"$cargo" build --release --target thumbv7em-none-eabihf ${BUILD_STD:+-Zbuild-std=core}
elf=${CARGO_TARGET_DIR:-target}/thumbv7em-none-eabihf/release/target-cost
timeout 60 qemu-system-arm -M mps2-an386 -icount shift=0 -nographic \
    -semihosting-config enable=on,target=native -kernel "$elf"
size "$elf" 2>/dev/null || true
