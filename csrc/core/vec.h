// vec.h: the vector vocabulary of the CPU kernels: one register of f32 (16, 8 or 4 lanes), on GCC's vector extension. One source for all
// tiers; the avx512 tier names the bf16 conversion instruction. Never wider than a register: GCC 12 keeps such vectors in memory.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

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
#if !defined(__AVX512BF16__)
// Rounded to bf16 in the upper half of each lane.
FX_INLINE vu round_upper(vf v) {
  vu u = (vu)v, nan = (vu)((u & 0x7fffffff) > 0x7f800000);
  return (nan & (u | 0x400000)) | (~nan & (u + 0x7fff + ((u >> 16) & 1)));
}
#endif
FX_INLINE vh round_bf16(vf v) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
  return __builtin_convertvector(round_upper(v) >> 16, vh);
#endif
}
FX_INLINE void store(bf16* p, vf v) {
  vh h = round_bf16(v);
  memcpy(p, &h, sizeof h);
}

// Bytes written around the caches; p is aligned to their number. threads.h orders them before what follows a parallel loop.
template <class V>
FX_INLINE void stream_bits(void* p, V v) {
  static_assert(sizeof(V) == 8 || sizeof(V) == 16 || sizeof(V) == 32 || sizeof(V) == 64);
  if constexpr (sizeof(V) == 8) _mm_stream_si64(static_cast<long long*>(p), (long long)v);
  if constexpr (sizeof(V) == 16) _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#endif
}
FX_INLINE void stream(float* p, vf v) { stream_bits(p, v); }
FX_INLINE void stream(bf16* p, vf v) { stream_bits(p, round_bf16(v)); }

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

// store_some, or around the caches where streamed(): op.h says when.
template <class T>
FX_INLINE void write_some(T* p, vf v, int64_t lanes, bool streamed) {
  if (streamed && lanes == kLanes) stream(p, v);
  else store_some(p, v, lanes);
}

// Two vectors of neighbours, in an order that depends on the dtype alone: halves of f32, the even and the odd ones of bf16, which need no
// shuffle. For sums, and for maps between tensors of one dtype; f32 scratch written as such a pair is read back as one.
struct vf2 {
  vf a, b;
};
struct Two {};  // in the place of lanes
FX_INLINE vf2 operator+(vf2 x, vf2 y) { return {x.a + y.a, x.b + y.b}; }
FX_INLINE vf2 operator-(vf2 x, vf2 y) { return {x.a - y.a, x.b - y.b}; }
FX_INLINE vf2 operator*(vf2 x, vf2 y) { return {x.a * y.a, x.b * y.b}; }
FX_INLINE vf2 operator+(vf2 x, float y) { return {x.a + y, x.b + y}; }
FX_INLINE vf2 operator-(vf2 x, float y) { return {x.a - y, x.b - y}; }
FX_INLINE vf2 operator*(vf2 x, float y) { return {x.a * y, x.b * y}; }
FX_INLINE vf2 operator*(float x, vf2 y) { return {x * y.a, x * y.b}; }

FX_INLINE vf2 load_some(const float* p, Two) { return {load(p), load(p + kLanes)}; }
FX_INLINE vf2 load_some(const bf16* p, Two) {
  vu u;
  memcpy(&u, p, sizeof u);
  return {(vf)(u << 16), (vf)(u & 0xffff0000)};
}
FX_INLINE void write_some(float* p, vf2 v, Two, bool streamed) {
  write_some(p, v.a, kLanes, streamed);
  write_some(p + kLanes, v.b, kLanes, streamed);
}
FX_INLINE void write_some(bf16* p, vf2 v, Two, bool streamed) {
#if defined(__AVX512BF16__)
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  vu u = (vu)_mm512_maskz_permutexvar_epi16(0xffffffff, _mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a));
#else
  vu u = round_upper(v.a) >> 16 | (round_upper(v.b) & 0xffff0000);
#endif
  if (streamed) stream_bits(p, u);
  else memcpy(p, &u, sizeof u);
}
template <class T>
FX_INLINE void store_some(T* p, vf2 v, Two) {
  write_some(p, v, Two{}, false);
}
FX_INLINE vf2 first_lanes(vf2 v, Two) { return v; }
FX_INLINE void add_to(vf2& total, vf2 v) { total = total + v; }
FX_INLINE void add_to(vf2& total, vf v) { total.a += v; }

// for_lanes in steps of two vectors, body(offset, Two{}), as far as they go.
template <class F>
FX_INLINE void for_two(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) body(i, Two{});
  for_lanes(n - i, [&](int64_t j, int64_t lanes) { body(i + j, lanes); });
}

// for_two where all tensors have one dtype, else for_lanes.
template <class T, class U, class F>
FX_INLINE void for_mixed(int64_t n, const F& body) {
  if constexpr (sizeof(T) == sizeof(U)) for_two(n, body);
  else for_lanes(n, body);
}

// Fetches the cache lines of n elements, two vectors of them at most.
template <class T>
FX_INLINE void prefetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n * int64_t(sizeof(T)); i += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + i);
}
// load_some in a loop along memory that no cache holds: asks for what lies 2 KiB ahead, farther than the processor looks by itself.
constexpr int64_t kFetchAhead = 2048;
FX_INLINE int64_t elements_of(int64_t lanes) { return lanes; }
FX_INLINE int64_t elements_of(Two) { return 2 * kLanes; }
template <class T, class N>
FX_INLINE auto read_some(const T* p, N lanes) {
  prefetch(reinterpret_cast<const T*>(reinterpret_cast<const char*>(p) + kFetchAhead), elements_of(lanes));
  return load_some(p, lanes);
}

FX_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
// a < b ? a : b and a > b ? a : b, of NaN b: one instruction, of which GCC 12 makes a comparison and a move.
#if defined(__AVX512F__)
FX_INLINE vf min(vf a, vf b) { return (vf)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b); }
FX_INLINE vf max(vf a, vf b) { return (vf)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
FX_INLINE vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
FX_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
#else
FX_INLINE vf min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
FX_INLINE vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
#endif
FX_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

FX_INLINE vf sqrt(vf a) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(kAll, (__m512)a);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  return (vf)_mm_sqrt_ps((__m128)a);
#endif
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
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {  // else GCC 12 takes v apart in memory
      low = (Half)__builtin_shufflevector((__m512d)v, (__m512d)v, 0, 1, 2, 3);
      high = (Half)__builtin_shufflevector((__m512d)v, (__m512d)v, 4, 5, 6, 7);
    }
#endif
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

// e^x within 2 ulp for x in [-87.4, 88.8], where it may be inf. exp2 by range reduction and a degree-6 polynomial (Cephes' constants).
FX_INLINE vf exp_inside(vf clamped) {
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
  return select(clamped == clamped, y, clamped);
#endif
}
// For any x: below -87.4 it is at most 2⁻¹²⁵, above 88.8 inf.
FX_INLINE vf exp(vf x) { return exp_inside(min(splat(88.8f), max(splat(-87.4f), x))); }  // the constants first: NaN stays NaN

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
  vf e = exp_inside(min(splat(87), max(splat(-87.4f), -x)));
  s = reciprocal(1.0f + e);
  rest = e * s;
}
FX_INLINE vf sigmoid(vf x) {
  vf s, rest;
  sigmoid_pair(x, s, rest);
  return s;
}

}  // namespace fx::FX_TIER
