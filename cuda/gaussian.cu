// gaussian.cu: the VAE's diagonal Gaussian: sampling from its moments and its KL divergence from N(0, I). (diffusers: vae.py
// DiagonalGaussianDistribution)
#include "../csrc/gaussian.h"
#include "core/sums.cuh"

namespace fx::cuda {
namespace {

// NaN stays visible.
__device__ __forceinline__ float clamp(float logvar) { return logvar > kHigh ? kHigh : logvar < kLow ? kLow : logvar; }
__device__ __forceinline__ bool inside(float logvar) { return logvar >= kLow && logvar <= kHigh; }

template <class T, class Z, class E>
struct Forward {
  static constexpr int kWidth = vector_width<T, Z, E>;
  Z* z;
  const T *mean, *logvar;
  const E* eps;
  float shift, scale;

  template <int V>
  __device__ void run(const At<4>& at) const {
    float m[V], lv[V], e[V];
    load(m, mean + at.at[1]);
    if (eps) {
      load(lv, logvar + at.at[2]), load(e, eps + at.at[3]);
#pragma unroll
      for (int i = 0; i < V; i++) m[i] += expf(0.5f * clamp(lv[i])) * e[i];
    }
#pragma unroll
    for (int i = 0; i < V; i++) m[i] = (m[i] - shift) * scale;
    store(z + at.at[0], m);
  }
};

template <class T, class Z, class E>
struct Backward {
  static constexpr int kWidth = vector_width<T, Z, E>;
  T *dmean, *dlogvar;
  const Z* dz;
  const T* logvar;
  const E* eps;
  float scale;

  template <int V>
  __device__ void run(const At<5>& at) const {
    float g[V], lv[V], e[V], d[V] = {};
    load(g, dz + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) g[i] *= scale;
    if (eps) {
      load(lv, logvar + at.at[3]), load(e, eps + at.at[4]);
#pragma unroll
      for (int i = 0; i < V; i++) d[i] = inside(lv[i]) ? 0.5f * g[i] * expf(0.5f * lv[i]) * e[i] : 0;
    }
    store(dmean + at.at[0], g), store(dlogvar + at.at[1], d);
  }
};

template <class T>
struct KlForward {
  static constexpr int kWidth = vector_width<T>;
  const T *mean, *logvar;

  template <int V>
  __device__ double term(const At<2>& at) const {
    float m[V], lv[V];
    double total = 0;
    load(m, mean + at.at[0]), load(lv, logvar + at.at[1]);
#pragma unroll
    for (int i = 0; i < V; i++) {
      float c = clamp(lv[i]);
      total += double(m[i] * m[i] + (expf(c) - 1 - c));
    }
    return total;
  }
};

template <class T>
struct KlBackward {
  static constexpr int kWidth = vector_width<T>;
  T *dmean, *dlogvar;
  const T *mean, *logvar;
  const float* dkl;
  float items;

  template <int V>
  __device__ void run(const At<4>& at) const {
    float m[V], lv[V], factor = *dkl / items;
    load(m, mean + at.at[2]), load(lv, logvar + at.at[3]);
#pragma unroll
    for (int i = 0; i < V; i++) {
      m[i] *= factor;
      lv[i] = inside(lv[i]) ? 0.5f * factor * (expf(lv[i]) - 1) : 0;
    }
    store(dmean + at.at[0], m), store(dlogvar + at.at[1], lv);
  }
};

// f(T{}, Z{}, E{}) for the three dtypes; E as Z where eps is absent.
template <class F>
fx_status dispatch3(const fx_tensor* moments, const fx_tensor* z, const fx_tensor* eps, const F& f) {
  return dispatch(moments->dtype, [&](auto t) {
    return dispatch(z->dtype, [&](auto zt) { return dispatch(eps ? eps->dtype : z->dtype, [&](auto et) { return f(t, zt, et); }); });
  });
}

fx_status gaussian_forward(fx_ctx* ctx, const fx_tensor* z, const fx_tensor* moments, const fx_tensor* eps, float shift, float scale) {
  return dispatch3(moments, z, eps, [&](auto t, auto zt, auto et) {
    using T = decltype(t);
    using Z = decltype(zt);
    using E = decltype(et);
    Halves h(moments);
    return for_rows(ctx, RowsPlan<4>({z, &h.mean, &h.logvar, eps}),
                    Forward<T, Z, E>{data<Z>(z), data<T>(&h.mean), data<T>(&h.logvar), data<E>(eps), shift, scale});
  });
}

fx_status gaussian_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dz, const fx_tensor* moments, const fx_tensor* eps,
                            float scale) {
  return dispatch3(moments, dz, eps, [&](auto t, auto zt, auto et) {
    using T = decltype(t);
    using Z = decltype(zt);
    using E = decltype(et);
    Halves d(dmoments), h(moments);
    return for_rows(ctx, RowsPlan<5>({&d.mean, &d.logvar, dz, &h.logvar, eps}),
                    Backward<T, Z, E>{data<T>(&d.mean), data<T>(&d.logvar), data<Z>(dz), data<T>(&h.logvar), data<E>(eps), scale});
  });
}

fx_status gaussian_kl_forward(fx_ctx* ctx, const fx_tensor* kl, const fx_tensor* moments) {
  return dispatch(moments->dtype, [&](auto t) {
    using T = decltype(t);
    Halves h(moments);
    return sum_rows(ctx, data<float>(kl), RowsPlan<2>({&h.mean, &h.logvar}), KlForward<T>{data<T>(&h.mean), data<T>(&h.logvar)},
                    0.5 / double(moments->shape[0]));
  });
}

fx_status gaussian_kl_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dkl, const fx_tensor* moments) {
  return dispatch(moments->dtype, [&](auto t) {
    using T = decltype(t);
    Halves d(dmoments), h(moments);
    KlBackward<T> f{data<T>(&d.mean), data<T>(&d.logvar), data<T>(&h.mean), data<T>(&h.logvar), data<float>(dkl), float(moments->shape[0])};
    return for_rows(ctx, RowsPlan<4>({&d.mean, &d.logvar, &h.mean, &h.logvar}), f);
  });
}

}  // namespace

void add_gaussian(fx_ops* ops) {
  ops->gaussian_forward = gaussian_forward;
  ops->gaussian_backward = gaussian_backward;
  ops->gaussian_kl_forward = gaussian_kl_forward;
  ops->gaussian_kl_backward = gaussian_kl_backward;
}

}  // namespace fx::cuda
