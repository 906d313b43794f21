#!/usr/bin/env bash
# Builds the program for ARM64 Linux and collects it with its libraries in one folder, stripped: $CARGO_TARGET_DIR/arm64-dist.
#
#   tools/arm64-build.sh [more of cargo's flags]
#
# The folder holds all that the program needs beside the C, C++ and OpenMP libraries (libc6, libstdc++6, libgcc-s1, libgomp1) of a
# Debian 12 or newer: move it as a whole.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
dist=$target/arm64-dist
program=$target/aarch64-unknown-linux-gnu/release/pocket-llm
strip=aarch64-linux-gnu-strip
readelf=aarch64-linux-gnu-readelf
nm=aarch64-linux-gnu-nm

# For our own code, and in the environment, because only this build is sent over networks. llama.cpp does the work, and is not
# touched. Without LTO its unused helpers would be asked for too, 5 MB.
# Without the feature `tokenizers` it is 1.7 MB less. What no step of an answer runs through is made as small as can be (0.3 MB).
export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=s
sizes=(--config 'profile.release.package."*".opt-level="z"')
for package in llguidance derivre toktrie serde_json; do sizes+=(--config "profile.release.package.$package.opt-level=\"s\""); done
most_bytes=13000000

build() { # prints the folder in which llama.cpp was built
    # llama-cpp-sys-2 leaves links here that lead nowhere, and stumbles over them when it is built again.
    find "$target/aarch64-unknown-linux-gnu/release" -maxdepth 2 -xtype l -name 'lib*.so' -delete 2>/dev/null || true
    tools/arm64-env.sh cargo build --release --no-default-features --features dynamic "${sizes[@]}" --message-format json-render-diagnostics "$@" |
        sed -n '/"build-script-executed"/ s/.*"package_id":"[^"]*#llama-cpp-sys-2@.*"out_dir":"\([^"]*\)".*/\1/p'
}

asked_for() { # FILE...: what these files want others to define, and no library of the system by a version of its own does
    $nm --dynamic --undefined-only "$@" | awk '$1 == "U" && $2 !~ /@/ { print $2 }' | sort -u
}

# Most of llama.cpp's interface is for other programs. What is not asked for is not shown, and what only that needed is dropped (0.5 MB).
trim() {
    local out=$1 libraries=$1/build/bin
    show "$out" llama "$program"
    show "$out" ggml "$program" "$libraries/libllama.so.0"
    show "$out" ggml-base "$program" "$libraries"/lib{llama,ggml}.so.0 "$libraries"/libggml-cpu-*.so
}

show() { # OUT LIBRARY FILE...: links a library again, so that it shows what these files ask for
    local build=$1/build library=$2
    shift 2
    { echo '{ global:'; asked_for "$@" | sed 's/$/;/'; echo 'local: *; };'; } >"$build/exports-$library.map"
    tools/arm64-env.sh cmake --build "$build" --target "$library" >/dev/null
}

collect() {
    local libraries=$1/build/bin
    rm -rf "$dist" && mkdir -p "$dist"
    cp "$program" "$dist/"
    cp -L "$libraries"/lib{llama,ggml,ggml-base}.so.0 "$libraries"/libggml-cpu-*.so "$dist/"
    $strip --strip-unneeded "$dist"/*
}

check() {
    local name bytes
    # Every library of ours that one of the files asks for must be there; llama.cpp's own folder must not be asked for.
    for name in $($readelf --dynamic "$dist"/* | sed -n 's/.*(NEEDED).*\[\(lib\(llama\|ggml\)[^]]*\)\]/\1/p' | sort -u); do
        [ -e "$dist/$name" ] || { echo "arm64-build: $name is not in $dist" >&2; exit 1; }
    done
    for name in $(comm -23 <(asked_for "$dist"/*) <($nm --dynamic --defined-only "$dist"/*.so* | awk 'NF == 3 { print $3 }' | sort -u)); do
        echo "arm64-build: nothing in $dist defines $name" >&2
        exit 1
    done
    bytes=$(cat "$dist"/* | wc -c)
    echo "arm64-build: $dist has $bytes bytes in $(find "$dist" -type f | wc -l) files" >&2
    [ "$bytes" -lt $most_bytes ] || { echo "arm64-build: that is not less than $most_bytes" >&2; exit 1; }
}

out=$(build "$@")
[ -n "$out" ] || { echo "arm64-build: cargo did not say where it built llama.cpp" >&2; exit 1; }
trim "$out"
collect "$out"
check
