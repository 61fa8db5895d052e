// elem.cpp: add, the per-item linear combination axpby, and the sinusoid of the time step. One pass over memory each.
#include <math.h>

#include "core/rows.h"

namespace fx::FX_TIER {
namespace {

template <class T>
fx_status add_typed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* a, const fx_tensor* b) {
  Rows<3> rows({y, a, b});
  bool stream = streamed(y);
  rows.run(ctx, [&](const Rows<3>::Piece& p) {
    T* yp = data<T>(y) + p.at[0];
    const T *ap = data<T>(a) + p.at[1], *bp = data<T>(b) + p.at[2];
    for_two(p.n, [&](int64_t i, auto lanes) { write_some(yp + i, read_some(ap + i, lanes) + read_some(bp + i, lanes), lanes, stream); });
  });
  return FX_STATUS_OK;
}

fx_status add(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* a, const fx_tensor* b) {
  return dispatch(y->dtype, [&](auto t) { return add_typed<decltype(t)>(ctx, y, a, b); });
}

template <class Y, class X>
fx_status scale(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* p) {
  Rows<2> rows({y, x}, true);
  bool stream = streamed(y);
  rows.run(ctx, [&](const Rows<2>::Piece& piece) {
    float factor = data<float>(p)[piece.item];
    Y* yp = data<Y>(y) + piece.at[0];
    const X* xp = data<X>(x) + piece.at[1];
    for_lanes(piece.n, [&](int64_t i, int64_t lanes) { write_some(yp + i, factor * read_some(xp + i, lanes), lanes, stream); });
  });
  return FX_STATUS_OK;
}

template <class Y, class X, class W>
fx_status combine(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* p, const fx_tensor* q) {
  Rows<3> rows({y, x, w}, true);
  bool stream = streamed(y);
  rows.run(ctx, [&](const Rows<3>::Piece& piece) {
    float a = data<float>(p)[piece.item], b = data<float>(q)[piece.item];
    Y* yp = data<Y>(y) + piece.at[0];
    const X* xp = data<X>(x) + piece.at[1];
    const W* wp = data<W>(w) + piece.at[2];
    for_lanes(piece.n, [&](int64_t i, int64_t lanes) {
      write_some(yp + i, a * read_some(xp + i, lanes) + b * read_some(wp + i, lanes), lanes, stream);
    });
  });
  return FX_STATUS_OK;
}

fx_status axpby_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* p, const fx_tensor* q) {
  return dispatch(y->dtype, [&](auto ty) {
    return dispatch(x->dtype, [&](auto tx) {
      if (!w) return scale<decltype(ty), decltype(tx)>(ctx, y, x, p);
      return dispatch(w->dtype, [&](auto tw) { return combine<decltype(ty), decltype(tx), decltype(tw)>(ctx, y, x, w, p, q); });
    });
  });
}

fx_status axpby_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* dy, const fx_tensor* p,
                         const fx_tensor* q) {
  if (dx) axpby_forward(ctx, dx, dy, nullptr, p, nullptr);
  if (dw) axpby_forward(ctx, dw, dy, nullptr, q, nullptr);
  return FX_STATUS_OK;
}

template <class T>
fx_status embed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* t, double factor, double max_period) {
  int64_t half = y->shape[1] / 2;
  parallel_for(ctx, y->shape[0], [&](int64_t b) {
    T* row = data<T>(y) + b * y->strides[0];
    double time = factor * double(data<float>(t)[b]);
    for (int64_t i = 0; i < half; i++) {
      double angle = time * pow(max_period, -double(i) / double(half));
      put(row + i, float(cos(angle)));
      put(row + half + i, float(sin(angle)));
    }
  });
  return FX_STATUS_OK;
}

fx_status timestep_embed(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* t, double factor, double max_period) {
  return dispatch(y->dtype, [&](auto type) { return embed<decltype(type)>(ctx, y, t, factor, max_period); });
}

}  // namespace

void add_elem(fx_ops* ops) {
  ops->add = add;
  ops->axpby_forward = axpby_forward;
  ops->axpby_backward = axpby_backward;
  ops->timestep_embed = timestep_embed;
}

}  // namespace fx::FX_TIER
