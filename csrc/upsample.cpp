// upsample.cpp: nearest neighbour to twice the size, [B,Y,X,C]. Bound by memory.
#include "core/op.h"

namespace fx::FX_TIER {
namespace {

// Row y of image b.
template <class T>
T* image_row(const fx_tensor* t, int64_t b, int64_t y) {
  return data<T>(t) + b * t->strides[0] + y * t->strides[1];
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  int64_t Y = x->shape[1], X = x->shape[2];
  size_t bytes = size_t(x->shape[3]) * sizeof(T);
  parallel_for(ctx, x->shape[0] * Y * 2, [&](int64_t row) {
    const T* in = image_row<T>(x, row / (2 * Y), row % (2 * Y) / 2);
    T* out = image_row<T>(y, row / (2 * Y), row % (2 * Y));
    for (int64_t i = 0; i < 2 * X; i++) memcpy(out + i * y->strides[2], in + i / 2 * x->strides[2], bytes);
  });
  return FX_STATUS_OK;
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy) {
  int64_t Y = dx->shape[1], X = dx->shape[2], C = dx->shape[3], step = dy->strides[2];
  parallel_for(ctx, dx->shape[0] * Y, [&](int64_t row) {
    T* out = image_row<T>(dx, row / Y, row % Y);
    const T* top = image_row<T>(dy, row / Y, 2 * (row % Y));
    const T* bottom = top + dy->strides[1];
    for (int64_t i = 0; i < X; i++, out += dx->strides[2], top += 2 * step, bottom += 2 * step)
      for_lanes(C, [&](int64_t c, int64_t lanes) {
        vf upper = load_some(top + c, lanes) + load_some(top + step + c, lanes);
        vf lower = load_some(bottom + c, lanes) + load_some(bottom + step + c, lanes);
        store_some(out + c, upper + lower, lanes);
      });
  });
  return FX_STATUS_OK;
}

fx_status upsample_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return dispatch(x->dtype, [&](auto t) { return forward<decltype(t)>(ctx, y, x); });
}

fx_status upsample_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy) {
  return dispatch(dx->dtype, [&](auto t) { return backward<decltype(t)>(ctx, dx, dy); });
}

}  // namespace

void add_upsample(fx_ops* ops) {
  ops->upsample_forward = upsample_forward;
  ops->upsample_backward = upsample_backward;
}

}  // namespace fx::FX_TIER
