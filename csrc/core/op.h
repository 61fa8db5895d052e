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

}  // namespace fx::FX_TIER
