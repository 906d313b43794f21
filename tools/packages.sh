# Installing Debian packages; for tools/setup.sh and tools/arm64-setup.sh, which source this file.
#
# Packages come by apt-get when we are root or have sudo without a password. Whoever sources this names what is missing otherwise.
# shellcheck shell=bash

as_root() {
    if [ "$(id -u)" = 0 ]; then env DEBIAN_FRONTEND=noninteractive "$@"; else sudo -n env DEBIAN_FRONTEND=noninteractive "$@"; fi
}

can_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

apt_update() {
    # A third-party source that does not answer must not stop us: the install says what is really missing.
    as_root apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 update </dev/null >/dev/null 2>&1 || true
}

apt_install() {
    as_root apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends "$@" </dev/null >/dev/null
}
