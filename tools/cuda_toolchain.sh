#!/bin/sh
# Prints a CUDA_HOME that has nvcc, the runtime and cublasLt.h: $CUDA_HOME, the toolkit of the nvcc in PATH, or NVIDIA's wheels, which are
# installed once into $CUDA_CACHE (default ~/.cache/fluxir).
set -eu
version=13.0
complete() { [ -x "$1/bin/nvcc" ] && [ -e "$1/include/cublasLt.h" ]; }

if [ -n "${CUDA_HOME:-}" ]; then
  complete "$CUDA_HOME" || { echo "CUDA_HOME=$CUDA_HOME: no bin/nvcc or no include/cublasLt.h there" >&2; exit 1; }
  echo "$CUDA_HOME"
  exit
fi
if command -v nvcc >/dev/null; then
  home=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
  if complete "$home"; then
    echo "$home"
    exit
  fi
fi
cache="${CUDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fluxir}/cuda-$version"
home="$cache/nvidia/cu13"
if ! complete "$home"; then
  command -v python3 >/dev/null || { echo "no nvcc in CUDA_HOME or PATH, and no python3 to install NVIDIA's wheels with" >&2; exit 1; }
  echo "installing nvcc $version and cuBLAS from NVIDIA's wheels into $cache (0.5 GB)" >&2
  partial="$cache.partial.$$"
  trap 'rm -rf "$partial"' EXIT
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile --target "$partial" nvidia-cuda-nvcc==13.0.88 \
    nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 >&2
  # The linker asks for names without version.
  for library in cudart cublas cublasLt; do
    ln -sf "lib$library.so.13" "$partial/nvidia/cu13/lib/lib$library.so"
  done
  rm -rf "$cache"
  mv "$partial" "$cache"
fi
echo "$home"
