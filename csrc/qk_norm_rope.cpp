// qk_norm_rope.cpp: RMSNorm of every head's query or key and its rotation by position, in one pass (flux: layers.py QKNorm, math.py
// apply_rope), and the table of rotations. Bound by memory. A vector holds whole pairs (2i, 2i+1): a rotation is two products and a swap
// of neighbours.
#include <math.h>

#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kTokens = 32;  // tokens per chunk of the reduction to dweight: fixed, so that sums do not depend on the threads

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

typedef uint64_t vq __attribute__((vector_size(sizeof(vf))));

// Rotates the pairs of x by the angles at pe, interleaved (cos, sin), or back when inverse, which is the gradient. Lanes move by shifts of
// pairs, which every tier has; shuffles of 16 lanes it has not.
FX_INLINE vf rotate(vf x, const float* pe, int64_t lanes, bool inverse) {
  const uint64_t low = 0xffffffff, sign = inverse ? uint64_t(1) << 63 : uint64_t(1) << 31;
  vq turn = (vq)load_some(pe, lanes), pairs = (vq)x;
  vf c = (vf)((turn & low) | turn << 32), s = (vf)(((turn & ~low) | turn >> 32) ^ sign);
  return c * x + s * (vf)(pairs << 32 | pairs >> 32);
}

template <class T>
void forward_row(T* y, float* rstd, const T* x, const T* weight, const float* pe, int64_t D, float eps) {
  float r = 1;
  if (weight) {
    vf squares{};
    for_lanes(D, [&](int64_t i, int64_t lanes) {
      vf v = load_some(x + i, lanes);
      squares += v * v;
    });
    r = 1 / sqrtf(sum(squares) / float(D) + eps);
    if (rstd) *rstd = r;
  }
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf v = load_some(x + i, lanes);
    if (weight) v = v * r * load_some(weight + i, lanes);
    if (pe) v = rotate(v, pe + i, lanes, false);
    store_some(y + i, v, lanes);
  });
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight, const fx_tensor* pe,
                  float eps) {
  int64_t B = x->shape[0], L = x->shape[1], H = x->shape[2], D = x->shape[3];
  parallel_for(ctx, B * L, [&](int64_t token) {
    int64_t b = token / L, l = token % L;
    const T* from = data<T>(x) + b * x->strides[0] + l * x->strides[1];
    T* to = data<T>(y) + b * y->strides[0] + l * y->strides[1];
    for (int64_t h = 0; h < H; h++)
      forward_row<T>(to + h * y->strides[2], rstd ? data<float>(rstd) + token * H + h : nullptr, from + h * x->strides[2],
                     weight ? data<T>(weight) : nullptr, pe ? data<float>(pe) + l * D : nullptr, D, eps);
  });
  return FX_STATUS_OK;
}

// With n = x·rstd and g the gradient of n·weight: dx = rstd·(g·weight - n·mean(n·g·weight)), sums += g·n. Without weight dx = g. Every
// element of dy is read, for the last time, just before its dx is written: they may be the same memory.
template <class T>
void backward_row(T* dx, float* sums, const T* dy, const T* x, float rstd, const T* weight, const float* pe, int64_t D) {
  float mean = 0;
  if (weight) {
    vf dots{};
    for_lanes(D, [&](int64_t i, int64_t lanes) {
      vf g = load_some(dy + i, lanes), n = load_some(x + i, lanes) * rstd;
      if (pe) g = rotate(g, pe + i, lanes, true);
      if (sums) store_some(sums + i, load_some(sums + i, lanes) + g * n, lanes);
      dots += g * n * load_some(weight + i, lanes);
    });
    mean = sum(dots) / float(D);
  }
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf g = load_some(dy + i, lanes);
    if (pe) g = rotate(g, pe + i, lanes, true);
    if (weight) g = rstd * (g * load_some(weight + i, lanes) - load_some(x + i, lanes) * rstd * mean);
    store_some(dx + i, g, lanes);
  });
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                   const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  int64_t B = dy->shape[0], L = dy->shape[1], H = dy->shape[2], D = dy->shape[3];
  int64_t chunks = (B * L + kTokens - 1) / kTokens;
  float* partial = dweight ? static_cast<float*>(workspace(ctx, chunks * D * 4)) : nullptr;
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    float* sums = partial ? partial + chunk * D : nullptr;
    if (sums) memset(sums, 0, size_t(D) * 4);
    int64_t last = chunk * kTokens + kTokens < B * L ? chunk * kTokens + kTokens : B * L;
    for (int64_t token = chunk * kTokens; token < last; token++) {
      int64_t b = token / L, l = token % L;
      for (int64_t h = 0; h < H; h++)
        backward_row<T>(data<T>(dx) + b * dx->strides[0] + l * dx->strides[1] + h * dx->strides[2], sums,
                        data<T>(dy) + b * dy->strides[0] + l * dy->strides[1] + h * dy->strides[2],
                        weight ? data<T>(x) + b * x->strides[0] + l * x->strides[1] + h * x->strides[2] : nullptr,
                        weight ? data<float>(rstd)[token * H + h] : 1, weight ? data<T>(weight) : nullptr,
                        pe ? data<float>(pe) + l * D : nullptr, D);
    }
  });
  if (!dweight) return FX_STATUS_OK;
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf total{};
    for (int64_t chunk = 0; chunk < chunks; chunk++) total += load_some(partial + chunk * D + i, lanes);
    float* out = data<float>(dweight) + i;
    store_some(out, load_some(out, lanes) + total, lanes);
  });
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
