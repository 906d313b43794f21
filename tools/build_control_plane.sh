#!/usr/bin/env bash
# Builds the parts of a Kubernetes control plane (etcd, kube-apiserver, kube-scheduler, kube-controller-manager) for
# tools/k8s_control_plane.py, and prints the folder that holds them. Quick when they are there; else about ten minutes.
#
# No package registry has these programs ready, but Debian 12 carries the whole source of Kubernetes 1.20.2, with all that it needs, to build
# kubectl from. That is an old version with the real controllers; the schemas of current ones are check_k8s.py's part. Nothing is
# installed: packages are unpacked in a folder of the cache, by apt with lists and settings of its own.
#
#   POCKET_LLM_KUBERNETES=FOLDER   uses the programs in FOLDER instead, of any version
set -euo pipefail

release=bookworm version=1.20.2
cache=${POCKET_LLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pocket-llm}
root=$cache/tools/kubernetes-$version
programs="etcd kube-apiserver kube-scheduler kube-controller-manager"

say() { echo "build_control_plane: $*" >&2; }

complete() {
    local program
    for program in $programs; do [ -x "$1/$program" ] || return 1; done
}

# The Debian mirror that this machine uses anyway.
mirror() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' | awk '$2 == "Debian" && $3 == "Debian" && !seen++ { print $1 }'
}

apt() { # its own sources, lists and cache: the machine's stay as they are
    local command=$1
    shift
    "apt-$command" -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root "$@"
}

fetch() {
    local uri package keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    uri=$(mirror)
    [ -n "$uri" ] || { say "no Debian mirror among apt's sources (apt-get update, perhaps)"; exit 1; }
    mkdir -p "$work"/{lists,cache/archives,packages}/partial
    printf '%s [signed-by=%s] %s %s main\n' deb "$keyring" "$uri" "$release" deb-src "$keyring" "$uri" "$release" >"$work/sources.list"
    apt get update
    cd "$work/packages"
    apt get download golang-1.19-go golang-1.19-src etcd-server rsync libpopt0 libxxhash0 \
        golang-github-modern-go-reflect2-dev
    for package in *.deb; do dpkg -x "$package" "$work/debian"; done
    apt get source --download-only kubernetes
    # The archive's signature on the lists covers the source by its hash; the uploader's key is not at hand.
    dpkg-source --no-check --extract kubernetes_*.dsc "$work/kubernetes" >/dev/null
    # Its reflect2 knows maps as they were before Go 1.18 and crashes on newer ones; Debian's is mended.
    rm "$work"/kubernetes/vendor/github.com/modern-go/reflect2/*.{go,s}
    cp "$work"/debian/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$work/kubernetes/vendor/github.com/modern-go/reflect2/"
}

build() {
    local libraries
    libraries=$(dirname "$(find "$work/debian/usr/lib" -name 'libpopt.so.0' -print -quit)")
    mkdir -p "$work/path" "$work/home"
    # Kubernetes' makefiles copy with rsync, which few machines have.
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/debian/usr/bin/rsync "$@"\n' "$libraries" "$work" >"$work/path/rsync"
    chmod +x "$work/path/rsync"
    export GOROOT=$work/debian/usr/lib/go-1.19 GOPATH=$work/kubernetes/.go GOCACHE=$work/gocache GOPROXY=off GOFLAGS=-p=2 CGO_ENABLED=0
    export HOME=$work/home PATH=$work/path:$work/debian/usr/lib/go-1.19/bin:$PATH
    cd "$work/kubernetes"
    mkdir -p .go/src/k8s.io
    ln -sfn ../../.. .go/src/k8s.io/kubernetes
    nice -n 19 make WHAT="cmd/kube-apiserver cmd/kube-scheduler cmd/kube-controller-manager" >"$root/build.log" 2>&1 ||
        { tail -20 "$root/build.log" >&2; say "the build failed; $root/build.log has all of it"; exit 1; }
}

if [ -n "${POCKET_LLM_KUBERNETES:-}" ]; then
    complete "$POCKET_LLM_KUBERNETES" || { say "$POCKET_LLM_KUBERNETES lacks one of $programs"; exit 1; }
    echo "$POCKET_LLM_KUBERNETES"
    exit
fi
mkdir -p "$root"
exec 9>"$root/lock"
flock 9
if ! complete "$root/bin"; then
    for tool in apt-get dpkg-source make; do
        command -v "$tool" >/dev/null || { say "this needs $tool (Debian: apt, dpkg-dev, make)"; exit 1; }
    done
    say "building Kubernetes $version and fetching etcd into $root, once"
    work=$root/work
    rm -rf "$work"
    trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT # 3 GB
    (fetch)
    (build)
    mkdir -p "$root/bin"
    cp "$work"/kubernetes/_output/bin/kube-{apiserver,scheduler,controller-manager} "$work/debian/usr/bin/etcd" "$root/bin/"
fi
echo "$root/bin"
