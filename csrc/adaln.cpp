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
  vf2 a{}, b{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = a + f(i, Two{});
    b = b + f(i + 2 * kLanes, Two{});
  }
  for_two(n - i, [&](int64_t j, auto lanes) { add_to(a, f(i + j, lanes)); });
  return sum((a.a + b.a) + (a.b + b.b));
}

// The modulation of one item in f32: 1 + scale and shift, read for every row of a chunk.
template <class T>
void widen_modulation(float* scale1, float* shift32, const T* scale, const T* shift, int64_t C) {
  for_two(C, [&](int64_t i, auto lanes) {
    store_some(scale1 + i, load_some(scale + i, lanes) + 1.0f, lanes);
    if (shift) store_some(shift32 + i, load_some(shift + i, lanes), lanes);
  });
}

template <class T>
FX_INLINE float row_mean(const T* x, int64_t C) {
  return row_sum(C, [&](int64_t i, auto lanes) { return read_some(x + i, lanes); }) / float(C);
}

// One row of the given mean. Returns the mean of the row to come: it is read while this one is written, so that memory does both.
template <class T>
float forward_row(T* y, float* rstd_out, const T* x, const float* shift, const float* scale1, int64_t C, float mean, float eps,
                  const T* x_next, bool stream) {
  float square = row_sum(C, [&](int64_t i, auto lanes) {
    prefetch(x_next + kFetchAhead / int64_t(sizeof(T)) + i / 2, 2 * kLanes);  // else memory would idle
    auto e = first_lanes(load_some(x + i, lanes) - mean, lanes);
    return e * e;
  });
  float rstd = 1 / sqrtf(square / float(C) + eps);
  if (rstd_out) *rstd_out = rstd;
  return row_sum(C,
                 [&](int64_t i, auto lanes) {
                   auto normal = (load_some(x + i, lanes) - mean) * rstd;
                   write_some(y + i, normal * load_some(scale1 + i, lanes) + load_some(shift + i, lanes), lanes, stream);
                   return read_some(x_next + i, lanes);
                 }) /
         float(C);
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* shift,
                  const fx_tensor* scale, float eps) {
  int64_t L = x->shape[1], C = x->shape[2], width = round_up(C, kLanes), chunks = (L + kRows - 1) / kRows;
  float* scratch = static_cast<float*>(workspace(ctx, ctx->threads * 2 * width * 4));
  bool stream = streamed(y);
  parallel_for(ctx, x->shape[0] * chunks, [&](int64_t job) {
    int64_t b = job / chunks, first = job % chunks * kRows, last = first + kRows < L ? first + kRows : L;
    float *scale1 = scratch + thread_index() * 2 * width, *shift32 = scale1 + width;
    widen_modulation(scale1, shift32, data<T>(scale) + b * scale->strides[0], data<T>(shift) + b * shift->strides[0], C);
    const T* xp = data<T>(x) + b * x->strides[0] + first * x->strides[1];
    float row = row_mean(xp, C);
    for (int64_t l = first; l < last; l++) {
      T* yp = data<T>(y) + b * y->strides[0] + l * y->strides[1];
      const T* x_next = l + 1 < last ? xp + x->strides[1] : xp;
      if (mean) data<float>(mean)[b * L + l] = row;
      row = forward_row(yp, rstd ? data<float>(rstd) + b * L + l : nullptr, xp, shift32, scale1, C, row, eps, x_next, stream);
      xp = x_next;
    }
  });
  return FX_STATUS_OK;
}

// One row: with g = dy (1 + scale), dx = rstd (g − mean(g) − xhat · mean(g · xhat)), or += that. dshift += dy, dscale += dy · xhat, where
// wanted.
template <class T>
void backward_row(T* dx, float* dshift, float* dscale, const T* dy, const T* x, const float* scale1, int64_t C, float mean, float rstd,
                  bool accumulate, const T* dy_next, const T* x_next, bool stream) {
  constexpr int64_t kTwo = 2 * kLanes;
  vf2 products{};
  float total = row_sum(C, [&](int64_t i, auto lanes) {
    prefetch(dy_next + i / 2, kTwo), prefetch(x_next + i / 2, kTwo);  // half of the next row now, half below: memory is never idle
    auto d = load_some(dy + i, lanes), normal = (load_some(x + i, lanes) - mean) * rstd;
    if (dshift) {
      store_some(dshift + i, load_some(dshift + i, lanes) + d, lanes);
      store_some(dscale + i, load_some(dscale + i, lanes) + d * normal, lanes);
    }
    auto g = d * load_some(scale1 + i, lanes);
    add_to(products, g * normal);
    return g;
  });
  float a = rstd * (total / float(C)), b = rstd * (sum(products.a + products.b) / float(C));
  for_two(C, [&](int64_t i, auto lanes) {
    prefetch(dy_next + (C + i) / 2, kTwo), prefetch(x_next + (C + i) / 2, kTwo);
    auto normal = (load_some(x + i, lanes) - mean) * rstd;
    auto d = load_some(dy + i, lanes) * load_some(scale1 + i, lanes) * rstd - a - normal * b;
    write_some(dx + i, accumulate ? load_some(dx + i, lanes) + d : d, lanes, stream);
  });
}

// out[b, i] = sum over chunks of partial[b, chunk, i], in order; partial rows are `width` apart.
template <class T>
void sum_chunks(fx_ctx* ctx, const fx_tensor* out, const float* partial, int64_t chunks, int64_t width) {
  int64_t C = out->shape[1], blocks = (C + kChannels - 1) / kChannels;
  parallel_for(ctx, out->shape[0] * blocks, [&](int64_t job) {
    int64_t b = job / blocks, start = job % blocks * kChannels, n = start + kChannels < C ? kChannels : C - start;
    for_two(n, [&](int64_t i, auto lanes) {
      auto total = load_some(partial + b * chunks * width + start + i, lanes);
      for (int64_t j = 1; j < chunks; j++) total = total + load_some(partial + (b * chunks + j) * width + start + i, lanes);
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
  bool stream = !accumulate && streamed(dx);
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
                   data<float>(mean)[b * L + l], data<float>(rstd)[b * L + l], accumulate, dyp + dy->strides[1], xp + x->strides[1],
                   stream);
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
