// conv2d.cuh: what the convolution kernels share. Both are matrix products whose operands are gathered while they are copied to shared
// memory (implicit GEMM): no column matrix exists. Channels come in units of 16 bytes, kUnit elements; a unit of the sum over taps and
// channels is (tap, unit of channels), so any kernel size and channel count fills tiles without gaps but in a tap's last unit.
#pragma once
#include "mma.cuh"

namespace fx::cuda {

constexpr int kConvBlock = 128, kConvStages = 4;

// Four warps as Wm x Wn, each with M x N fragments of 16 x 8.
template <int Wm_, int Wn_, int M_, int N_>
struct ConvTiling {
  static constexpr int Wm = Wm_, Wn = Wn_, M = M_, N = N_, rows = 16 * M * Wm, cols = 8 * N * Wn;
  static_assert(Wm * Wn * 32 == kConvBlock);
};

// An image tensor [B,Y,X,C]; strides in elements.
template <class T>
struct Images {
  T* data;
  int64_t image, row, pixel;
  int Y, X, C;
  bool vec;  // every pixel starts at a multiple of 16 bytes, and C is a multiple of a unit

  __device__ T* at(int64_t b, int y, int x) const { return data + b * image + y * row + x * pixel; }
};

template <class T>
Images<T> images(const fx_tensor* t) {
  return {static_cast<T*>(t->data), t->strides[0],    t->strides[1],    t->strides[2],
          int(t->shape[1]),         int(t->shape[2]), int(t->shape[3]), vectors(t, 16)};
}

// The pixels of B images of Y x X in one row: number to (b, y, x).
struct Pixels {
  int count, Y, X;
  Divider per_image, per_row;

  Pixels(int64_t B, int y, int x) : count(int(B * y * x)), Y(y), X(x), per_image(int64_t(y) * x), per_row(x) {}
  __device__ void split(int i, int& b, int& y, int& x) const {
    uint32_t rest = uint32_t(i);
    b = int(per_image.split(rest));
    y = int(per_row.split(rest));
    x = int(rest);
  }
};

// Runs `steps` steps through a ring of kConvStages tiles in shared memory: fetch(step) starts the copies of a step and commits them, even
// of one that does not exist, use(step) multiplies its tiles.
template <class Fetch, class Use>
__device__ __forceinline__ void conv_ring(int steps, const Fetch& fetch, const Use& use) {
#pragma unroll
  for (int i = 0; i < kConvStages - 1; i++) fetch(i);
  for (int step = 0; step < steps; step++) {
    cp_async_wait<kConvStages - 2>();
    __syncthreads();  // the tiles have arrived, and everyone is done with those before, whose place the next copies take
    fetch(step + kConvStages - 1);
    use(step);
  }
}

// dw +=, db += (either may be NULL). Bytes of workspace it needs, and the work.
int64_t conv2d_weight_gradient_bytes(const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* w);
void conv2d_weight_gradient(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* x,
                            const fx_tensor* w, const fx_conv2d_args* args, float* partial);

}  // namespace fx::cuda
