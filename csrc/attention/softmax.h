// softmax.h: what is between the products: powers of two in registers, and the queries cut into blocks.
#pragma once
#include "pack.h"

namespace fx::FX_TIER {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

// 2^t for t <= 127 within 1 ulp; 0 for t = -inf, NaN stays NaN. The polynomials' relative error is 2.6e-9: one degree less, 7.5e-8, shows
// in f32 outputs beside the rounding of the scores.
FX_INLINE vf exp2(vf t) {
#if defined(__AVX512F__)
  vf r = (vf)_mm512_maskz_reduce_ps(0xffff, (__m512)t, _MM_FROUND_FLOOR);  // t - floor(t)
  vf p = r * 0.000218657848f + 0.00123913318f;
  p = p * r + 0.00968418631f;
  p = p * r + 0.0554806302f;
  p = p * r + 0.240230454f;
  p = p * r + 0.693146933f;
  p = p * r + 1.0f;
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)t);  // p · 2^floor(t)
#else
  t = -127.0f > t ? vf{} - 127.0f : t;
  vf u = t + 12583039.0f;  // 1.5·2^23 + 127: rounds, and leaves the biased exponent in the low bits
  vf r = t - (u - 12583039.0f);
  vf p = r * 0.000154614447f + 0.00134004282f;
  p = p * r + 0.00961805668f;
  p = p * r + 0.0555032723f;
  p = p * r + 0.240226509f;
  p = p * r + 0.693147207f;
  p = p * r + 1.0f;
  return p * (vf)((vi)u << 23);
#endif
}

// Stores the probabilities of keys k and k + 1 of one vector of queries. An f32 takes one row a key, a pair one row for both.
FX_INLINE void store_keys(float* p, int64_t step, vf first, vf second) {
  store(p, first);
  store(p + step, second);
}
#if defined(__AVX512BF16__)
FX_INLINE void store_keys(pair* p, int64_t, vf first, vf second) {
  const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_loadu_si512(order), both));
}
#endif

// Stores a vector as the j-th of a row of numbers.
FX_INLINE void store_numbers(float* row, int j, vf v) { store(row + j * W, v); }
FX_INLINE void store_numbers(pair* row, int j, vf v) { store(reinterpret_cast<bf16*>(row) + j * W, v); }

// While it lives, the thread's denormal numbers are zeros. Probabilities 2^-127 to 2^-149 are common where the scores are spread widely,
// and a product with one takes a microcode assist on Intel: without this, 15 to 75 times slower.
class [[maybe_unused]] FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ, DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// The queries cut into blocks: block i has size(i) units of queries, at most P::kUnits, and begins at query first(i).
template <class P>
struct Blocks {
  int64_t count, base, extra;
  explicit Blocks(int64_t L) {
    int64_t units = (L + P::kUnit - 1) / P::kUnit;
    count = (units + P::kUnits - 1) / P::kUnits;
    base = count > 0 ? units / count : 0;
    extra = count > 0 ? units % count : 0;
  }
  int64_t size(int64_t i) const { return base + (i < extra); }
  int64_t first(int64_t i) const { return (i * base + (i < extra ? i : extra)) * P::kUnit; }
  int64_t lanes(int64_t i) const { return size(i) * P::kUnit; }
};

// Calls f(Count<n>{}), n the vectors of a block of `units`, as a compile-time constant.
template <int V>
struct Count {
  static constexpr int value = V;
};
template <class P, class F>
FX_INLINE void with_count(int64_t units, const F& f) {
  constexpr int vectors = P::kUnit / W;
  if (units == 1) f(Count<vectors>{});
  if (units == 2) f(Count<2 * vectors>{});
  if constexpr (P::kUnits > 2)
    if (units == 3) f(Count<3 * vectors>{});
}

// Hands out parts of a thread's scratch in units of 4 bytes, aligned to 64 bytes; without memory it counts.
class Scratch {
 public:
  explicit Scratch(float* base) : base_(base) {}
  template <class E>
  void take(E*& p, int64_t n) {
    p = base_ ? reinterpret_cast<E*>(base_ + used_) : nullptr;
    used_ += round_up(n, 16);
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

}  // namespace fx::FX_TIER
