#!/usr/bin/env bash
# Checks what we link against deny.toml: bans, licences and sources always, known vulnerabilities where they can be had.
#
#   tools/check_dependencies.sh [path of cargo-deny]
#
# The database of vulnerabilities is a git repository that closed networks do not reach. So it is fetched apart: a failed
# fetch is a note, a finding is an error.
set -euo pipefail

cargo_deny=${1:-cargo-deny}
fetch_seconds=60

"$cargo_deny" check bans licenses sources
if report=$(timeout "$fetch_seconds" "$cargo_deny" fetch db 2>&1 </dev/null); then
    "$cargo_deny" --offline check advisories
else
    echo "note: advisories were not checked, the database could not be fetched:" >&2
    tail -n 1 <<<"${report:-no answer within $fetch_seconds s}" >&2
fi
