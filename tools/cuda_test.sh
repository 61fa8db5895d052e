#!/bin/sh
# Runs the op suite on the CUDA device: a card where there is one, else the software device of $SOFTCUDA, with race checking; then any complaint
# of that device fails the test. Where there is neither, one line says so. $CUDA_HOME: the toolkit. Arguments go to `go test`.
set -eu
cd "$(dirname "$0")/.."
export FLUXIR_DEVICE=cuda FLUXIR_CUDA="$PWD/build/libfluxir_cuda.so"
if [ -e /dev/nvidia0 ] && [ -z "${SOFTCUDA:-}" ]; then
  exec go test -count=1 -timeout 60m "$@"
fi
soft="${SOFTCUDA:-../shared/softcuda}"
if ! [ -e "$soft/Makefile" ]; then
  echo "cuda-test skipped: no NVIDIA card, and no software device in $soft (SOFTCUDA=DIR names it)"
  exit 0
fi
mkdir -p build/softcuda
make -s -C "$soft" B="$PWD/build/softcuda" CUDA_HOME="$CUDA_HOME" >build/softcuda/make.log 2>&1 || { tail build/softcuda/make.log >&2; exit 1; }
rm -f build/softcuda/report-*.json
export LD_LIBRARY_PATH="$PWD/build/softcuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export SOFTCUDA_RACECHECK=1 SOFTCUDA_SYNCCHECK=error SOFTCUDA_UNINIT=error SOFTCUDA_REPORT="$PWD/build/softcuda/report-%p.json"
status=0
go test -count=1 -timeout 60m "$@" || status=1
python3 tools/cuda_report.py --issues build/softcuda/report-*.json || status=1
exit $status
