// upsample.cu: nearest neighbour to twice the size, [B,Y,X,C]. Bound by memory.
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

// The four pixels of a block of the large image [B,2Y,2X,C].
struct Large {
  int64_t down, right;
  __device__ int64_t at(int i) const { return (i / 2) * down + (i % 2) * right; }
};

// The large image seen as [B,Y,X,C]: the upper left pixel of each block.
fx_tensor corners(const fx_tensor* large) {
  fx_tensor t = *large;
  for (int d = 1; d < 3; d++) t.shape[d] /= 2, t.strides[d] *= 2;
  return t;
}

template <class T>
struct Forward {
  static constexpr int kWidth = vector_width<T>;
  T* y;
  const T* x;
  Large large;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float v[V];
    load(v, x + at.at[0]);
#pragma unroll
    for (int i = 0; i < 4; i++) store(y + at.at[1] + large.at(i), v);
  }
};

template <class T>
struct Backward {
  static constexpr int kWidth = vector_width<T>;
  T* dx;
  const T* dy;
  Large large;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float v[4][V];
#pragma unroll
    for (int i = 0; i < 4; i++) load(v[i], dy + at.at[1] + large.at(i));
#pragma unroll
    for (int k = 0; k < V; k++) v[0][k] = (v[0][k] + v[1][k]) + (v[2][k] + v[3][k]);
    store(dx + at.at[0], v[0]);
  }
};

// f over the blocks of the large image; small comes first.
template <class F>
fx_status for_blocks(fx_ctx* ctx, const fx_tensor* small, const fx_tensor* large, const F& f) {
  fx_tensor corner = corners(large);
  RowsPlan<2> plan({small, &corner});
  bool wide = plan.wide(F::kWidth);
  for (int d = 1; d < 3; d++) wide = wide && large->strides[d] % F::kWidth == 0;
  return for_rows(ctx, plan, f, wide);
}

fx_status upsample_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    return for_blocks(ctx, x, y, Forward<T>{data<T>(y), data<T>(x), {y->strides[1], y->strides[2]}});
  });
}

fx_status upsample_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy) {
  return dispatch(dx->dtype, [&](auto t) {
    using T = decltype(t);
    return for_blocks(ctx, dx, dy, Backward<T>{data<T>(dx), data<T>(dy), {dy->strides[1], dy->strides[2]}});
  });
}

}  // namespace

void add_upsample(fx_ops* ops) {
  ops->upsample_forward = upsample_forward;
  ops->upsample_backward = upsample_backward;
}

}  // namespace fx::cuda
