// loss.cpp: the flow-matching loss and the pixel loss. One pass each; every element's term is made in f32, a job's sum in f64, the jobs are
// added in order. Gradients recompute the error instead of storing it.
#include "core/rows.h"

namespace fx::FX_TIER {
namespace {

constexpr float kCharbonnier = 1e-6f;

int64_t elements(const fx_tensor* t) {
  int64_t n = 1;
  for (int d = 0; d < t->rank; d++) n *= t->shape[d];
  return n;
}

template <class T>
fx_status flow_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* v, const fx_tensor* z0, const fx_tensor* z1) {
  Rows<3> rows({v, z0, z1});
  JobSums sums(ctx, rows.jobs());
  rows.run(ctx, [&](const Rows<3>::Piece& p) {
    const T* vp = data<T>(v) + p.at[0];
    const float *z0p = data<float>(z0) + p.at[1], *z1p = data<float>(z1) + p.at[2];
    vd total{};
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vd e = widen(load_some(vp + i, lanes) - (load_some(z1p + i, lanes) - load_some(z0p + i, lanes)));
      total += e * e;
    });
    sums.add(p.job, total);
  });
  *data<float>(loss) = float(sums.total() / double(elements(v)));
  return FX_STATUS_OK;
}

template <class T>
fx_status flow_backward(fx_ctx* ctx, const fx_tensor* dv, const fx_tensor* dloss, const fx_tensor* v, const fx_tensor* z0,
                        const fx_tensor* z1) {
  float factor = float(2.0 * double(*data<float>(dloss)) / double(elements(v)));
  Rows<4> rows({dv, v, z0, z1});
  bool stream = streamed(dv);
  rows.run(ctx, [&](const Rows<4>::Piece& p) {
    T* dvp = data<T>(dv) + p.at[0];
    const T* vp = data<T>(v) + p.at[1];
    const float *z0p = data<float>(z0) + p.at[2], *z1p = data<float>(z1) + p.at[3];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf e = load_some(vp + i, lanes) - (load_some(z1p + i, lanes) - load_some(z0p + i, lanes));
      write_some(dvp + i, factor * e, lanes, stream);
    });
  });
  return FX_STATUS_OK;
}

// The penalty rho(e) and its derivative; a missing lane has e = 0, whose share Charbonnier must not count.
struct L1 {
  static FX_INLINE vf value(vf e) { return abs(e); }
  static FX_INLINE vf slope(vf e) { return select(e > 0.0f, splat(1), select(e < 0.0f, splat(-1), e)); }  // 0 at 0, NaN stays
};
struct L2 {
  static FX_INLINE vf value(vf e) { return e * e; }
  static FX_INLINE vf slope(vf e) { return 2.0f * e; }
};
struct Charbonnier {
  static FX_INLINE vf value(vf e) { return sqrt(e * e + kCharbonnier); }
  static FX_INLINE vf slope(vf e) { return e / value(e); }
};

template <class D, class T>
fx_status pixel_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight) {
  Rows<2> rows({x, target}, true);
  JobSums sums(ctx, rows.jobs());
  rows.run(ctx, [&](const Rows<2>::Piece& p) {
    const T* xp = data<T>(x) + p.at[0];
    const float* tp = data<float>(target) + p.at[1];
    vd total{};
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf rho = D::value(load_some(xp + i, lanes) - load_some(tp + i, lanes));
      total += widen(first_lanes(rho, lanes));
    });
    sums.add(p.job, weight ? total * double(data<float>(weight)[p.item]) : total);
  });
  *data<float>(loss) = float(sums.total() / double(elements(x)));
  return FX_STATUS_OK;
}

template <class D, class T>
fx_status pixel_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dloss, const fx_tensor* x, const fx_tensor* target,
                         const fx_tensor* weight) {
  double factor = double(*data<float>(dloss)) / double(elements(x));
  Rows<3> rows({dx, x, target}, true);
  bool stream = streamed(dx);
  rows.run(ctx, [&](const Rows<3>::Piece& p) {
    float share = float(weight ? factor * double(data<float>(weight)[p.item]) : factor);
    T* dxp = data<T>(dx) + p.at[0];
    const T* xp = data<T>(x) + p.at[1];
    const float* tp = data<float>(target) + p.at[2];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      write_some(dxp + i, share * D::slope(load_some(xp + i, lanes) - load_some(tp + i, lanes)), lanes, stream);
    });
  });
  return FX_STATUS_OK;
}

// f(D{}) for the penalty of a distance.
template <class F>
fx_status with_penalty(fx_distance distance, const F& f) {
  switch (distance) {
    case FX_DISTANCE_L1: return f(L1{});
    case FX_DISTANCE_L2: return f(L2{});
    default: return f(Charbonnier{});
  }
}

fx_status flow_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* v, const fx_tensor* z0, const fx_tensor* z1) {
  return dispatch(v->dtype, [&](auto t) { return flow_forward<decltype(t)>(ctx, loss, v, z0, z1); });
}

fx_status flow_loss_backward(fx_ctx* ctx, const fx_tensor* dv, const fx_tensor* dloss, const fx_tensor* v, const fx_tensor* z0,
                             const fx_tensor* z1) {
  return dispatch(v->dtype, [&](auto t) { return flow_backward<decltype(t)>(ctx, dv, dloss, v, z0, z1); });
}

fx_status pixel_loss_forward(fx_ctx* ctx, const fx_tensor* loss, const fx_tensor* x, const fx_tensor* target, const fx_tensor* weight,
                             fx_distance distance) {
  return dispatch(x->dtype, [&](auto t) {
    return with_penalty(distance, [&](auto d) { return pixel_forward<decltype(d), decltype(t)>(ctx, loss, x, target, weight); });
  });
}

fx_status pixel_loss_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dloss, const fx_tensor* x, const fx_tensor* target,
                              const fx_tensor* weight, fx_distance distance) {
  return dispatch(x->dtype, [&](auto t) {
    return with_penalty(distance, [&](auto d) { return pixel_backward<decltype(d), decltype(t)>(ctx, dx, dloss, x, target, weight); });
  });
}

}  // namespace

void add_loss(fx_ops* ops) {
  ops->flow_loss_forward = flow_loss_forward;
  ops->flow_loss_backward = flow_loss_backward;
  ops->pixel_loss_forward = pixel_loss_forward;
  ops->pixel_loss_backward = pixel_loss_backward;
}

}  // namespace fx::FX_TIER
