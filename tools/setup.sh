#!/usr/bin/env bash
# Installs what building pocket-llm needs and this machine lacks. Silent and quick when nothing is missing.
#
#   tools/setup.sh          what `make run`, `make test` and `make bench` need
#   tools/setup.sh lint     the same, with shellcheck and cargo-deny
#
# Packages come by apt-get when we are root or have sudo without a password; otherwise the script names what is
# missing and exits with 1. The Rust toolchain is never installed here. All else that it makes (a Python venv, cargo-deny)
# lies in the cache, $POCKET_LLM_CACHE or ~/.cache/pocket-llm.
set -euo pipefail
# shellcheck source=tools/packages.sh
. "$(dirname "$0")/packages.sh"

purpose=${1:-build}
cache=${POCKET_LLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pocket-llm}
cargo_deny_version=0.20.2

# The checks name Debian packages, one a line.

compiles_with_clang() { # bindgen needs clang's own headers: with a bare libclang it fails on stdbool.h
    printf '#include <stdbool.h>\n' | clang -fsyntax-only -x c - 2>/dev/null
}

has_libclang() {
    local folder
    for folder in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"} /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu* /usr/lib /usr/lib64 \
        /usr/local/lib ${PREFIX:+"$PREFIX/lib"}; do
        compgen -G "$folder/libclang.so*" >/dev/null && return
        compgen -G "$folder/libclang-[0-9]*.so*" >/dev/null && return
    done
    return 1
}

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

has_certificates() {
    [ ! -e /etc/debian_version ] || [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -n "${SSL_CERT_FILE:-}" ]
}

# Without it llama.cpp is built without OpenMP, and says so only in a warning.
has_openmp() { echo '#include <omp.h>' | c++ -fopenmp -fsyntax-only -x c++ - 2>/dev/null; }

required_packages() {
    command -v cmake >/dev/null || echo cmake
    command -v cc >/dev/null && command -v c++ >/dev/null && has_openmp || echo g++
    command -v make >/dev/null || echo make
    compiles_with_clang || echo clang
    has_libclang || echo libclang-dev
    has_venv || printf '%s\n' python3 python3-venv
    has_certificates || echo ca-certificates
}

optional_packages() {
    command -v ccache >/dev/null || echo ccache # rebuilds of llama.cpp in seconds
    if [ "$purpose" = lint ]; then command -v shellcheck >/dev/null || echo shellcheck; fi
}

install_packages() {
    local required optional
    mapfile -t required < <(required_packages)
    mapfile -t optional < <(optional_packages)
    [ $((${#required[@]} + ${#optional[@]})) -gt 0 ] || return 0
    if ! can_install; then
        [ ${#required[@]} -gt 0 ] || return 0
        echo "setup: missing, by the names of Debian's packages: ${required[*]}" >&2
        echo "setup: install them (sudo apt-get install ${required[*]}), then try again" >&2
        exit 1
    fi
    echo "setup: installing ${required[*]} ${optional[*]}" >&2
    apt_update
    [ ${#required[@]} -eq 0 ] || apt_install "${required[@]}"
    [ ${#optional[@]} -eq 0 ] || apt_install "${optional[@]}" 2>/dev/null || echo "setup: going on without ${optional[*]}" >&2
    mapfile -t required < <(required_packages)
    [ ${#required[@]} -eq 0 ] || { echo "setup: installed, yet still not usable: ${required[*]}" >&2; exit 1; }
}

check_rust() {
    command -v cargo >/dev/null && return
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        echo "setup: Rust is installed but not on PATH: . $HOME/.cargo/env" >&2
    else
        echo "setup: Rust is missing: install rustup (https://rustup.rs); rust-toolchain.toml names the toolchain" >&2
    fi
    exit 1
}

make_venv() { # Debian's pip refuses to install outside of one
    local venv=$cache/venv
    "$venv/bin/python" -c 'import pip' 2>/dev/null && return
    mkdir -p "$cache"
    (
        flock 9
        "$venv/bin/python" -c 'import pip' 2>/dev/null && exit
        rm -rf "$venv" && python3 -m venv "$venv"
    ) 9>"$cache/venv.lock"
}

install_cargo_deny() { # takes minutes, once
    local root=$cache/tools/cargo-deny-$cargo_deny_version
    [ -x "$root/bin/cargo-deny" ] && return
    mkdir -p "$cache/tools"
    (
        flock 9
        [ -x "$root/bin/cargo-deny" ] && exit
        echo "setup: building cargo-deny $cargo_deny_version into $root" >&2
        # A folder of its own: the caller's target folder would keep the 1 GB that this leaves behind.
        build=$(mktemp -d "$cache/tools/build.XXXXXX")
        trap 'rm -rf "$build"' EXIT
        cargo install --quiet --locked --root "$root" --target-dir "$build" "cargo-deny@$cargo_deny_version"
    ) 9>"$cache/tools/cargo-deny.lock"
}

case $purpose in
build | lint) ;;
*) echo "usage: tools/setup.sh [lint]" >&2 && exit 2 ;;
esac
install_packages
make_venv
check_rust
if [ "$purpose" = lint ]; then install_cargo_deny; fi
