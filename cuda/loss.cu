// loss.cu: the flow-matching loss and the pixel loss. One pass each; gradients recompute the error instead of storing it.
#include "core/sums.cuh"

namespace fx::cuda {
namespace {

constexpr float kCharbonnier = 1e-6f;

// v − (z1 − z0).
template <class T>
struct FlowError {
  const T* v;
  const float *z0, *z1;

  template <int V>
  __device__ void load_at(float (&e)[V], int64_t v_at, int64_t z0_at, int64_t z1_at) const {
    float a[V], b[V];
    load(e, v + v_at), load(a, z0 + z0_at), load(b, z1 + z1_at);
#pragma unroll
    for (int i = 0; i < V; i++) e[i] -= b[i] - a[i];
  }
};

template <class T>
struct FlowForward {
  static constexpr int kWidth = 4;
  FlowError<T> error;

  template <int V>
  __device__ double term(const At<3>& at) const {
    float e[V], total = 0;
    error.load_at(e, at.at[0], at.at[1], at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) total += e[i] * e[i];
    return double(total);
  }
};

template <class T>
struct FlowBackward {
  static constexpr int kWidth = 4;
  T* dv;
  FlowError<T> error;
  const float* dloss;
  double share;  // 2/n

  template <int V>
  __device__ void run(const At<4>& at) const {
    float e[V], factor = float(share * double(*dloss));
    error.load_at(e, at.at[1], at.at[2], at.at[3]);
#pragma unroll
    for (int i = 0; i < V; i++) e[i] *= factor;
    store(dv + at.at[0], e);
  }
};

fx_status flow_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* v, const fx_tensor* z0, const fx_tensor* z1) {
  return dispatch(v->dtype, [&](auto t) {
    using T = decltype(t);
    RowsPlan<3> plan({v, z0, z1});
    return sum_rows(ctx, data<float>(loss), plan, FlowForward<T>{{data<T>(v), data<float>(z0), data<float>(z1)}},
                    1.0 / double(plan.elements));
  });
}

fx_status flow_loss_backward(fx_ctx* ctx, const fx_tensor* dv, const fx_tensor* dloss, const fx_tensor* v, const fx_tensor* z0,
                             const fx_tensor* z1) {
  return dispatch(v->dtype, [&](auto t) {
    using T = decltype(t);
    RowsPlan<4> plan({dv, v, z0, z1});
    FlowBackward<T> f{data<T>(dv), {data<T>(v), data<float>(z0), data<float>(z1)}, data<float>(dloss), 2.0 / double(plan.elements)};
    return for_rows(ctx, plan, f);
  });
}

// The penalty rho(e) and its derivative.
struct L1 {
  static __device__ float value(float e) { return fabsf(e); }
  static __device__ float slope(float e) { return e > 0 ? 1 : e < 0 ? -1 : e; }  // 0 at 0, NaN stays
};
struct L2 {
  static __device__ float value(float e) { return e * e; }
  static __device__ float slope(float e) { return 2 * e; }
};
struct Charbonnier {
  static __device__ float value(float e) { return sqrtf(e * e + kCharbonnier); }
  static __device__ float slope(float e) { return e / value(e); }
};

template <class D, class T>
struct PixelForward {
  static constexpr int kWidth = 4;
  const T* x;
  const float *target, *weight;

  template <int V>
  __device__ double term(const At<2>& at) const {
    float e[V], b[V], total = 0;
    load(e, x + at.at[0]), load(b, target + at.at[1]);
#pragma unroll
    for (int i = 0; i < V; i++) total += D::value(e[i] - b[i]);
    return weight ? double(total) * double(weight[at.item]) : double(total);
  }
};

template <class D, class T>
struct PixelBackward {
  static constexpr int kWidth = 4;
  T* dx;
  const T* x;
  const float *dloss, *target, *weight;
  double share;  // 1/n

  template <int V>
  __device__ void run(const At<3>& at) const {
    float e[V], b[V];
    double factor = share * double(*dloss);
    float scale = float(weight ? factor * double(weight[at.item]) : factor);
    load(e, x + at.at[1]), load(b, target + at.at[2]);
#pragma unroll
    for (int i = 0; i < V; i++) e[i] = scale * D::slope(e[i] - b[i]);
    store(dx + at.at[0], e);
  }
};

// f(D{}) for the penalty of a distance.
template <class F>
fx_status with_penalty(fx_distance distance, const F& f) {
  switch (distance) {
    case FX_DISTANCE_L1: return f(L1{});
    case FX_DISTANCE_L2: return f(L2{});
    default: return f(Charbonnier{});
  }
}

fx_status pixel_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight,
                             fx_distance distance) {
  return dispatch(x->dtype, [&](auto t) {
    return with_penalty(distance, [&](auto d) {
      using T = decltype(t);
      RowsPlan<2> plan({x, target}, true);
      PixelForward<decltype(d), T> f{data<T>(x), data<float>(target), data<float>(weight)};
      return sum_rows(ctx, data<float>(loss), plan, f, 1.0 / double(plan.elements));
    });
  });
}

fx_status pixel_loss_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dloss, const fx_tensor* x, const fx_tensor* target,
                              const fx_tensor* weight, fx_distance distance) {
  return dispatch(x->dtype, [&](auto t) {
    return with_penalty(distance, [&](auto d) {
      using T = decltype(t);
      RowsPlan<3> plan({dx, x, target}, true);
      PixelBackward<decltype(d), T> f{data<T>(dx),         data<T>(x),          data<float>(dloss),
                                      data<float>(target), data<float>(weight), 1.0 / double(plan.elements)};
      return for_rows(ctx, plan, f);
    });
  });
}

}  // namespace

void add_loss(fx_ops* ops) {
  ops->flow_loss_forward = flow_loss_forward;
  ops->flow_loss_backward = flow_loss_backward;
  ops->pixel_loss_forward = pixel_loss_forward;
  ops->pixel_loss_backward = pixel_loss_backward;
}

}  // namespace fx::cuda
