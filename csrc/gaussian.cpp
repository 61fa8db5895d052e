// gaussian.cpp: the VAE's diagonal Gaussian: sampling from its moments and its KL divergence from N(0, I). (diffusers: vae.py
// DiagonalGaussianDistribution)
#include "gaussian.h"

#include "core/rows.h"

namespace fx::FX_TIER {
namespace {

// Constants come first: min and max return their second operand for NaN, which must stay visible.
FX_INLINE vf clamp(vf logvar) { return min(splat(kHigh), max(splat(kLow), logvar)); }
// v where logvar is inside the bounds, else 0: the clamp's gradient.
FX_INLINE vf inside(vf logvar, vf v) { return select((logvar >= kLow) & (logvar <= kHigh), v, vf{}); }

template <class T, class Z, class E>
fx_status forward(fx_ctx* ctx, const fx_tensor* z, const fx_tensor* moments, const fx_tensor* eps, float shift, float scale) {
  Halves h(moments);
  Rows<4> rows({z, &h.mean, &h.logvar, eps});
  rows.run(ctx, [&](const Rows<4>::Piece& p) {
    Z* zp = data<Z>(z) + p.at[0];
    const T *mean = data<T>(&h.mean) + p.at[1], *logvar = data<T>(&h.logvar) + p.at[2];
    const E* ep = eps ? data<E>(eps) + p.at[3] : nullptr;
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf v = load_some(mean + i, lanes);
      if (ep) v += exp(0.5f * clamp(load_some(logvar + i, lanes))) * load_some(ep + i, lanes);
      store_some(zp + i, (v - shift) * scale, lanes);
    });
  });
  return FX_STATUS_OK;
}

template <class T, class Z, class E>
fx_status backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dz, const fx_tensor* moments, const fx_tensor* eps,
                   float scale) {
  Halves d(dmoments), h(moments);
  Rows<5> rows({&d.mean, &d.logvar, dz, &h.logvar, eps});
  rows.run(ctx, [&](const Rows<5>::Piece& p) {
    T *dmean = data<T>(&d.mean) + p.at[0], *dlogvar = data<T>(&d.logvar) + p.at[1];
    const Z* dzp = data<Z>(dz) + p.at[2];
    const T* logvar = data<T>(&h.logvar) + p.at[3];
    const E* ep = eps ? data<E>(eps) + p.at[4] : nullptr;
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf g = scale * load_some(dzp + i, lanes), lv = load_some(logvar + i, lanes), dlv{};
      if (ep) dlv = inside(lv, 0.5f * g * exp(0.5f * clamp(lv)) * load_some(ep + i, lanes));
      store_some(dmean + i, g, lanes);
      store_some(dlogvar + i, dlv, lanes);
    });
  });
  return FX_STATUS_OK;
}

template <class T>
fx_status kl_forward(fx_ctx* ctx, const fx_tensor* kl, const fx_tensor* moments) {
  Halves h(moments);
  Rows<2> rows({&h.mean, &h.logvar});
  JobSums sums(ctx, rows.jobs());
  rows.run(ctx, [&](const Rows<2>::Piece& p) {
    const T *mean = data<T>(&h.mean) + p.at[0], *logvar = data<T>(&h.logvar) + p.at[1];
    vd total{};
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf m = load_some(mean + i, lanes), lv = clamp(load_some(logvar + i, lanes));
      total += widen(m * m + (exp(lv) - 1.0f - lv));  // a missing lane is 0 + (1 − 1 − 0)
    });
    sums.add(p.job, total);
  });
  *data<float>(kl) = float(0.5 * sums.total() / double(moments->shape[0]));
  return FX_STATUS_OK;
}

template <class T>
fx_status kl_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dkl, const fx_tensor* moments) {
  Halves d(dmoments), h(moments);
  float factor = *data<float>(dkl) / float(moments->shape[0]);
  Rows<4> rows({&d.mean, &d.logvar, &h.mean, &h.logvar});
  rows.run(ctx, [&](const Rows<4>::Piece& p) {
    T *dmean = data<T>(&d.mean) + p.at[0], *dlogvar = data<T>(&d.logvar) + p.at[1];
    const T *mean = data<T>(&h.mean) + p.at[2], *logvar = data<T>(&h.logvar) + p.at[3];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      vf lv = load_some(logvar + i, lanes);
      store_some(dmean + i, factor * load_some(mean + i, lanes), lanes);
      store_some(dlogvar + i, inside(lv, 0.5f * factor * (exp(clamp(lv)) - 1.0f)), lanes);
    });
  });
  return FX_STATUS_OK;
}

// f(T{}, Z{}, E{}) for the three dtypes; E as Z where eps is absent.
template <class F>
fx_status dispatch3(const fx_tensor* moments, const fx_tensor* z, const fx_tensor* eps, const F& f) {
  return dispatch(moments->dtype, [&](auto t) {
    return dispatch(z->dtype, [&](auto zt) { return dispatch(eps ? eps->dtype : z->dtype, [&](auto et) { return f(t, zt, et); }); });
  });
}

fx_status gaussian_forward(fx_ctx* ctx, const fx_tensor* z, const fx_tensor* moments, const fx_tensor* eps, float shift, float scale) {
  return dispatch3(moments, z, eps, [&](auto t, auto zt, auto et) {
    return forward<decltype(t), decltype(zt), decltype(et)>(ctx, z, moments, eps, shift, scale);
  });
}

fx_status gaussian_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dz, const fx_tensor* moments, const fx_tensor* eps,
                            float scale) {
  return dispatch3(moments, dz, eps, [&](auto t, auto zt, auto et) {
    return backward<decltype(t), decltype(zt), decltype(et)>(ctx, dmoments, dz, moments, eps, scale);
  });
}

fx_status gaussian_kl_forward(fx_ctx* ctx, const fx_tensor* kl, const fx_tensor* moments) {
  return dispatch(moments->dtype, [&](auto t) { return kl_forward<decltype(t)>(ctx, kl, moments); });
}

fx_status gaussian_kl_backward(fx_ctx* ctx, const fx_tensor* dmoments, const fx_tensor* dkl, const fx_tensor* moments) {
  return dispatch(moments->dtype, [&](auto t) { return kl_backward<decltype(t)>(ctx, dmoments, dkl, moments); });
}

}  // namespace

void add_gaussian(fx_ops* ops) {
  ops->gaussian_forward = gaussian_forward;
  ops->gaussian_backward = gaussian_backward;
  ops->gaussian_kl_forward = gaussian_kl_forward;
  ops->gaussian_kl_backward = gaussian_kl_backward;
}

}  // namespace fx::FX_TIER
