// norm_rope.h: one row of queries or keys normed and rotated by its position, y = rope(rmsnorm(x) · weight), and the way back (flux:
// layers.py QKNorm, math.py apply_rope). Attention does it while it packs, qk_norm_rope alone. Statistics and rotation are f32; weight NULL
// leaves the norm out, pe NULL the rotation. A vector holds whole pairs (2i, 2i+1).
#pragma once
#include <math.h>

#include "op.h"

namespace fx::FX_TIER {

// Indices for a shuffle within pairs.
constexpr vi pair_lanes(int even, int odd) {
  vi lanes{};
  for (int i = 0; i < kLanes; i += 2) lanes[i] = i + even, lanes[i + 1] = i + odd;
  return lanes;
}

// The pairs of x turned by pe = (cos, sin), or back, which is the gradient: c ⊙ x + s ⊙ swap(x), the sign of s alternating.
FX_INLINE vf turn(vf x, vf pe, bool back) {
  constexpr vi low{}, sign = low - 0x7fffffff - 1;
  vf c = __builtin_shuffle(pe, pair_lanes(0, 0)), s = __builtin_shuffle(pe, pair_lanes(1, 1));
  vi flipped = back ? __builtin_shuffle(low, sign, pair_lanes(0, kLanes)) : __builtin_shuffle(low, sign, pair_lanes(kLanes, 0));
  return c * x + (vf)((vi)s ^ flipped) * __builtin_shuffle(x, pair_lanes(1, 0));
}

// 1/rms of a row.
template <class T>
FX_INLINE float rms_reciprocal(const T* x, int64_t D, float eps) {
  vf squares{};
  int64_t i = 0;  // not for_lanes: GCC would keep the sums in memory
  for (; i + kLanes <= D; i += kLanes) {
    vf v = read_some(x + i, kLanes);
    squares += v * v;
  }
  if (i < D) squares += load_n(x + i, D - i) * load_n(x + i, D - i);
  return 1 / sqrtf(sum(squares) / float(D) + eps);
}

// y = rope(x · r · weight); without a norm r is any factor. stream: around the caches.
template <class Y, class T>
FX_INLINE void norm_rope_row(Y* y, const T* x, const float* weight, const float* pe, float r, int64_t D, bool stream = false) {
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf v = load_some(x + i, lanes) * r;
    if (weight) v *= load_some(weight + i, lanes);
    if (pe) v = turn(v, load_some(pe + i, lanes), false);
    write_some(y + i, v, lanes, stream);
  });
}

// With n = x · rstd and g the gradient of n · weight, which is dy · factor turned back: dx = rstd · (g · weight - n · mean(n · g ·
// weight)), sums += g · n. Without a norm dx = g. Every vector of dy is read, for the last time, before that of dx is written: they may be
// the same memory. sums may be NULL.
template <class X, class Y, class T>
FX_INLINE void norm_rope_row_backward(X* dx, float* sums, const Y* dy, const T* x, const float* weight, const float* pe, float rstd,
                                      float factor, int64_t D) {
  auto gradient = [&](int64_t i, int64_t lanes) FX_LAMBDA {
    vf g = load_some(dy + i, lanes) * factor;
    return pe ? turn(g, load_some(pe + i, lanes), true) : g;
  };
  vf dots{};
  auto add = [&](int64_t i, int64_t lanes) FX_LAMBDA {
    vf p = gradient(i, lanes) * load_some(x + i, lanes) * rstd;
    if (sums) store_some(sums + i, load_some(sums + i, lanes) + p, lanes);
    return p * load_some(weight + i, lanes);
  };
  int64_t i = 0;
  for (; weight && i + kLanes <= D; i += kLanes) dots += add(i, kLanes);
  if (weight && i < D) dots += add(i, D - i);
  float mean = sum(dots) / float(D);
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf g = gradient(i, lanes);
    if (weight) g = rstd * (g * load_some(weight + i, lanes) - load_some(x + i, lanes) * (rstd * mean));
    store_some(dx + i, g, lanes);
  });
}

// The weights in f32; NULL where there are none.
template <class T>
const float* widen_weight(float* to, const fx_tensor* weight, int64_t D) {
  if (!weight || weight->rank == 0) return nullptr;
  for_lanes(D, [&](int64_t i, int64_t lanes) { store_some(to + i, load_some(data<T>(weight) + i, lanes), lanes); });
  return to;
}

// out += the `parts` rows of D numbers at partial, `step` apart, in their order.
inline void add_partial(float* out, const float* partial, int64_t parts, int64_t step, int64_t D) {
  for_lanes(D, [&](int64_t i, int64_t lanes) {
    vf total{};
    for (int64_t part = 0; part < parts; part++) total += load_some(partial + part * step + i, lanes);
    store_some(out + i, load_some(out + i, lanes) + total, lanes);
  });
}

}  // namespace fx::FX_TIER
