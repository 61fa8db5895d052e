// pack.h: tensors of attention to the forms that the products read, and back. P is the kind of product (products.h, tiles.h), D the head
// dimension that it works with, Dp the same padded with zeros to a multiple of kPad.
//   rows     [n][Dp] numbers of P::E: f32, or bf16 as in the tensor
//   pairs    [n/G][Dp] elements: neighbouring rows side by side; with f32, the rows themselves
//   a panel  [n/R][D/G][R] of rows, [D/R][n/G][R] of columns; tiles have [n][D/G] and [D][n/G]
//   across   [D/G][w] elements: rows transposed, in the lanes of vectors
#pragma once
#include "products.h"

namespace fx::FX_TIER {

constexpr int64_t kPad = 2 * W > 32 ? 2 * W : 32;
constexpr int64_t kAhead = 8;  // rows to fetch ahead while packing

typedef uint32_t u4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

struct Dims {
  int64_t B, H, Lq, Lk, D, width, Dp;  // width: D of the tensors
  int64_t key_blocks, keys;            // keys a block, the last may have fewer
};

template <class P>
Dims dims(const fx_tensor* q, const fx_tensor* k, int64_t most_keys) {
  int64_t width = q->shape[3], Dp = round_up(width, kPad);
  Dims d = {q->shape[0], q->shape[2], q->shape[1], k->shape[1], P::kPadded ? Dp : width, width, Dp, 0, 0};
  int64_t blocks = (d.Lk + most_keys - 1) / most_keys;
  d.keys = round_up((d.Lk + blocks - 1) / blocks, P::R);
  d.key_blocks = (d.Lk + d.keys - 1) / d.keys;
  return d;
}

template <class V>
FX_INLINE V get(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

// dst[i][j] = src[j][i], 4 x 4 elements of 4 bytes.
template <class E>
FX_INLINE void transpose4(E* dst, int64_t dst_step, const E* src, int64_t src_step) {
  u4 r0 = get<u4>(src), r1 = get<u4>(src + src_step), r2 = get<u4>(src + 2 * src_step), r3 = get<u4>(src + 3 * src_step);
  u4 t0 = __builtin_shuffle(r0, r1, i4{0, 4, 1, 5}), t1 = __builtin_shuffle(r0, r1, i4{2, 6, 3, 7});
  u4 t2 = __builtin_shuffle(r2, r3, i4{0, 4, 1, 5}), t3 = __builtin_shuffle(r2, r3, i4{2, 6, 3, 7});
  u4 c[] = {__builtin_shuffle(t0, t2, i4{0, 1, 4, 5}), __builtin_shuffle(t0, t2, i4{2, 3, 6, 7}), __builtin_shuffle(t1, t3, i4{0, 1, 4, 5}),
            __builtin_shuffle(t1, t3, i4{2, 3, 6, 7})};
  for (int i = 0; i < 4; i++) memcpy(dst + i * dst_step, &c[i], sizeof(u4));
}

// dst[c][r] = src[r][c] for r < rows, c < cols, both multiples of 4.
template <class E>
void transpose(E* dst, int64_t dst_step, const E* src, int64_t src_step, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += 4)
    for (int64_t r = 0; r < rows; r += 4) transpose4(dst + c * dst_step + r, dst_step, src + r * src_step + c, src_step);
}

// Asks for `bytes` at p ahead of their use.
FX_INLINE void fetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

template <class T>
T* head_row(const fx_tensor* t, int64_t b, int64_t h, int64_t row) {
  return data<T>(t) + b * t->strides[0] + row * t->strides[1] + h * t->strides[2];
}

// How rows of q or of k are normed and rotated while they are packed; as it is, not at all.
struct RowNorm {
  const float* weights[2] = {};  // in f32, of the tokens before `split` and of the others
  float* sums[2] = {};           // gradients of the weights so far
  const float* pe = nullptr;
  int64_t split = 0;
  float eps = 0;

  const float* weight(int64_t row) const { return weights[row >= split]; }
  float* sum(int64_t row) const { return sums[row >= split]; }
  const float* angles(int64_t row, int64_t width) const { return pe ? pe + row * width : nullptr; }
  bool none() const { return !weights[0] && !weights[1] && !pe; }
};

// The same for both; space: 4 · Dp.
struct Norms {
  RowNorm q, k;
  template <class T>
  static Norms of(const fx_qk_norm* norm, const Dims& d, float* space) {
    Norms n;
    if (!norm) return n;
    for (int i = 0; i < 2; i++) {
      n.q.weights[i] = widen_weight<T>(space + i * d.Dp, &norm->query[i], d.width);
      n.k.weights[i] = widen_weight<T>(space + (2 + i) * d.Dp, &norm->key[i], d.width);
    }
    n.q.pe = n.k.pe = norm->pe.rank ? data<float>(&norm->pe) : nullptr;
    n.q.split = n.k.split = norm->split;
    n.q.eps = n.k.eps = norm->eps;
    return n;
  }
};

// The numbers that the rows of E hold.
inline float* numbers(float* rows) { return rows; }
inline bf16* numbers(pair* rows) { return reinterpret_cast<bf16*>(rows); }

// Rows of one head, normed, rotated and multiplied by factor, in f32, and rounded once where they are bf16. Rows up to `padded` and columns
// up to Dp are zeros.
template <class T, class E>
void read_rows(E* dst, const Dims& d, const fx_tensor* src, const RowNorm& norm, int64_t b, int64_t h, int64_t first, int64_t rows,
               int64_t padded, float factor) {
  auto* to = numbers(dst);
  const T* p = head_row<T>(src, b, h, first);
  bool moved = __is_same(E, pair) == __is_same(T, bf16) && norm.none() && factor == 1;
  for (int64_t r = 0; r < rows; r++, p += src->strides[1], to += d.Dp) {
    if (d.width < d.Dp) memset(to + d.width, 0, size_t(d.Dp - d.width) * sizeof *to);
    // The next head's row is the next in memory but the next of this head is not: the processor does not foresee it.
    fetch(p + kAhead * src->strides[1], d.width * int64_t(sizeof(T)));
    const float* weight = norm.weight(first + r);
    if (moved) memcpy(to, p, size_t(d.width) * sizeof *to);
    else
      norm_rope_row(to, p, weight, norm.angles(first + r, d.width), weight ? factor * rms_reciprocal(p, d.width, norm.eps) : factor,
                    d.width);
  }
  memset(to, 0, size_t((padded - rows) * d.Dp) * sizeof *to);
}

template <class T>
void write_rows(const fx_tensor* dst, const Dims& d, const float* src, int64_t b, int64_t h, int64_t first, int64_t rows, float factor) {
  T* p = head_row<T>(dst, b, h, first);
  for (int64_t r = 0; r < rows; r++, p += dst->strides[1], src += d.Dp) {
    fetch(p + kAhead * dst->strides[1], d.width * int64_t(sizeof(T)));
    for_lanes(d.width, [&](int64_t i, int64_t lanes) { store_some(p + i, load(src + i) * factor, lanes); });
  }
}

// The gradients of rows x before norm and rotation from those after, src · factor. Adds to norm.sums.
template <class T>
void write_gradients(const fx_tensor* dst, const Dims& d, const float* src, const fx_tensor* x, const RowNorm& norm, int64_t b, int64_t h,
                     int64_t first, int64_t rows, float factor) {
  if (norm.none()) return write_rows<T>(dst, d, src, b, h, first, rows, factor);
  for (int64_t r = first; r < first + rows; r++, src += d.Dp) {
    T* to = head_row<T>(dst, b, h, r);
    const T* from = head_row<T>(x, b, h, r);
    fetch(to + kAhead * dst->strides[1], d.width * int64_t(sizeof(T)));
    fetch(from + kAhead * x->strides[1], d.width * int64_t(sizeof(T)));
    const float* weight = norm.weight(r);
    norm_rope_row_backward(to, norm.sum(r), src, from, weight, norm.angles(r, d.width),
                           weight ? rms_reciprocal(from, d.width, norm.eps) : 1, factor, d.width);
  }
}

// Rows of bf16, each `row` elements long, to pairs of rows [n/2][columns]; columns a multiple of W.
FX_INLINE void interleave(pair* dst, int64_t dst_step, const pair* rows, int64_t row, int64_t n, int64_t columns) {
  for (int64_t r = 0; r < n; r += 2, dst += dst_step, rows += 2 * row)
    for (int64_t c = 0; c < columns; c += W) {
      vu low = __builtin_convertvector(get<vh>(rows + c / 2), vu), high = __builtin_convertvector(get<vh>(rows + row + c / 2), vu);
      vu both = low | high << 16;
      memcpy(dst + c, &both, sizeof both);
    }
}

// The pairs of n rows (a multiple of 2): made in `space`, or the rows themselves.
inline const float* make_pairs(float*, const Dims&, const float* rows, int64_t) { return rows; }
inline const pair* make_pairs(pair* space, const Dims& d, const pair* rows, int64_t n) {
  interleave(space, d.Dp, rows, d.Dp / 2, n, d.Dp);
  return space;
}

// Rows (n a multiple of R) to panels; pairs to panels of columns.
template <class P>
void row_panels(typename P::E* panels, const Dims& d, const typename P::E* rows, int64_t n) {
  int64_t size = d.D / P::G, row = d.Dp / P::G;
  for (int64_t k = 0; k < n; k += P::R) {
    if constexpr (P::kPadded) memcpy(panels + k * size, rows + k * row, size_t(P::R * size) * 4);
    else transpose(panels + k * size, P::R, rows + k * row, row, P::R, size);
  }
}
template <class P>
void column_panels(typename P::E* panels, const Dims& d, const typename P::E* pairs, int64_t n) {
  int64_t size = n / P::G;
  if constexpr (P::kPadded) {
    transpose(panels, size, pairs, d.Dp, size, d.D);
  } else {
    for (int64_t c = 0; c < d.D; c += P::R)
      for (int64_t k = 0; k < size; k++) memcpy(panels + c * size + k * P::R, pairs + k * d.Dp + c, P::R * 4);
  }
}

}  // namespace fx::FX_TIER
