#!/bin/sh
# Runs a command on the CUDA device: a card where there is one, else the software device of $SOFTCUDA, with race checking unless
# SOFTCUDA_RACECHECK=0; then any complaint of that device fails the run. Where there is neither, one line says so. $CUDA_HOME: the toolkit.
# --check only tells which of the two there is: prints card or software, fails where there is neither.
set -eu
cd "$(dirname "$0")/.."
soft="${SOFTCUDA:-../shared/softcuda}"
if [ -e /dev/nvidia0 ] && [ -z "${SOFTCUDA:-}" ]; then
  device=card
elif [ -e "$soft/Makefile" ]; then
  device=software
else
  echo "skipped: no NVIDIA card, and no software device in $soft (SOFTCUDA=DIR names it)"
  [ "$1" != --check ] || exit 1
  exit 0
fi
if [ "$1" = --check ]; then
  echo $device
  exit
fi
export FLUXIR_DEVICE=cuda FLUXIR_CUDA="$PWD/build/libfluxir_cuda.so"
[ $device = software ] || exec "$@"
mkdir -p build/softcuda
make -s -C "$soft" B="$PWD/build/softcuda" CUDA_HOME="$CUDA_HOME" >build/softcuda/make.log 2>&1 || { tail build/softcuda/make.log >&2; exit 1; }
reports=$(mktemp -d build/softcuda/reports.XXXXXX)
trap 'rm -rf "$reports"' EXIT
export LD_LIBRARY_PATH="$PWD/build/softcuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export SOFTCUDA_RACECHECK="${SOFTCUDA_RACECHECK:-1}" SOFTCUDA_SYNCCHECK=error SOFTCUDA_UNINIT=error SOFTCUDA_REPORT="$PWD/$reports/%p.json"
status=0
"$@" || status=$?
python3 tools/cuda_report.py --issues "$reports"/*.json || status=1
exit $status
