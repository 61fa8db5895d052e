// elem.cu: add, the per-item linear combination axpby, and the sinusoid of the time step. One pass over memory each.
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

template <class T>
struct Add {
  static constexpr int kWidth = vector_width<T>;
  T* y;
  const T *a, *b;

  template <int V>
  __device__ void run(const At<3>& at) const {
    float u[V], v[V];
    load(u, a + at.at[1]), load(v, b + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) u[i] += v[i];
    store(y + at.at[0], u);
  }
};

fx_status add(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* a, const fx_tensor* b) {
  return dispatch(y->dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows(ctx, RowsPlan<3>({y, a, b}), Add<T>{data<T>(y), data<T>(a), data<T>(b)});
  });
}

template <class Y, class X>
struct Scale {
  static constexpr int kWidth = vector_width<Y, X>;
  Y* y;
  const X* x;
  const float* p;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float v[V], factor = p[at.item];
    load(v, x + at.at[1]);
#pragma unroll
    for (int i = 0; i < V; i++) v[i] *= factor;
    store(y + at.at[0], v);
  }
};

template <class Y, class X, class W>
struct Combine {
  static constexpr int kWidth = vector_width<Y, X, W>;
  Y* y;
  const X* x;
  const W* w;
  const float *p, *q;

  template <int V>
  __device__ void run(const At<3>& at) const {
    float u[V], v[V], a = p[at.item], b = q[at.item];
    load(u, x + at.at[1]), load(v, w + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) u[i] = a * u[i] + b * v[i];
    store(y + at.at[0], u);
  }
};

fx_status axpby_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* p, const fx_tensor* q) {
  return dispatch(y->dtype, [&](auto ty) {
    return dispatch(x->dtype, [&](auto tx) {
      using Y = decltype(ty);
      using X = decltype(tx);
      if (!w) return for_rows(ctx, RowsPlan<2>({y, x}, true), Scale<Y, X>{data<Y>(y), data<X>(x), data<float>(p)});
      return dispatch(w->dtype, [&](auto tw) {
        using W = decltype(tw);
        return for_rows(ctx, RowsPlan<3>({y, x, w}, true),
                        Combine<Y, X, W>{data<Y>(y), data<X>(x), data<W>(w), data<float>(p), data<float>(q)});
      });
    });
  });
}

// dx = p dy and dw = q dy.
template <class X, class Y>
struct Split {
  static constexpr int kWidth = vector_width<X, Y>;
  X *dx, *dw;
  const Y* dy;
  const float *p, *q;

  template <int V>
  __device__ void run(const At<3>& at) const {
    float v[V], u[V], a = p[at.item], b = q[at.item];
    load(v, dy + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) u[i] = a * v[i], v[i] *= b;
    store(dx + at.at[0], u), store(dw + at.at[1], v);
  }
};

fx_status axpby_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* p,
                         const fx_tensor* q) {
  if (!dx || !dw || dx->dtype != dw->dtype) {
    fx_status status = dx ? axpby_forward(ctx, dx, dy, nullptr, p, nullptr) : FX_STATUS_OK;
    return dw && status == FX_STATUS_OK ? axpby_forward(ctx, dw, dy, nullptr, q, nullptr) : status;
  }
  return dispatch(dx->dtype, [&](auto tx) {
    return dispatch(dy->dtype, [&](auto ty) {
      using X = decltype(tx);
      using Y = decltype(ty);
      Split<X, Y> f{data<X>(dx), data<X>(dw), data<Y>(dy), data<float>(p), data<float>(q)};
      return for_rows(ctx, RowsPlan<3>({dx, dw, dy}, true), f);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(T* y, int64_t stride, const float* t, int64_t B, int64_t half, double factor, double max_period) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= B * half) return;
  int64_t b = job / half, i = job % half;
  double angle = factor * double(t[b]) * pow(max_period, -double(i) / double(half));
  put(y + b * stride + i, float(cos(angle)));
  put(y + b * stride + half + i, float(sin(angle)));
}

fx_status timestep_embed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* t, double factor, double max_period) {
  return dispatch(y->dtype, [&](auto type) {
    int64_t B = y->shape[0], half = y->shape[1] / 2;
    embed_kernel<<<blocks_for(B * half), kThreads, 0, stream(ctx)>>>(data<decltype(type)>(y), y->strides[0], data<float>(t), B, half,
                                                                     factor, max_period);
    return FX_STATUS_OK;
  });
}

}  // namespace

void add_elem(fx_ops* ops) {
  ops->add = add;
  ops->axpby_forward = axpby_forward;
  ops->axpby_backward = axpby_backward;
  ops->timestep_embed = timestep_embed;
}

}  // namespace fx::cuda
