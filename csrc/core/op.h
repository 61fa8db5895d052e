// op.h: what every csrc/<op>.cpp includes. Op files are compiled once per tier with FX_TIER = generic | avx2 | avx512, and all their code,
// as well as vec.h and threads.h, sits in namespace fx::FX_TIER, so that no inline function of one tier can be linked into another. For the
// same reason op files use no std:: templates with code of their own (containers, algorithms).
#pragma once
#include "cpu.h"
#include "threads.h"
#include "vec.h"

namespace fx::FX_TIER {

// Calls f with a value of the element type of dtype: f(float{}) or f(bf16{}).
template <class F>
inline fx_status dispatch(fx_dtype dtype, F&& f) {
  return dtype == FX_DTYPE_F32 ? f(float{}) : f(bf16{});
}

template <class T>
inline T* data(const fx_tensor* t) {
  return static_cast<T*>(t->data);
}

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Whether an op writes y around the caches: y is too large to be found there by the op that reads it, and a plain store would first fetch
// from memory what it overwrites. Reading y back costs more then, so smaller outputs stay (docs/bench.md).
constexpr int64_t kStreamBytes = 8 << 20;
inline bool streamed(const fx_tensor* y) {
  int64_t size = y->dtype == FX_DTYPE_F32 ? 4 : 2, bytes = size;
  for (int d = 0; d < y->rank; d++) {
    bytes *= y->shape[d];
    if (y->shape[d] > 1 && (d == y->rank - 1 ? y->strides[d] != 1 : y->strides[d] * size % 64 != 0)) return false;
  }
  return bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(y->data) % 64 == 0;
}

}  // namespace fx::FX_TIER
