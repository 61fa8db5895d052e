// act.cu: GELU (tanh form) and SiLU. Both are x · sigmoid(w): SiLU with w = x, and, as (1 + tanh u) / 2 = sigmoid(2u), GELU with
// w = 2 √(2/π) (x + 0.044715 x³).
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

constexpr float kTwoRoot = 1.5957691216f;  // 2 √(2/π)
constexpr float kCubic = 0.044715f;

struct Gelu {
  static __device__ float argument(float x) { return x * (kTwoRoot + kTwoRoot * kCubic * x * x); }
  static __device__ float slope(float x) { return kTwoRoot + 3 * kTwoRoot * kCubic * x * x; }
};

struct Silu {
  static __device__ float argument(float x) { return x; }
  static __device__ float slope(float) { return 1; }
};

template <class A, class T>
struct Forward {
  static constexpr int kWidth = vector_width<T>;
  T* y;
  const T* x;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float v[V];
    load(v, x + at.at[1]);
#pragma unroll
    for (int i = 0; i < V; i++) v[i] *= sigmoid(A::argument(v[i]));
    store(y + at.at[0], v);
  }
};

template <class A, class T>
struct Backward {
  static constexpr int kWidth = vector_width<T>;
  T* dx;
  const T *dy, *x;

  template <int V>
  __device__ void run(const At<3>& at) const {
    float g[V], v[V];
    load(g, dy + at.at[1]), load(v, x + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) {
      float s, rest;
      sigmoid_pair(A::argument(v[i]), s, rest);
      g[i] *= s + v[i] * s * rest * A::slope(v[i]);
    }
    store(dx + at.at[0], g);
  }
};

fx_status act_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, fx_act act) {
  RowsPlan<2> plan({y, x});
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    if (act == FX_ACT_SILU) return for_rows(ctx, plan, Forward<Silu, T>{data<T>(y), data<T>(x)});
    return for_rows(ctx, plan, Forward<Gelu, T>{data<T>(y), data<T>(x)});
  });
}

fx_status act_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* x, fx_act act) {
  RowsPlan<3> plan({dx, dy, x});
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    if (act == FX_ACT_SILU) return for_rows(ctx, plan, Backward<Silu, T>{data<T>(dx), data<T>(dy), data<T>(x)});
    return for_rows(ctx, plan, Backward<Gelu, T>{data<T>(dx), data<T>(dy), data<T>(x)});
  });
}

}  // namespace

void add_act(fx_ops* ops) {
  ops->act_forward = act_forward;
  ops->act_backward = act_backward;
}

}  // namespace fx::cuda
