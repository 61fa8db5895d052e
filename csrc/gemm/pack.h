// pack.h: operands of a product to the forms that the micro-kernels read. An operand is lines of terms: the lines are rows of a or columns
// of b, the terms are what the product sums over. An element is one f32, or a pair of bf16 that are neighbouring terms.
//   across  [elements][width]: the lines side by side in vectors
//   along   [lines][step]: line by line
// Lines and terms that are missing are zeros.
#pragma once
#include "../attention/products.h"

namespace fx::FX_TIER {

// Number (line i, term k) at p[i·line + k·term]; one of the two steps is 1.
template <class T>
struct Operand {
  const T* p;
  int64_t line, term, lines, terms;

  Operand part(int64_t first_line, int64_t most_lines, int64_t first_term, int64_t most_terms) const {
    int64_t l = lines - first_line, t = terms - first_term;
    return {p + first_line * line + first_term * term, line, term, l < most_lines ? l : most_lines, t < most_terms ? t : most_terms};
  }
  bool terms_adjoin() const { return term == 1; }
};

// The first n numbers at p, or a full vector; zeros for the rest.
template <class T>
FX_INLINE vf load_part(const T* p, int64_t n) {
  return n >= W ? load(p) : n > 0 ? load_n(p, n) : vf{};
}
// The same, W elements of 4 bytes as they are in memory.
FX_INLINE vu raw_part(const void* p, int64_t bytes) {
  vu v{};
  if (bytes >= int64_t(sizeof v)) memcpy(&v, p, sizeof v);
  else if (bytes > 0) memcpy(&v, p, size_t(bytes));
  return v;
}

// r[i][j] and r[j][i] change places: blocks off the diagonal, in halves.
FX_INLINE void transpose(vu (&r)[W]) {
  const int32_t iota[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi lane;
  memcpy(&lane, iota, sizeof lane);
#pragma GCC unroll 4
  for (int s = W / 2; s > 0; s /= 2) {
    vi low = (lane & s) == 0 ? lane : lane - s + W, high = (lane & s) == 0 ? lane + s : lane + W;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
      if (i & s) continue;
      vu a = r[i], b = r[i + s];
      r[i] = __builtin_shuffle(a, b, low), r[i + s] = __builtin_shuffle(a, b, high);
    }
  }
}

FX_INLINE float element(float*, float x, float) { return x; }
FX_INLINE float element(float*, bf16 x, bf16) { return to_float(x); }
FX_INLINE pair element(pair*, bf16 low, bf16 high) { return low.bits | uint32_t(high.bits) << 16; }

// W elements of neighbouring lines, of which there are `lines`, at p; `term` numbers on are the next term's, if there is one.
template <class T>
FX_INLINE vf line_elements(float*, const T* p, int64_t, bool, int64_t lines) {
  return load_part(p, lines);
}
FX_INLINE vu line_elements(pair*, const bf16* p, int64_t term, bool next, int64_t lines) {
  vu low = (vu)load_part(p, lines), high = next ? (vu)load_part(p + term, lines) : vu{};
  return low >> 16 | high;
}

FX_INLINE void put_elements(void* p, vu v) { memcpy(p, &v, sizeof v); }
FX_INLINE void put_elements(void* p, vf v) { memcpy(p, &v, sizeof v); }

// width: a multiple of W, n: elements.
template <class E, class T>
void pack_across(E* dst, int64_t width, int64_t n, const Operand<T>& o) {
  constexpr int64_t G = sizeof(E) / (__is_same(E, float) ? 4 : 2), kRaw = 4 / sizeof(T);  // terms an element, and 4 bytes in memory
  for (int64_t j = 0; j < width; j += W) {
    if (!o.terms_adjoin()) {
      for (int64_t e = 0; e < n; e++) {
        bool here = e * G < o.terms;
        put_elements(dst + e * width + j,
                     line_elements(dst, o.p + e * G * o.term + j, o.term, e * G + 1 < o.terms, here ? o.lines - j : 0));
      }
      continue;
    }
    for (int64_t k = 0; k < n * G; k += W * kRaw) {
      vu r[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) r[i] = raw_part(o.p + (j + i) * o.line + k, j + i < o.lines ? (o.terms - k) * int64_t(sizeof(T)) : 0);
      transpose(r);
      E* to = dst + k / G * width + j;
      int64_t left = n - k / G;
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) {
        if constexpr (kRaw == G) {
          if (i < left) put_elements(to + i * width, r[i]);
        } else {
          if (2 * i < left) put_elements(to + 2 * i * width, r[i] << 16);
          if (2 * i + 1 < left) put_elements(to + (2 * i + 1) * width, r[i] & 0xffff0000);
        }
      }
    }
  }
}

// The same for a width R below W, where lines adjoin.
template <int R, class E, class T>
void pack_narrow(E* dst, int64_t n, const Operand<T>& o) {
  constexpr int64_t G = sizeof(E) / (__is_same(E, float) ? 4 : 2);
  if (o.lines >= R && n * G == o.terms) {
    for (int64_t e = 0; e < n; e++)
      for (int i = 0; i < R; i++) dst[e * R + i] = element(dst, o.p[e * G * o.term + i], o.p[(e * G + G - 1) * o.term + i]);
    return;
  }
  for (int64_t e = 0; e < n; e++)
    for (int i = 0; i < R; i++) {
      auto at = [&](int64_t k) { return i < o.lines && k < o.terms ? o.p[k * o.term + i] : T{}; };
      dst[e * R + i] = element(dst, at(e * G), at(e * G + G - 1));
    }
}

// rows: lines to write; n: elements of each, of tiles a multiple of W; step: at least n rounded up to W.
template <class E, class T>
void pack_along(E* dst, int64_t step, int64_t rows, int64_t n, const Operand<T>& o) {
  constexpr int64_t G = sizeof(E) / (__is_same(E, float) ? 4 : 2);
  if (o.terms_adjoin()) {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t e = 0; e < n; e += W) {
        const T* p = o.p + i * o.line + e * G;
        int64_t left = i < o.lines ? o.terms - e * G : 0;
        if constexpr (G == 1) store(dst + i * step + e, load_part(p, left));
        else put_elements(dst + i * step + e, raw_part(p, left * 2));
      }
    return;
  }
  for (int64_t j = 0; j < rows; j += W)
    for (int64_t e = 0; e < n; e += W) {
      vu r[W];
      for (int i = 0; i < W; i++) {
        int64_t k = (e + i) * G;
        r[i] = (vu)line_elements(dst, o.p + k * o.term + j, o.term, k + 1 < o.terms, k < o.terms ? o.lines - j : 0);
      }
      transpose(r);
      for (int i = 0; i < W; i++) put_elements(dst + (j + i) * step + e, r[i]);
    }
}

}  // namespace fx::FX_TIER
