#!/usr/bin/env bash
# Installs what building for ARM64 Linux on another machine needs and this machine lacks, on top of tools/setup.sh.
#
#   tools/arm64-setup.sh          cross compilers, Rust's standard library for ARM64
#   tools/arm64-setup.sh test     the same, with qemu and the ARM64 libraries that programs in it need
#
# Packages come by apt-get when we are root or have sudo without a password; otherwise the script names what is missing and
# exits with 1. Rust's standard library comes from rustup, or, where its server does not answer, with Debian's own compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/packages.sh

purpose=${1:-build}
target=aarch64-unknown-linux-gnu
rustup_seconds=180

has_std() { compgen -G "$("$1" --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib" >/dev/null; }

has_any_std() { has_std "${RUSTC:-rustc}" || has_std /usr/bin/rustc; }

# The checks name Debian packages, one a line.

missing_packages() {
    local cross=-aarch64-linux-gnu
    [ "$(uname -m)" != aarch64 ] || cross= # here the cross compilers are the compilers
    command -v aarch64-linux-gnu-gcc >/dev/null || echo "gcc$cross"
    command -v aarch64-linux-gnu-g++ >/dev/null || echo "g++$cross"
    has_any_std || printf '%s\n' rustc-web libstd-rust-web-dev:arm64
    [ "$purpose" = test ] || return 0
    command -v qemu-aarch64-static >/dev/null || echo qemu-user-static
    local library package
    for library in libc.so.6=libc6 libstdc++.so.6=libstdc++6 libgcc_s.so.1=libgcc-s1 libgomp.so.1=libgomp1; do
        package=${library#*=}
        compgen -G "/lib/aarch64-linux-gnu/${library%=*}" >/dev/null ||
            compgen -G "/usr/lib/aarch64-linux-gnu/${library%=*}" >/dev/null || echo "$package:arm64"
    done
}

stop() {
    echo "arm64-setup: $1, by the names of Debian's packages: ${*:2}" >&2
    echo "arm64-setup: install them (sudo dpkg --add-architecture arm64, apt-get update, apt-get install), then try again" >&2
    if ! has_any_std; then echo "arm64-setup: rustup target add $target does in place of rustc-web and its library" >&2; fi
    exit 1
}

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -gt 0 ] || return 0
    can_install || stop missing "${packages[@]}"
    echo "arm64-setup: installing ${packages[*]}" >&2
    as_root dpkg --add-architecture arm64
    apt_update
    apt_install "${packages[@]}"
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -eq 0 ] || stop "installed, yet still not usable" "${packages[@]}"
}

case $purpose in
build | test) ;;
*) echo "usage: tools/arm64-setup.sh [test]" >&2 && exit 2 ;;
esac
tools/setup.sh
if ! has_any_std && command -v rustup >/dev/null; then
    timeout "$rustup_seconds" rustup --quiet target add $target ||
        echo "arm64-setup: rustup could not add $target: going on with Debian's compiler" >&2
fi
install_packages
