#!/bin/sh
# Installs packages that `make` needs, on Debian and Ubuntu; elsewhere it says what to install. Arguments: package names.
set -eu
packages="$*"
command -v apt-get >/dev/null || { echo "please install: $packages" >&2; exit 1; }
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends $packages >/dev/null
