// kernel.h: one tile of a product, by one thread: c = a b. Blocks of kTerms elements of the sum are packed, b's for the whole tile, a's for
// a few rows at a time, and multiplied by the micro-kernels of attention (products.h, tiles.h), which add to the tile in f32.
#pragma once
#include "../attention/tiles.h"
#include "../core/bf16.h"
#include "pack.h"

namespace fx::FX_TIER {

constexpr int64_t kTerms = 256;  // elements of a block of the sum: 8 rows of a stay in L1, b's block in L2
constexpr int64_t kGroup = 32;   // rows of a packed at a time

// The micro-kernel of a kind of product: c [R][columns] = a b, or += that.
template <class P>
struct Micro {
  typedef typename P::E E;
  static constexpr int R = P::R, kWidth = kVectors * W;
  static constexpr int64_t kUnit = 1;  // elements of a block are a multiple of it

  template <class T>
  static void pack(E* dst, int64_t n, const Operand<T>& a) {
    if (a.terms_adjoin()) pack_along(dst, kTerms, R, n, a);
    else pack_narrow<R>(dst, n, a);
  }

  template <int N>
  static FX_INLINE void run(float* c, int64_t c_step, bool first, int64_t n, const E* a, bool along, const E* b) {
    vf acc[R][N] = {};  // the block's sum on its own: many short sums lose less than a long one
    if (along) P::template tile<kTerms>(acc, n, a, 1, b, kWidth);
    else P::template tile<1>(acc, n, a, R, b, kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) {
        float* to = c + i * c_step + j * W;
        store(to, first ? acc[i][j] : load(to) + acc[i][j]);
      }
  }
  static void multiply(float* c, int64_t c_step, int64_t columns, bool first, int64_t n, const E* a, bool along, const E* b) {
    if (columns > 2 * W) run<kVectors>(c, c_step, first, n, a, along, b);
    else if (columns > W) run<2>(c, c_step, first, n, a, along, b);
    else run<1>(c, c_step, first, n, a, along, b);
  }
};

#if defined(__AVX512BF16__)
template <class Unit>
struct Micro<Tiles<Unit>> {
  typedef pair E;
  static constexpr int R = 32, kWidth = 32;
  static constexpr int64_t kUnit = 16;

  static void pack(E* dst, int64_t n, const Operand<bf16>& a) { pack_along(dst, kTerms, R, n, a); }
  static void multiply(float* c, int64_t c_step, int64_t, bool first, int64_t n, const E* a, bool, const E* b) {
    if (first) {
      Unit::template zero<0>();
      Unit::template zero<1>();
      Unit::template zero<2>();
      Unit::template zero<3>();
    } else {
      Tiles<Unit>::load_c(c, c_step);
    }
    Tiles<Unit>::multiply(n, a, kTerms, b, kWidth);
    Tiles<Unit>::store_c(c, c_step);
  }
};
#endif

// Asks for the lines of an operand that come next, some at each call, in the order of memory.
class Ahead {
 public:
  template <class T>
  Ahead(const Operand<T>& o, int64_t calls) {
    bool along = o.terms_adjoin();
    at_ = reinterpret_cast<const char*>(o.p), step_ = (along ? o.line : o.term) * int64_t(sizeof(T));
    bytes_ = (along ? o.terms : o.lines) * int64_t(sizeof(T));
    left_ = bytes_ > 0 ? (along ? o.lines : o.terms) : 0;
    each_ = (left_ + calls - 1) / calls;
  }
  FX_INLINE void fetch() {
    for (int64_t i = 0; i < each_ && left_ > 0; i++, left_--, at_ += step_)
      for (int64_t b = 0; b < bytes_; b += 64) __builtin_prefetch(at_ + b);
  }

 private:
  const char* at_;
  int64_t step_, bytes_, left_, each_;
};

// Bytes of work memory for a tile of so many columns.
inline int64_t gemm_work_bytes(int64_t columns) { return (kGroup + round_up(columns, kVectors * W > 32 ? kVectors * W : 32)) * kTerms * 4; }

inline void clear(float* c, int64_t c_step, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) memset(c + i * c_step, 0, size_t(columns) * 4);
}

// c [a.lines][c_step] = a b; c has room for a.lines rounded up to kGroup rows and for b.lines rounded up to the micro-kernel's width.
template <class P, class T>
void gemm(const Operand<T>& a, const Operand<T>& b, float* c, int64_t c_step, char* work) {
  typedef Micro<P> M;
  typedef typename P::E E;
  constexpr int64_t kNumbers = kTerms * P::G;
  [[maybe_unused]] typename P::Scope scope;
  if (a.terms == 0) return clear(c, c_step, a.lines, b.lines);
  E *packed_a = reinterpret_cast<E*>(work), *packed_b = packed_a + kGroup * kTerms;
  int64_t panels = (b.lines + M::kWidth - 1) / M::kWidth;
  for (int64_t k = 0; k < a.terms; k += kNumbers) {
    Operand<T> b_block = b.part(0, b.lines, k, kNumbers);
    int64_t n = round_up((b_block.terms + P::G - 1) / P::G, M::kUnit);
    for (int64_t j = 0; j < panels; j++)
      pack_across(packed_b + j * M::kWidth * kTerms, M::kWidth, n, b_block.part(j * M::kWidth, M::kWidth, 0, kNumbers));
    Ahead next_b(b.part(0, b.lines, k + kNumbers, kNumbers), (a.lines + kGroup - 1) / kGroup);
    for (int64_t i = 0; i < a.lines; i += kGroup) {
      Operand<T> group = a.part(i, kGroup, k, kNumbers);
      int64_t rows = round_up(group.lines, M::R);
      for (int64_t r = 0; r < rows; r += M::R) M::pack(packed_a + r * kTerms, n, group.part(r, M::R, 0, kNumbers));
      Ahead next_a(a.part(i + kGroup, kGroup, k, kNumbers), panels * kGroup / M::R);
      for (int64_t r = 0; r < rows; r += M::R)
        for (int64_t j = 0; j < panels; j++) {
          next_a.fetch();
          M::multiply(c + (i + r) * c_step + j * M::kWidth, c_step, b.lines - j * M::kWidth, k == 0, n, packed_a + r * kTerms,
                      a.terms_adjoin(), packed_b + j * M::kWidth * kTerms);
        }
      next_b.fetch();
    }
  }
}

// R rows of c at c, times columns of b that lie ahead of them in memory are asked for.
template <int R, class T>
void few_rows(const Operand<T>& a, const Operand<T>& b, float* c, int64_t c_step) {
  constexpr int N = 4;
  for (int64_t j = 0; j < b.lines; j += N) {
    const T* pb[N];
    for (int64_t s = 0; s < N; s++) pb[s] = b.p + (j + s < b.lines ? j + s : b.lines - 1) * b.line;  // past the end: the last one again
    vf acc[R][N] = {};
    for_lanes(a.terms, [&](int64_t k, int64_t lanes) {
      vf y[N];
#pragma GCC unroll 4
      for (int s = 0; s < N; s++) y[s] = load_some(pb[s] + k, lanes), __builtin_prefetch(pb[s] + N * b.line + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        vf x = load_some(a.p + r * a.line + k, lanes);
#pragma GCC unroll 4
        for (int s = 0; s < N; s++) acc[r][s] += x * y[s];
      }
    });
    for (int r = 0; r < R; r++)
      for (int64_t s = 0; s < N && j + s < b.lines; s++) c[r * c_step + j + s] = sum(acc[r][s]);
  }
}

// The same as gemm() for a few rows, with terms that adjoin in both: bound by reading b, so nothing is packed.
template <class T>
void gemm_few(const Operand<T>& a, const Operand<T>& b, float* c, int64_t c_step) {
  for (int64_t i = 0; i < a.lines; i += 4) {
    Operand<T> rows = a.part(i, 4, 0, a.terms);
    if (rows.lines == 1) few_rows<1>(rows, b, c + i * c_step, c_step);
    else if (rows.lines == 2) few_rows<2>(rows, b, c + i * c_step, c_step);
    else if (rows.lines == 3) few_rows<3>(rows, b, c + i * c_step, c_step);
    else few_rows<4>(rows, b, c + i * c_step, c_step);
  }
}

constexpr int64_t kFewRows = 8;

template <class T>
void multiply(const Operand<T>& a, const Operand<T>& b, float* c, int64_t c_step, char* work) {
  if (a.lines <= kFewRows && a.terms_adjoin() && b.terms_adjoin()) return gemm_few(a, b, c, c_step);
#if defined(__AVX512BF16__)
  if constexpr (__is_same(T, bf16)) {
    switch (detect_bf16()) {
      case Bf16::widen: break;
      case Bf16::dot: return gemm<Registers<pair>>(a, b, c, c_step, work);
      case Bf16::tiles: return gemm<Tiles<TileUnit>>(a, b, c, c_step, work);
      case Bf16::stand_in: return gemm<Tiles<TileStandIn>>(a, b, c, c_step, work);
    }
  }
#endif
  gemm<Registers<float>>(a, b, c, c_step, work);
}

}  // namespace fx::FX_TIER
