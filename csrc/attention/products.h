// products.h: the products of attention in vector registers. Every one is a tile of R rows and some vectors of columns,
//   c[i][j] += sum over t < n of a[i][t] · b[t][j],
// accumulated in registers from broadcast elements of a and vectors of b. An element is 4 bytes: one f32, or a pair of bf16 that are
// neighbours in the direction of the sum (vdpbf16ps multiplies and adds both). `a` lies in panels [rows/R][n][R], or in rows.
#pragma once
#include "../core/norm_rope.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fx::FX_TIER {

constexpr int W = kLanes;
typedef uint32_t pair;  // bf16 in the low half, its neighbour in the high half

#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 3;  // 24 accumulators of 32 registers: two ports times the latency of 4 need 8
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 3;  // 12 of 16
#else
constexpr int kRows = 4, kVectors = 2;  // 8 of 16, multiply and add apart
#endif

FX_INLINE vf multiply_add(vf acc, float a, vf b) { return acc + a * b; }
FX_INLINE vf load_elements(const float* p) { return load(p); }
#if defined(__AVX512BF16__)
FX_INLINE vf multiply_add(vf acc, pair a, vu b) {
  return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)b, (__m512bh)_mm512_set1_epi32(int(a)));
}
#endif
FX_INLINE vu load_elements(const pair* p) {
  vu v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class Element>
struct Registers {
  typedef Element E;
  static constexpr int G = __is_same(Element, float) ? 1 : 2;  // numbers an element
  static constexpr int R = kRows;
  static constexpr int kUnit = W, kUnits = kVectors;  // queries of a block: up to kUnits times kUnit
  static constexpr int kColumns = 2 * W;              // of one call of add_rows
  static constexpr bool kPadded = false;              // head dimension: as it is

  // What a thread holds while it computes.
  struct Scope {};

  template <int Step, int Rows, int Cols>
  static FX_INLINE void tile(vf (&acc)[Rows][Cols], int64_t n, const E* a, int64_t a_step, const E* b, int64_t b_step) {
    for (int64_t t = 0; t < n; t++, a += a_step, b += b_step) {
      decltype(load_elements(b)) v[Cols];
#pragma GCC unroll 8
      for (int j = 0; j < Cols; j++) v[j] = load_elements(b + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; i++) {
        E s = a[i * Step];
#pragma GCC unroll 8
        for (int j = 0; j < Cols; j++) acc[i][j] = multiply_add(acc[i][j], s, v[j]);
      }
    }
  }

  // finish(i, j, a b) for R rows and N vectors; a: a panel.
  template <int N, class F>
  static FX_INLINE void product(int64_t n, const E* a, const E* b, int64_t b_step, const F& finish) {
    vf acc[R][N] = {};
    tile<1>(acc, n, a, R, b, b_step);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) finish(i, j, acc[i][j]);
  }

  // c [R][N·W] = c · alpha + a b; a: a panel.
  template <int N>
  static FX_INLINE void add_panel(float* c, int64_t c_step, const vf (&alpha)[N], int64_t n, const E* a, const E* b, int64_t b_step) {
    vf acc[R][N];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) acc[i][j] = load(c + i * c_step + j * W) * alpha[j];
    tile<1>(acc, n, a, R, b, b_step);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) store(c + i * c_step + j * W, acc[i][j]);
  }

  // c [R][kColumns] += a b; a: rows at a distance of Step.
  template <int Step>
  static FX_INLINE void add_rows(float* c, int64_t c_step, int64_t n, const E* a, const E* b, int64_t b_step) {
    constexpr int N = kColumns / W;
    vf acc[R][N];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) acc[i][j] = load(c + i * c_step + j * W);
    tile<Step>(acc, n, a, 1, b, b_step);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) store(c + i * c_step + j * W, acc[i][j]);
  }
};

}  // namespace fx::FX_TIER
