// adaln.cpp: LayerNorm without affine, modulated per item: y = xhat · (1 + scale_b) + shift_b. A row is read from memory once and stays in
// L1 for the passes over it; the variance is a second pass around the mean, so that a large mean costs no digits.
#include <math.h>

#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kRows = 32;       // rows per chunk, over which tokens are summed: fixed, so that sums do not depend on the threads
constexpr int64_t kChannels = 256;  // channels per job of the final sum

// Sum over a row of f(offset, lanes), in four chains of additions.
template <class F>
FX_INLINE float row_sum(int64_t n, const F& f) {
  vf a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a += f(i, kLanes);
    b += f(i + kLanes, kLanes);
    c += f(i + 2 * kLanes, kLanes);
    d += f(i + 3 * kLanes, kLanes);
  }
  for_lanes(n - i, [&](int64_t j, int64_t lanes) { a += f(i + j, lanes); });
  return sum((a + b) + (c + d));
}

// The modulation of one item in f32: 1 + scale and shift, read for every row of a chunk.
template <class T>
void widen_modulation(float* scale1, float* shift32, const T* scale, const T* shift, int64_t C) {
  for_lanes(C, [&](int64_t i, int64_t lanes) {
    store_some(scale1 + i, 1.0f + load_some(scale + i, lanes), lanes);
    if (shift) store_some(shift32 + i, load_some(shift + i, lanes), lanes);
  });
}

// wide: memory for x in f32. x_next, y_next: the row to come, fetched while this one is in L1 and memory would idle.
template <class T>
void forward_row(T* y, float* mean_out, float* rstd_out, const T* x, const float* shift, const float* scale1, float* wide, int64_t C,
                 float eps, const T* x_next, const T* y_next) {
  constexpr bool is_wide = sizeof(T) == sizeof(float);
  const float* row = is_wide ? reinterpret_cast<const float*>(x) : wide;
  float mean = row_sum(C,
                       [&](int64_t i, int64_t lanes) {
                         vf v = load_some(x + i, lanes);
                         if (!is_wide) store_some(wide + i, v, lanes);
                         return v;
                       }) /
               float(C);
  float square = row_sum(C, [&](int64_t i, int64_t lanes) {
    __builtin_prefetch(x_next + i);
    vf e = first_lanes(load_some(row + i, lanes) - mean, lanes);
    return e * e;
  });
  float rstd = 1 / sqrtf(square / float(C) + eps);
  for_lanes(C, [&](int64_t i, int64_t lanes) {
    __builtin_prefetch(y_next + i, 1);
    vf normal = (load_some(row + i, lanes) - mean) * rstd;
    store_some(y + i, normal * load_some(scale1 + i, lanes) + load_some(shift + i, lanes), lanes);
  });
  if (mean_out) *mean_out = mean, *rstd_out = rstd;
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* shift,
                  const fx_tensor* scale, float eps) {
  int64_t L = x->shape[1], C = x->shape[2], width = round_up(C, kLanes), chunks = (L + kRows - 1) / kRows;
  float* scratch = static_cast<float*>(workspace(ctx, ctx->threads * 3 * width * 4));
  parallel_for(ctx, x->shape[0] * chunks, [&](int64_t job) {
    int64_t b = job / chunks, first = job % chunks * kRows, last = first + kRows < L ? first + kRows : L;
    float *wide = scratch + thread_index() * 3 * width, *scale1 = wide + width, *shift32 = scale1 + width;
    widen_modulation(scale1, shift32, data<T>(scale) + b * scale->strides[0], data<T>(shift) + b * shift->strides[0], C);
    for (int64_t l = first; l < last; l++) {
      T* yp = data<T>(y) + b * y->strides[0] + l * y->strides[1];
      const T* xp = data<T>(x) + b * x->strides[0] + l * x->strides[1];
      forward_row(yp, mean ? data<float>(mean) + b * L + l : nullptr, rstd ? data<float>(rstd) + b * L + l : nullptr, xp, shift32, scale1,
                  wide, C, eps, xp + x->strides[1], yp + y->strides[1]);
    }
  });
  return FX_STATUS_OK;
}

// One row: with g = dy (1 + scale), dx = rstd (g − mean(g) − xhat · mean(g · xhat)), or += that. dshift += dy, dscale += dy · xhat, where
// wanted.
template <class T>
void backward_row(T* dx, float* dshift, float* dscale, const T* dy, const T* x, const float* scale1, int64_t C, float mean, float rstd,
                  bool accumulate, const T* dy_next, const T* x_next) {
  vf projection{};
  float total = row_sum(C, [&](int64_t i, int64_t lanes) {
    vf d = load_some(dy + i, lanes), normal = (load_some(x + i, lanes) - mean) * rstd;
    if (dshift) {
      store_some(dshift + i, load_some(dshift + i, lanes) + d, lanes);
      store_some(dscale + i, load_some(dscale + i, lanes) + d * normal, lanes);
    }
    vf g = d * load_some(scale1 + i, lanes);
    projection += g * normal;
    return g;
  });
  float a = total / float(C), b = sum(projection) / float(C);
  for_lanes(C, [&](int64_t i, int64_t lanes) {
    __builtin_prefetch(dy_next + i), __builtin_prefetch(x_next + i);
    vf normal = (load_some(x + i, lanes) - mean) * rstd;
    vf g = load_some(dy + i, lanes) * load_some(scale1 + i, lanes);
    vf d = rstd * (g - a - normal * b);
    store_some(dx + i, accumulate ? load_some(dx + i, lanes) + d : d, lanes);
  });
}

// out[b, i] = sum over chunks of partial[b, chunk, i], in order; partial rows are `width` apart.
template <class T>
void sum_chunks(fx_ctx* ctx, const fx_tensor* out, const float* partial, int64_t chunks, int64_t width) {
  int64_t C = out->shape[1], blocks = (C + kChannels - 1) / kChannels;
  parallel_for(ctx, out->shape[0] * blocks, [&](int64_t job) {
    int64_t b = job / blocks, start = job % blocks * kChannels, n = start + kChannels < C ? kChannels : C - start;
    for_lanes(n, [&](int64_t i, int64_t lanes) {
      vf total{};
      for (int64_t j = 0; j < chunks; j++) total += load_some(partial + (b * chunks + j) * width + start + i, lanes);
      store_some(data<T>(out) + b * out->strides[0] + start + i, total, lanes);
    });
  });
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dshift, const fx_tensor* dscale, const fx_tensor* dy,
                   const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* scale, bool accumulate) {
  int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2];
  int64_t chunks = (L + kRows - 1) / kRows, width = round_up(C, kLanes);
  float* scratch = static_cast<float*>(workspace(ctx, (ctx->threads * width + (dshift ? B * chunks * 2 * C : 0)) * 4));
  float* partial = dshift ? scratch + ctx->threads * width : nullptr;
  parallel_for(ctx, B * chunks, [&](int64_t job) {
    int64_t b = job / chunks, first = job % chunks * kRows, last = first + kRows < L ? first + kRows : L;
    float *scale1 = scratch + thread_index() * width, *sums = partial ? partial + job * 2 * C : nullptr;
    widen_modulation<T>(scale1, nullptr, data<T>(scale) + b * scale->strides[0], nullptr, C);
    if (sums) memset(sums, 0, size_t(2 * C) * 4);
    for (int64_t l = first; l < last; l++) {
      const T* dyp = data<T>(dy) + b * dy->strides[0] + l * dy->strides[1];
      const T* xp = data<T>(x) + b * x->strides[0] + l * x->strides[1];
      backward_row(data<T>(dx) + b * dx->strides[0] + l * dx->strides[1], sums, sums ? sums + C : nullptr, dyp, xp, scale1, C,
                   data<float>(mean)[b * L + l], data<float>(rstd)[b * L + l], accumulate, dyp + dy->strides[1], xp + x->strides[1]);
    }
  });
  if (!dshift) return FX_STATUS_OK;
  sum_chunks<T>(ctx, dshift, partial, chunks, 2 * C);
  sum_chunks<T>(ctx, dscale, partial + C, chunks, 2 * C);
  return FX_STATUS_OK;
}

fx_status adaln_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                        const fx_tensor* shift, const fx_tensor* scale, float eps) {
  return dispatch(x->dtype, [&](auto t) { return forward<decltype(t)>(ctx, y, mean, rstd, x, shift, scale, eps); });
}

fx_status adaln_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dshift, const fx_tensor* dscale, const fx_tensor* dy,
                         const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* scale, int32_t accumulate) {
  return dispatch(x->dtype,
                  [&](auto t) { return backward<decltype(t)>(ctx, dx, dshift, dscale, dy, x, mean, rstd, scale, accumulate != 0); });
}

}  // namespace

void add_adaln(fx_ops* ops) {
  ops->adaln_forward = adaln_forward;
  ops->adaln_backward = adaln_backward;
}

}  // namespace fx::FX_TIER
