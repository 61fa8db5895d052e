#!/bin/sh
# Installs what `make` needs on Debian and Ubuntu besides Go, gcc and cmake. Elsewhere it says what to install.
set -eu
packages="libdnnl-dev ninja-build"
command -v apt-get >/dev/null || { echo "please install: $packages (oneDNN with headers, ninja)" >&2; exit 1; }
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends $packages >/dev/null
