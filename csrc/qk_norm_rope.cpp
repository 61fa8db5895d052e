// qk_norm_rope.cpp: RMSNorm of every head's query or key and its rotation by position, in one pass (core/norm_rope.h), for tensors of their
// own; and the table of rotations. Bound by memory.
#include <math.h>

#include "core/norm_rope.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kTokens = 32;  // tokens per chunk, over which dweight is summed: fixed, so that sums do not depend on the threads

fx_status rope_table(fx_ctx* ctx, const fx_tensor* pe, const fx_tensor* ids, const int32_t axes[3], double theta) {
  int64_t L = ids->shape[0], pairs = pe->shape[1];
  double* omega = static_cast<double*>(workspace(ctx, pairs * 8));
  int64_t filled = 0;
  for (int axis = 0; axis < 3; axis++)
    for (int32_t i = 0; i < axes[axis]; i += 2) omega[filled++] = 1.0 / pow(theta, double(i) / axes[axis]);
  parallel_for(ctx, L, [&](int64_t l) {
    const float* id = data<float>(ids) + l * ids->strides[0];
    float* out = data<float>(pe) + l * pairs * 2;
    int64_t p = 0;
    for (int axis = 0; axis < 3; axis++)
      for (int32_t i = 0; i < axes[axis]; i += 2, p++) {
        double angle = double(id[axis]) * omega[p];
        out[2 * p] = float(cos(angle));
        out[2 * p + 1] = float(sin(angle));
      }
  });
  return FX_STATUS_OK;
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight, const fx_tensor* pe,
                  float eps) {
  int64_t B = x->shape[0], L = x->shape[1], H = x->shape[2], D = x->shape[3];
  const float* w = widen_weight<T>(static_cast<float*>(workspace(ctx, D * 4)), weight, D);
  bool stream = streamed(y);
  parallel_for(ctx, (B * L + kTokens - 1) / kTokens, [&](int64_t chunk) {
    int64_t last = chunk * kTokens + kTokens < B * L ? chunk * kTokens + kTokens : B * L;
    for (int64_t token = chunk * kTokens; token < last; token++) {
      int64_t b = token / L, l = token % L;
      const T* from = data<T>(x) + b * x->strides[0] + l * x->strides[1];
      T* to = data<T>(y) + b * y->strides[0] + l * y->strides[1];
      auto heads = [&](int64_t size) FX_LAMBDA {
        for (int64_t h = 0; h < H; h++) {
          const T* row = from + h * x->strides[2];
          float r = w ? rms_reciprocal(row, size, eps) : 1;
          if (w && rstd) data<float>(rstd)[token * H + h] = r;
          norm_rope_row(to + h * y->strides[2], row, w, pe ? data<float>(pe) + l * D : nullptr, r, size, stream);
        }
      };
      if (D == 128) heads(128);  // the usual sizes, whose loops are unrolled
      else if (D == 64) heads(64);
      else heads(D);
    }
  });
  return FX_STATUS_OK;
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                   const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  int64_t B = dy->shape[0], L = dy->shape[1], H = dy->shape[2], D = dy->shape[3], chunks = (B * L + kTokens - 1) / kTokens;
  float* scratch = static_cast<float*>(workspace(ctx, (D + (dweight ? chunks * D : 0)) * 4));
  float* partial = scratch + D;
  const float* w = widen_weight<T>(scratch, weight, D);
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    float* sums = dweight ? partial + chunk * D : nullptr;
    if (sums) memset(sums, 0, size_t(D) * 4);
    int64_t last = chunk * kTokens + kTokens < B * L ? chunk * kTokens + kTokens : B * L;
    for (int64_t token = chunk * kTokens; token < last; token++) {
      int64_t b = token / L, l = token % L;
      for (int64_t h = 0; h < H; h++)
        norm_rope_row_backward(data<T>(dx) + b * dx->strides[0] + l * dx->strides[1] + h * dx->strides[2], sums,
                               data<T>(dy) + b * dy->strides[0] + l * dy->strides[1] + h * dy->strides[2],
                               w ? data<T>(x) + b * x->strides[0] + l * x->strides[1] + h * x->strides[2] : nullptr, w,
                               pe ? data<float>(pe) + l * D : nullptr, w ? data<float>(rstd)[token * H + h] : 1, 1, D);
    }
  });
  if (dweight) add_partial(data<float>(dweight), partial, chunks, D, D);
  return FX_STATUS_OK;
}

fx_status qk_norm_rope_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight,
                               const fx_tensor* pe, float eps) {
  return dispatch(x->dtype, [&](auto t) { return forward<decltype(t)>(ctx, y, rstd, x, weight, pe, eps); });
}

fx_status qk_norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                                const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  return dispatch(dy->dtype, [&](auto t) { return backward<decltype(t)>(ctx, dx, dweight, dy, x, rstd, weight, pe); });
}

}  // namespace

void add_qk_norm_rope(fx_ops* ops) {
  ops->rope_table = rope_table;
  ops->qk_norm_rope_forward = qk_norm_rope_forward;
  ops->qk_norm_rope_backward = qk_norm_rope_backward;
}

}  // namespace fx::FX_TIER
