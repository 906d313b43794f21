#!/usr/bin/env bash
# Builds what `make bench` compares us with: llama-server, llama-bench and llama-batched-bench of llama.cpp b11549, from the
# source package of xllamacpp 2026.10.11549 (by pip). Never a dependency of the server.
#
#   tools/build_peer.sh [native|portable]      into $PEER/bin, by default peer in the cache; about 17 CPU-minutes, once
#
# native (the default) builds for the processor at hand without AMX, as .cargo/config.toml does for us. portable is what
# llama-cpp-sys-2 does when it is told nothing: on x86-64 AVX2, FMA, F16C and BMI2. Compare like with like, and say which.
set -euo pipefail

version=2026.10.11549
march=${1:-native}
cache=${POCKET_LLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pocket-llm}
peer=${PEER:-$cache/peer}
programs=(llama-server llama-bench llama-batched-bench)

case $march in
native)
    flags=(-DGGML_NATIVE=ON)
    no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" # has been seen to crash in virtual machines
    [ "$(uname -m)" != x86_64 ] || flags+=("-DCMAKE_C_FLAGS=$no_amx" "-DCMAKE_CXX_FLAGS=$no_amx")
    ;;
portable) flags=(-DGGML_NATIVE=OFF) ;;
*) echo "usage: tools/build_peer.sh [native|portable]" >&2 && exit 2 ;;
esac
command -v ccache >/dev/null || flags+=(-DGGML_CCACHE=OFF)
flags+=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_IS_DEV=OFF)

mkdir -p "$peer"
exec 9>"$peer/.lock"
flock 9
# A native build is for one processor: another one gets its own.
stamp="$version $march $(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | sha256sum | cut -c1-16)"
if [ -x "$peer/bin/llama-server" ] && [ "$(cat "$peer/bin/built-for" 2>/dev/null)" = "$stamp" ]; then exit; fi

cd "$peer"
if [ ! -d "src-$version" ]; then
    echo "peer: downloading xllamacpp $version" >&2 # some minutes: pip prepares its metadata
    "$cache/venv/bin/python" -m pip download --quiet --no-deps --no-binary :all: "xllamacpp==$version"
    rm -rf src.part && mkdir src.part
    tar -xzf "xllamacpp-$version.tar.gz" -C src.part --strip-components=1
    rm "xllamacpp-$version.tar.gz"
    mv src.part "src-$version"
fi
log=$peer/build-$march.log
echo "peer: building llama.cpp, log in $log" >&2
{
    cmake -S "src-$version/thirdparty/llama.cpp" -B "build-$march" "${flags[@]}" &&
        cmake --build "build-$march" --parallel "$(nproc)" --target "${programs[@]}"
} >"$log" 2>&1 || { tail -n 20 "$log" >&2 && exit 1; }
mkdir -p bin
for program in "${programs[@]}"; do cp "build-$march/bin/$program" bin/; done
echo "$stamp" >bin/built-for
