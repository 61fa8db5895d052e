// act.cpp: GELU (tanh form) and SiLU alone; behind a product they are part of linear.
#include "core/activation.h"
#include "core/rows.h"

namespace fx::FX_TIER {
namespace {

template <class A, class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  Rows<2> rows({y, x});
  bool stream = streamed(y);
  rows.run(ctx, [&](const Rows<2>::Piece& p) {
    T* yp = data<T>(y) + p.at[0];
    const T* xp = data<T>(x) + p.at[1];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) { write_some(yp + i, A::value(load_some(xp + i, lanes)), lanes, stream); });
  });
  return FX_STATUS_OK;
}

template <class A, class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* x) {
  Rows<3> rows({dx, dy, x});
  bool stream = streamed(dx);
  rows.run(ctx, [&](const Rows<3>::Piece& p) {
    T* dxp = data<T>(dx) + p.at[0];
    const T *dyp = data<T>(dy) + p.at[1], *xp = data<T>(x) + p.at[2];
    for_lanes(p.n, [&](int64_t i, int64_t lanes) {
      write_some(dxp + i, load_some(dyp + i, lanes) * A::derivative(load_some(xp + i, lanes)), lanes, stream);
    });
  });
  return FX_STATUS_OK;
}

fx_status act_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, fx_act act) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    return act == FX_ACT_SILU ? forward<Silu, T>(ctx, y, x) : forward<Gelu, T>(ctx, y, x);
  });
}

fx_status act_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* x, fx_act act) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    return act == FX_ACT_SILU ? backward<Silu, T>(ctx, dx, dy, x) : backward<Gelu, T>(ctx, dx, dy, x);
  });
}

}  // namespace

void add_act(fx_ops* ops) {
  ops->act_forward = act_forward;
  ops->act_backward = act_backward;
}

}  // namespace fx::FX_TIER
