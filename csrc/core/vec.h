// vec.h: the vector vocabulary of the CPU kernels: one register of f32 (16, 8 or 4 lanes), on GCC's vector extension. One source for all
// tiers; the avx512 tier names the bf16 conversion instruction. Never wider than a register: GCC 12 keeps such vectors in memory.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define FX_INLINE inline __attribute__((always_inline))
#define FX_LAMBDA __attribute__((always_inline))

namespace fx::FX_TIER {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));
typedef double vd __attribute__((vector_size(kLanes * 8)));  // for sums of losses and norms

#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // GCC 12 takes the forms without a mask for reads of undefined values
#endif

struct bf16 {
  uint16_t bits;
};

FX_INLINE float to_float(float x) { return x; }
FX_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Round to nearest even; NaN stays NaN.
FX_INLINE bf16 to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
FX_INLINE void put(float* p, float x) { *p = x; }
FX_INLINE void put(bf16* p, float x) { *p = to_bf16(x); }

FX_INLINE vf splat(float x) { return x - vf{}; }  // x + 0 would be an addition: it turns -0 into 0

FX_INLINE vf load(const float* p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}
FX_INLINE vf load(const bf16* p) {
  vh h;
  memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)  // GCC 12 makes two halves of the conversion
  return (vf)((vu)_mm512_maskz_cvtepu16_epi32(kAll, (__m256i)h) << 16);
#else
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
FX_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
FX_INLINE void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
#else
  vu u = (vu)v;
  vu nan = (vu)((u & 0x7fffffff) > 0x7f800000);
  vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vh h = __builtin_convertvector((nan & ((u >> 16) | 0x40)) | (~nan & rounded), vh);
  memcpy(p, &h, sizeof h);
#endif
}
// The first n (< kLanes) lanes; the rest is 0 on load and untouched on store.
template <class T>
FX_INLINE vf load_n(const T* p, int64_t n) {
  T tail[kLanes] = {};
  memcpy(tail, p, n * sizeof(T));
  return load(tail);
}
template <class T>
FX_INLINE void store_n(T* p, vf v, int64_t n) {
  T tail[kLanes];
  store(tail, v);
  memcpy(p, tail, n * sizeof(T));
}

// Runs body(offset, lanes) over n elements: full vectors, then one tail with lanes < kLanes. Body uses load_some / store_some.
template <class F>
FX_INLINE void for_lanes(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}
template <class T>
FX_INLINE vf load_some(const T* p, int64_t lanes) {
  return lanes == kLanes ? load(p) : load_n(p, lanes);
}
template <class T>
FX_INLINE void store_some(T* p, vf v, int64_t lanes) {
  if (lanes == kLanes) store(p, v);
  else store_n(p, v, lanes);
}

FX_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
FX_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
FX_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
FX_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

FX_INLINE vf sqrt(vf a) {
  for (int i = 0; i < kLanes; i++) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
FX_INLINE vd widen(vf a) { return __builtin_convertvector(a, vd); }
// v in the first n lanes, 0 in the others.
FX_INLINE vf first_lanes(vf v, int64_t n) {
  const int32_t iota[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi index;
  memcpy(&index, iota, sizeof index);
  return select(index < int32_t(n), v, vf{});
}

// f over the lanes in halves: always the same tree.
template <class E, int N, class V, class F>
FX_INLINE E fold(V v, const F& f) {
  if constexpr (N == 2) {
    return f(v[0], v[1]);
  } else {
    typedef E Half __attribute__((vector_size(sizeof(V) / 2)));
    Half low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold<E, N / 2>(f(low, high), f);
  }
}
FX_INLINE float sum(vf v) {
  return fold<float, kLanes>(v, [](auto a, auto b) { return a + b; });
}
FX_INLINE double sum(vd v) {
  return fold<double, kLanes>(v, [](auto a, auto b) { return a + b; });
}
FX_INLINE float max_lane(vf v) {
  return fold<float, kLanes>(v, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x within 2 ulp for x in [-87, 88]; below it is at most 2⁻¹²⁵, above it is inf. exp2 by range reduction and a degree-6 polynomial
// (Cephes' constants).
FX_INLINE vf exp(vf x) {
  vf clamped = min(splat(88.8f), max(splat(-87.4f), x));  // the constants first: NaN stays NaN
#if defined(__AVX512F__)
  vf n = (vf)_mm512_maskz_roundscale_ps(kAll, (__m512)(clamped * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
#else
  vf n = clamped * 1.44269504f;
  n = (n + 12582912.0f) - 12582912.0f;  // round to nearest: 1.5·2^23
#endif
  vf r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(kAll, (__m512)p, (__m512)n);
#else
  vi e = __builtin_convertvector(n, vi);
  vi half = e >> 1;  // 2^128 does not fit one exponent: scale in two steps
  vf y = p * (vf)((half + 127) << 23) * (vf)((e - half + 127) << 23);
  return select(x == x, y, x);
#endif
}
// 1/d for d in [1, 2^126): within 2 ulp. A division is as slow as all of exp.
FX_INLINE vf reciprocal(vf d) {
#if defined(__AVX512F__)
  vf y = (vf)_mm512_maskz_rcp14_ps(kAll, (__m512)d);
  return y + y * (1.0f - d * y);
#else
  return 1.0f / d;
#endif
}
// sigmoid(x) and 1 − sigmoid(x), both with all their digits: the difference would have none where sigmoid is close to 1. At least e^-87.
FX_INLINE void sigmoid_pair(vf x, vf& s, vf& rest) {
  vf e = exp(min(splat(87), -x));
  s = reciprocal(1.0f + e);
  rest = e * s;
}
FX_INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exp(min(splat(87), -x))); }

}  // namespace fx::FX_TIER
