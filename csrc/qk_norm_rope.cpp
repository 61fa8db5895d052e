// qk_norm_rope.cpp: RMSNorm of every head's query or key and its rotation by position, in one pass (flux: layers.py QKNorm, math.py
// apply_rope), and the table of rotations. Bound by memory. A vector holds whole pairs (2i, 2i+1): a rotation is two products and a swap
// of neighbours.
#include <math.h>

#include "core/op.h"

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

typedef uint64_t vq __attribute__((vector_size(sizeof(vf))));

// Neighbours exchanged: shifts of pairs, which every tier has; shuffles of 16 lanes it has not.
FX_INLINE vf swap_pairs(vf x) {
  vq pairs = (vq)x;
  return (vf)(pairs << 32 | pairs >> 32);
}

// A token's rotation by its pairs (cos, sin), as y = c ⊙ x + s ⊙ swap(x), or the one back when inverse, which is the gradient. Without pe
// it is the identity.
void spread_rotation(float* c, float* s, const float* pe, int64_t D, bool inverse) {
  const uint64_t low = 0xffffffff, sign = inverse ? uint64_t(1) << 63 : uint64_t(1) << 31;
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vq turn = pe ? (vq)load_some(pe + i, lanes) : vq{} + 0x3f800000;
    store_some(c + i, (vf)((turn & low) | turn << 32), lanes);
    store_some(s + i, (vf)(((turn & ~low) | turn >> 32) ^ sign), lanes);
  });
}

// The weights in f32, 1 without any.
template <class T>
void widen_weight(float* w, const T* weight, int64_t D) {
  for_lanes(D, [&](int64_t i, int64_t lanes) { store_some(w + i, weight ? load_some(weight + i, lanes) : splat(1), lanes); });
}

// One head: y = r · (c ⊙ x + s ⊙ swap(x)), where c and s have the weight in them and r is 1/rms of x, or 1 without a norm.
template <class T>
void forward_row(T* y, float* rstd, const T* x, const float* c, const float* s, int64_t D, bool norm, float eps) {
  float r = 1;
  if (norm) {
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
    store_some(y + i, r * (load_some(c + i, lanes) * v + load_some(s + i, lanes) * swap_pairs(v)), lanes);
  });
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight, const fx_tensor* pe,
                  float eps) {
  int64_t B = x->shape[0], L = x->shape[1], H = x->shape[2], D = x->shape[3], width = round_up(D, kLanes);
  float* scratch = static_cast<float*>(workspace(ctx, ctx->threads * 3 * width * 4));
  parallel_for(ctx, (B * L + kTokens - 1) / kTokens, [&](int64_t chunk) {
    float *w = scratch + thread_index() * 3 * width, *c = w + width, *s = c + width;
    widen_weight(w, weight ? data<T>(weight) : nullptr, D);
    int64_t last = chunk * kTokens + kTokens < B * L ? chunk * kTokens + kTokens : B * L;
    for (int64_t token = chunk * kTokens; token < last; token++) {
      int64_t b = token / L, l = token % L;
      spread_rotation(c, s, pe ? data<float>(pe) + l * D : nullptr, D, false);
      for_lanes(D, [&](int64_t i, int64_t lanes) {
        vf v = load_some(w + i, lanes);
        store_some(c + i, load_some(c + i, lanes) * v, lanes);
        store_some(s + i, load_some(s + i, lanes) * swap_pairs(v), lanes);
      });
      const T* from = data<T>(x) + b * x->strides[0] + l * x->strides[1];
      T* to = data<T>(y) + b * y->strides[0] + l * y->strides[1];
      for (int64_t h = 0; h < H; h++)
        forward_row(to + h * y->strides[2], rstd ? data<float>(rstd) + token * H + h : nullptr, from + h * x->strides[2], c, s, D,
                    weight != nullptr, eps);
    }
  });
  return FX_STATUS_OK;
}

// What every row of a chunk reads, and the row's own g and x, [D] each.
struct Scratch {
  float *weight, *c, *s, *g, *x;
  Scratch(float* base, int64_t width) : weight(base), c(base + width), s(base + 2 * width), g(base + 3 * width), x(base + 4 * width) {}
};

// With n = x·rstd and g the gradient of n·weight: dx = rstd·(g·weight - n·mean(n·g·weight)), sums += g·n. Without x, which is without a
// norm, dx = g. All of dy is read before dx is written: they may be the same memory.
template <class T>
void backward_row(T* dx, float* sums, const T* dy, const T* x, float rstd, const Scratch& k, int64_t D) {
  vf dots{};
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf d = load_some(dy + i, lanes), g = load_some(k.c + i, lanes) * d + load_some(k.s + i, lanes) * swap_pairs(d);
    store_some(k.g + i, g, lanes);
    if (!x) return;
    vf n = load_some(x + i, lanes) * rstd, p = g * n;
    store_some(k.x + i, n, lanes);
    if (sums) store_some(sums + i, load_some(sums + i, lanes) + p, lanes);
    dots += p * load_some(k.weight + i, lanes);
  });
  float mean = x ? sum(dots) / float(D) : 0;
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf g = load_some(k.g + i, lanes);
    store_some(dx + i, x ? rstd * (g * load_some(k.weight + i, lanes) - load_some(k.x + i, lanes) * mean) : g, lanes);
  });
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                   const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  int64_t B = dy->shape[0], L = dy->shape[1], H = dy->shape[2], D = dy->shape[3], width = round_up(D, kLanes);
  int64_t chunks = (B * L + kTokens - 1) / kTokens;
  float* scratch = static_cast<float*>(workspace(ctx, (ctx->threads * 5 * width + (dweight ? chunks * D : 0)) * 4));
  float* partial = scratch + ctx->threads * 5 * width;
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    Scratch k(scratch + thread_index() * 5 * width, width);
    widen_weight(k.weight, weight ? data<T>(weight) : nullptr, D);
    float* sums = dweight ? partial + chunk * D : nullptr;
    if (sums) memset(sums, 0, size_t(D) * 4);
    int64_t last = chunk * kTokens + kTokens < B * L ? chunk * kTokens + kTokens : B * L;
    for (int64_t token = chunk * kTokens; token < last; token++) {
      int64_t b = token / L, l = token % L;
      spread_rotation(k.c, k.s, pe ? data<float>(pe) + l * D : nullptr, D, true);
      for (int64_t h = 0; h < H; h++)
        backward_row<T>(data<T>(dx) + b * dx->strides[0] + l * dx->strides[1] + h * dx->strides[2], sums,
                        data<T>(dy) + b * dy->strides[0] + l * dy->strides[1] + h * dy->strides[2],
                        weight ? data<T>(x) + b * x->strides[0] + l * x->strides[1] + h * x->strides[2] : nullptr,
                        weight ? data<float>(rstd)[token * H + h] : 1, k, D);
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
