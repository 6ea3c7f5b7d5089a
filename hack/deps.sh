#!/bin/bash
# Installs those of the named Debian packages that are missing. Says nothing, and needs no network, when none is.
# usage: hack/deps.sh PACKAGE...
set -euo pipefail

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for p in "$@"; do installed "$p" || missing+=("$p"); done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing Debian packages: ${missing[*]}"
[ "$(id -u)" = 0 ] || { echo "$0: run as root, or install them by hand" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp); trap 'rm -f "$log"' EXIT
{ apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
	{ tail -20 "$log" >&2; exit 1; }
