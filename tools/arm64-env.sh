#!/usr/bin/env bash
# Runs a command with the environment of a build for ARM64 Linux (glibc): tools/arm64-env.sh cargo build --release
#
# Needs what tools/arm64-setup.sh installs. `cargo test` and `cargo run` use qemu, as the CPU in $ARM64_CPU (qemu's names).
set -euo pipefail

target=aarch64-unknown-linux-gnu
gcc=aarch64-linux-gnu-gcc
cpu=${ARM64_CPU:-max,sve-max-vq=1} # vectors of 128 bits, as in phones; longer ones are many times slower in qemu

has_std() { compgen -G "$("$1" --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib" >/dev/null; }

[ $# -gt 0 ] || { echo "usage: tools/arm64-env.sh COMMAND..." >&2; exit 2; }
export CARGO_BUILD_TARGET=$target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
# Not the cross compiler's own libc: with it every new thread hangs in qemu 7.2.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $cpu -L /"
export CC_aarch64_unknown_linux_gnu=$gcc
export CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
headers="-isystem $($gcc -print-file-name=include)"
[ ! -d /usr/aarch64-linux-gnu/include ] || headers+=" -isystem /usr/aarch64-linux-gnu/include"
export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu=$headers
unset BINDGEN_EXTRA_CLANG_ARGS
has_std "${RUSTC:-rustc}" || export RUSTC=/usr/bin/rustc # Debian's, whose standard library for ARM64 is a package
# In place of the flags in .cargo/config.toml, which ask for the building machine's CPU. The libraries lie beside the program.
export RUSTFLAGS="-C link-arg=-Wl,-rpath,\$ORIGIN"
# rustup's own linker packs relocations, which Debian 12's does not for ARM64 (0.6 MB), and keeps one of equal functions.
lld=$("${RUSTC:-rustc}" --print sysroot)/lib/rustlib/$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')/bin/gcc-ld
if [ -x "$lld/ld.lld" ]; then
    export ARM64_LLD=$lld # for cmake/ggml-arm64.cmake
    RUSTFLAGS+=" -C link-arg=-fuse-ld=lld -C link-arg=-B$lld -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--icf=all"
fi
exec "$@"
