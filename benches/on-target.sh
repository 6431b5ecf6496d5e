#!/bin/sh
# on-target.sh FOLDER MACHINE: builds the crate in FOLDER for thumbv7em-none-eabihf and runs it on QEMU's MACHINE, where one
# instruction takes one nanosecond of virtual time. Needs qemu-system-arm and a Rust that has the
# target (rustup target add thumbv7em-none-eabihf), or Debian's rustc-web, cargo-web and
# rust-web-src, which build `core` themselves. LINKER names rust-lld where it is not found.
set -eu
cd "$1"
target=thumbv7em-none-eabihf
cargo=cargo
build_std=
if ! rustup target list --installed 2> /dev/null | grep -qx "$target"; then
    if [ ! -d /usr/lib/rustlib/src ] && ! dpkg -s rust-web-src > /dev/null 2>&1; then
        echo "no $target: rustup target add $target, or install rustc-web, cargo-web, rust-web-src" >&2
        exit 1
    fi
    cargo=/usr/bin/cargo
    build_std=-Zbuild-std=core
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
fi
if ! command -v qemu-system-arm > /dev/null; then
    echo "no qemu-system-arm: apt-get install qemu-system-arm" >&2
    exit 1
fi
linker=${LINKER:-$(command -v rust-lld || find "$HOME/.rustup" -name rust-lld -type f 2> /dev/null | head -n 1)}
export RUSTFLAGS="-C link-arg=-Tlink.x -C linker=${linker:-rust-lld} -C linker-flavor=ld.lld"
"$cargo" build --quiet --release --target "$target" $build_std
elf=${CARGO_TARGET_DIR:-target}/$target/release/target-cost
timeout 60 qemu-system-arm -M "$2" -icount shift=0 -nographic \
    -semihosting-config enable=on,target=native -kernel "$elf"
# What is loaded: sections with the flag A that have contents.
readelf -SW "$elf" | sed 's/^ *\[ *[0-9]*\] *//' | awk '
    function hex(s,  i, n) { n = 0; s = tolower(s); for (i = 1; i <= length(s); i++) n = 16 * n + index("0123456789abcdef", substr(s, i, 1)) - 1; return n }
    $2 != "NOBITS" && $7 ~ /A/ { sum += hex($5) }
    END { print "flash: " sum " bytes" }'
