// attention.cpp: o = softmax(scale · q k^T) v per head, and its gradients. Never the whole Lq x Lk matrix: 48 queries meet 64 keys at a
// time and the softmax is kept up to date (Milakov & Gimelshein 2018; FlashAttention-2, arXiv:2307.08691).
//
// Everything runs in f32, bf16 tensors are widened while packing. Queries lie in the lanes of a vector, keys and head dimensions go over
// registers, so every product of the five is the same outer product of a broadcast scalar with vectors (fma_tile) and the statistics of the
// softmax, one per query, need no sums across lanes. Packed forms, w = N·W queries of a block:
//   rows    [n][Dp]    as in the tensor, D padded with zeros to Dp, a multiple of kPad
//   q_t     [D][w]     queries transposed
//   panels  [n/R][D][R]  keys transposed, R at a time
//   s       [keys][w]  scores, then probabilities, of one block
#include <math.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/op.h"

namespace fx::FX_TIER {
namespace {

// W lanes a register; R x N registers of accumulators in a product with up to N vectors of queries, R x M in one with vectors of head
// dimensions.
#if defined(__AVX512F__)
constexpr int W = 16, R = 8, N_MAX = 3, M = 2;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, R = 4, N_MAX = 3, M = 2;  // 12 of 16
#else
constexpr int W = 4, R = 4, N_MAX = 2, M = 2;  // 8 of 16, multiply and add apart
#endif
constexpr int64_t kKeys = 128;  // keys of a block: a multiple of R
constexpr int64_t kAhead = 8;   // rows to prefetch while packing
constexpr int64_t kJobs = 16;   // backward splits the keys of few heads so that there are about this many jobs
constexpr int64_t kPad = M * W > kLanes ? M* W : kLanes;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

typedef float vr __attribute__((vector_size(4 * W)));
typedef int32_t vri __attribute__((vector_size(4 * W)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

struct Dims {
  int64_t B, H, Lq, Lk, D, Dp;
  int64_t key_blocks, keys;  // keys a block, the last may have fewer
};

Dims dims(const fx_tensor* q, const fx_tensor* k) {
  Dims d = {q->shape[0], q->shape[2], q->shape[1], k->shape[1], q->shape[3], round_up(q->shape[3], kPad), 0, 0};
  int64_t blocks = (d.Lk + kKeys - 1) / kKeys;
  d.keys = round_up((d.Lk + blocks - 1) / blocks, R);
  d.key_blocks = (d.Lk + d.keys - 1) / d.keys;
  return d;
}

template <class V>
FX_INLINE V get(const float* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FX_INLINE void set(float* p, V v) {
  memcpy(p, &v, sizeof v);
}

// 2^t for t <= 127 within 2 ulp; 0 for t = -inf, NaN stays NaN. Minimax polynomials, relative error 7.5e-8.
FX_INLINE vr exp2(vr t) {
#if defined(__AVX512F__)
  vr r = (vr)_mm512_maskz_reduce_ps(0xffff, (__m512)t, _MM_FROUND_FLOOR);  // t - floor(t)
  vr p = r * 0.00187757667f + 0.00898934009f;
  p = p * r + 0.0558263181f;
  p = p * r + 0.240153617f;
  p = p * r + 0.693153073f;
  p = p * r + 0.999999925f;
  return (vr)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)t);  // p · 2^floor(t)
#else
  t = -127.0f > t ? vr{} - 127.0f : t;
  vr u = t + 12583039.0f;  // 1.5·2^23 + 127: rounds, and leaves the biased exponent in the low bits
  vr r = t - (u - 12583039.0f);
  vr p = r * 0.0013276472f + 0.00967554133f;
  p = p * r + 0.0555071327f;
  p = p * r + 0.240221197f;
  p = p * r + 0.693146967f;
  p = p * r + 1.00000007f;
  return p * (vr)((vri)u << 23);
#endif
}

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

// acc[i][j] += sum over t < n of a[t·a_step + i·A] · b[t·b_step + j·W ..].
template <int A, int Rows, int Cols>
FX_INLINE void fma_tile(vr (&acc)[Rows][Cols], int64_t n, const float* a, int64_t a_step, const float* b, int64_t b_step) {
  for (int64_t t = 0; t < n; t++, a += a_step, b += b_step) {
    vr v[Cols];
#pragma GCC unroll 8
    for (int j = 0; j < Cols; j++) v[j] = get<vr>(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++) {
      float s = a[i * A];
#pragma GCC unroll 8
      for (int j = 0; j < Cols; j++) acc[i][j] += s * v[j];
    }
  }
}

// ---- packing ----------------------------------------------------------------------------------------------------------------

// dst[i][j] = src[j][i], 4 x 4.
FX_INLINE void transpose4(float* dst, int64_t dst_step, const float* src, int64_t src_step) {
  v4 r0 = get<v4>(src), r1 = get<v4>(src + src_step), r2 = get<v4>(src + 2 * src_step), r3 = get<v4>(src + 3 * src_step);
  v4 t0 = __builtin_shuffle(r0, r1, v4i{0, 4, 1, 5}), t1 = __builtin_shuffle(r0, r1, v4i{2, 6, 3, 7});
  v4 t2 = __builtin_shuffle(r2, r3, v4i{0, 4, 1, 5}), t3 = __builtin_shuffle(r2, r3, v4i{2, 6, 3, 7});
  set(dst, __builtin_shuffle(t0, t2, v4i{0, 1, 4, 5}));
  set(dst + dst_step, __builtin_shuffle(t0, t2, v4i{2, 3, 6, 7}));
  set(dst + 2 * dst_step, __builtin_shuffle(t1, t3, v4i{0, 1, 4, 5}));
  set(dst + 3 * dst_step, __builtin_shuffle(t1, t3, v4i{2, 3, 6, 7}));
}

// dst[c][r] = src[r][c] for r < rows, c < cols, both multiples of 4.
void transpose(float* dst, int64_t dst_step, const float* src, int64_t src_step, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += 4)
    for (int64_t r = 0; r < rows; r += 4) transpose4(dst + c * dst_step + r, dst_step, src + r * src_step + c, src_step);
}

// Tensor rows of one head to f32 rows times factor; rows up to `padded` and columns up to Dp are zeros.
template <class T>
void read_rows(float* dst, const Dims& d, const fx_tensor* src, int64_t b, int64_t h, int64_t first, int64_t rows, int64_t padded,
               float factor) {
  const T* p = data<T>(src) + b * src->strides[0] + first * src->strides[1] + h * src->strides[2];
  for (int64_t r = 0; r < rows; r++, p += src->strides[1], dst += d.Dp) {
    if (d.D < d.Dp) memset(dst, 0, size_t(d.Dp) * 4);
    // The next head's row is the next in memory but the next of this head is not: the processor does not foresee it.
    for (int64_t i = 0; i < d.D; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + kAhead * src->strides[1] + i);
    for_lanes(d.D, [&](int64_t i, int64_t lanes) { store(dst + i, load_some(p + i, lanes) * factor); });
  }
  memset(dst, 0, size_t((padded - rows) * d.Dp) * 4);
}

template <class T>
void write_rows(const fx_tensor* dst, const Dims& d, const float* src, int64_t b, int64_t h, int64_t first, int64_t rows, float factor) {
  T* p = data<T>(dst) + b * dst->strides[0] + first * dst->strides[1] + h * dst->strides[2];
  for (int64_t r = 0; r < rows; r++, p += dst->strides[1], src += d.Dp)
    for_lanes(d.D, [&](int64_t i, int64_t lanes) { store_some(p + i, load(src + i) * factor, lanes); });
}

// Rows of keys (a multiple of R) to panels.
void make_panels(float* panels, const Dims& d, const float* rows, int64_t n) {
  for (int64_t k = 0; k < n; k += R) transpose(panels + k * d.D, R, rows + k * d.Dp, d.Dp, R, d.D);
}

// Calls f(Count<n>{}), n in [1, N_MAX]: the size of a block of queries as a compile-time constant.
template <int V>
struct Count {
  static constexpr int value = V;
};
template <class F>
FX_INLINE void with_count(int64_t n, const F& f) {
  if (n == 1) f(Count<1>{});
  if (n == 2) f(Count<2>{});
  if constexpr (N_MAX > 2)
    if (n == 3) f(Count<3>{});
}

// The queries cut into blocks: block i has size(i) vectors and begins at vector start(i).
struct Blocks {
  int64_t count, base, extra;
  explicit Blocks(int64_t L) {
    int64_t vectors = (L + W - 1) / W;
    count = (vectors + N_MAX - 1) / N_MAX;
    base = vectors / count;
    extra = vectors % count;
  }
  int64_t size(int64_t i) const { return base + (i < extra); }
  int64_t start(int64_t i) const { return i * base + (i < extra ? i : extra); }
};

// ---- forward ----------------------------------------------------------------------------------------------------------------

// One thread's scratch of the forward pass.
struct Forward {
  float *k, *v, *q_t, *o_t, *s, *rows;
  static int64_t floats(const Dims& d) { return Forward().place(nullptr, d); }
  int64_t place(float* p, const Dims& d) {
    int64_t w = N_MAX * W, keys = d.key_blocks * d.keys, used = 0;
    auto take = [&](int64_t n) {
      float* q = p ? p + used : nullptr;
      used += round_up(n, kLanes);
      return q;
    };
    k = take(keys * d.D);
    v = take(keys * d.Dp);
    q_t = take(w * d.D);
    o_t = take(w * d.D);
    s = take(kKeys * w);
    rows = take((w > kKeys ? w : kKeys) * d.Dp);
    return used;
  }
};

// Scores of R keys, of which the first `valid` exist (the others become -inf), and the maximum per query.
template <int N>
FX_INLINE void scores(float* s, vr (&top)[N], const float* panel, const float* q_t, int64_t D, int64_t valid) {
  constexpr int w = N * W;
  vr acc[R][N] = {};
  fma_tile<1>(acc, D, panel, R, q_t, w);
  if (valid < R) {
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++)
        if (i >= valid) acc[i][j] = vr{} - __builtin_inff();
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
      set(s + i * w + j * W, acc[i][j]);
      top[j] = acc[i][j] > top[j] ? acc[i][j] : top[j];
    }
}

// o_t = o_t · alpha + v^T p for all head dimensions.
template <int N>
FX_INLINE void weigh(float* o_t, const vr (&alpha)[N], const float* p, const float* v, const Dims& d, int64_t keys) {
  constexpr int w = N * W;
  for (int64_t c = 0; c < d.D; c += R) {
    float* o = o_t + c * w;
    vr acc[R][N];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) acc[i][j] = get<vr>(o + i * w + j * W) * alpha[j];
    fma_tile<1>(acc, keys, v + c, d.Dp, p, w);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) set(o + i * w + j * W, acc[i][j]);
  }
}

// One block of queries against all keys: f.o_t becomes the output, transposed; lse2 [N·W] the log2-sum-exp2.
template <int N>
void forward_block(const Forward& f, const Dims& d, float* lse2) {
  constexpr int w = N * W;
  vr m[N], l[N] = {};
  for (int j = 0; j < N; j++) m[j] = vr{} - __builtin_inff();
  memset(f.o_t, 0, size_t(d.D * w) * 4);
  for (int64_t first = 0; first < d.Lk; first += d.keys) {
    int64_t keys = d.Lk - first < d.keys ? d.Lk - first : d.keys;
    vr top[N], alpha[N];
    for (int j = 0; j < N; j++) top[j] = m[j];
    for (int64_t k = 0; k < keys; k += R) scores<N>(f.s + k * w, top, f.k + (first + k) * d.D, f.q_t, d.D, keys - k);
    for (int j = 0; j < N; j++) {
      alpha[j] = exp2(m[j] - top[j]);
      m[j] = top[j];
      l[j] *= alpha[j];
    }
    for (int64_t k = 0; k < keys; k++)
      for (int j = 0; j < N; j++) {
        vr p = exp2(get<vr>(f.s + k * w + j * W) - m[j]);
        l[j] += p;
        set(f.s + k * w + j * W, p);
      }
    weigh<N>(f.o_t, alpha, f.s, f.v + first * d.Dp, d, keys);
  }
  vr inverse[N];
  for (int j = 0; j < N; j++) inverse[j] = 1.0f / l[j];
  for (int64_t c = 0; c < d.D; c++)
    for (int j = 0; j < N; j++) set(f.o_t + c * w + j * W, get<vr>(f.o_t + c * w + j * W) * inverse[j]);
  for (int j = 0; j < N; j++) {
    set(f.s + j * W, l[j]);
    set(lse2 + j * W, m[j]);
  }
  for (int i = 0; i < w; i++) lse2[i] += log2f(f.s[i]);
}

// The blocks [from, to) of queries of head (b, h).
template <class T>
void forward_head(const Forward& f, const Dims& d, const Blocks& blocks, int64_t from, int64_t to, int64_t b, int64_t h, const fx_tensor* o,
                  const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, float scale) {
  for (int64_t first = 0; first < d.Lk; first += d.keys) {
    int64_t keys = d.Lk - first < d.keys ? d.Lk - first : d.keys, padded = round_up(keys, R);
    read_rows<T>(f.rows, d, k, b, h, first, keys, padded, 1);
    make_panels(f.k + first * d.D, d, f.rows, padded);
    read_rows<T>(f.v + first * d.Dp, d, v, b, h, first, keys, keys, 1);
  }
  for (int64_t i = from; i < to; i++) {
    int64_t first = blocks.start(i) * W, w = blocks.size(i) * W, n = d.Lq - first < w ? d.Lq - first : w;
    float lse2[N_MAX * W];
    read_rows<T>(f.rows, d, q, b, h, first, n, w, scale * kLog2E);
    transpose(f.q_t, w, f.rows, d.Dp, w, d.D);
    with_count(blocks.size(i), [&](auto count) { forward_block<decltype(count)::value>(f, d, lse2); });
    transpose(f.rows, d.Dp, f.o_t, w, d.D, w);
    write_rows<T>(o, d, f.rows, b, h, first, n, 1);
    if (!lse) continue;
    float* out = data<float>(lse) + (b * d.H + h) * d.Lq + first;
    for (int64_t r = 0; r < n; r++) out[r] = lse2[r] * kLn2;
  }
}

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v,
                  float scale) {
  Dims d = dims(q, k);
  Blocks blocks(d.Lq);
  // Few heads are split over their queries; each part packs the keys again, so it has at least 4 blocks.
  int64_t heads = d.B * d.H, parts = (4 * ctx->threads + heads - 1) / heads;
  if (parts > (blocks.count + 3) / 4) parts = (blocks.count + 3) / 4;
  int64_t floats = Forward::floats(d);
  float* scratch = static_cast<float*>(workspace(ctx, ctx->threads * floats * 4));
  parallel_for_dynamic(ctx, heads * parts, [&](int64_t job) {
    FlushDenormals flush;
    int64_t head = job / parts, part = job % parts;
    Forward f;
    f.place(scratch + thread_index() * floats, d);
    forward_head<T>(f, d, blocks, part * blocks.count / parts, (part + 1) * blocks.count / parts, head / d.H, head % d.H, o, lse, q, k, v,
                    scale);
  });
  return FX_STATUS_OK;
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

// One thread's scratch of the backward pass: all queries of a head and one block of keys. The transposed forms are laid out block by block,
// a block that begins at query i at offset i·D.
struct Backward {
  float *q, *q_t, *g, *g_t, *dq_t;           // g: gradient of o
  float *lse2, *delta;                       // delta: rowsum(g · o)
  float *k, *k_panels, *v_panels, *dk, *dv;  // of the block of keys
  float *p, *ds, *rows;                      // of the block of keys and queries
  static int64_t floats(const Dims& d) { return Backward().place(nullptr, d); }
  int64_t place(float* base, const Dims& d) {
    int64_t w = N_MAX * W, L = round_up(d.Lq, W), used = 0;
    auto take = [&](int64_t n) {
      float* q = base ? base + used : nullptr;
      used += round_up(n, kLanes);
      return q;
    };
    q = take(L * d.Dp);
    q_t = take(L * d.D);
    g = take(L * d.Dp);
    g_t = take(L * d.D);
    dq_t = take(L * d.D);
    lse2 = take(L);
    delta = take(L);
    k = take(kKeys * d.Dp);
    k_panels = take(kKeys * d.D);
    v_panels = take(kKeys * d.D);
    dk = take(kKeys * d.Dp);
    dv = take(kKeys * d.Dp);
    p = take(kKeys * w);
    ds = take(kKeys * w);
    rows = take((w > kKeys ? w : kKeys) * d.Dp);
    return used;
  }
};

// Probabilities p and gradients ds of the scores of R keys and one block of queries: p = 2^(s - lse2), ds = p · (v g^T - delta).
template <int N>
FX_INLINE void gradients(float* p, float* ds, const float* k_panel, const float* v_panel, const float* q_t, const float* g_t,
                         const float* lse2, const float* delta, int64_t D) {
  constexpr int w = N * W;
  {
    vr acc[R][N] = {};
    fma_tile<1>(acc, D, k_panel, R, q_t, w);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) set(p + i * w + j * W, exp2(acc[i][j] - get<vr>(lse2 + j * W)));
  }
  vr acc[R][N] = {};
  fma_tile<1>(acc, D, v_panel, R, g_t, w);
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) set(ds + i * w + j * W, get<vr>(p + i * w + j * W) * (acc[i][j] - get<vr>(delta + j * W)));
}

// out[keys][Dp] += x^T rows: x [keys][w] of one block of queries, rows [w][Dp].
template <int N>
FX_INLINE void gather(float* out, const float* x, const float* rows, const Dims& d, int64_t keys) {
  constexpr int w = N * W;
  for (int64_t k = 0; k < keys; k += R)
    for (int64_t c = 0; c < d.Dp; c += M * W) {
      float* to = out + k * d.Dp + c;
      vr acc[R][M];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) acc[i][j] = get<vr>(to + i * d.Dp + j * W);
      fma_tile<w>(acc, w, x + k * w, 1, rows + c, d.Dp);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) set(to + i * d.Dp + j * W, acc[i][j]);
    }
}

// The gradients of one block of keys (valid of them exist) and one block of queries that begins at `first`: adds to dk, dv and dq_t.
template <int N>
void backward_block(const Backward& f, const Dims& d, int64_t first, int64_t valid) {
  constexpr int w = N * W;
  int64_t padded = round_up(valid, R);
  for (int64_t k = 0; k < padded; k += R)
    gradients<N>(f.p + k * w, f.ds + k * w, f.k_panels + k * d.D, f.v_panels + k * d.D, f.q_t + first * d.D, f.g_t + first * d.D,
                 f.lse2 + first, f.delta + first, d.D);
  gather<N>(f.dv, f.p, f.g + first * d.Dp, d, padded);
  gather<N>(f.dk, f.ds, f.q + first * d.Dp, d, padded);
  vr one[N];
  for (int j = 0; j < N; j++) one[j] = vr{} + 1.0f;
  weigh<N>(f.dq_t + first * d.D, one, f.ds, f.k, d, valid);
}

// The queries' side of head (b, h): everything in Backward's first two lines, dq_t zero. Queries beyond Lq are zeros and add nothing.
template <class T>
void backward_queries(const Backward& f, const Dims& d, const Blocks& blocks, int64_t b, int64_t h, const fx_tensor* q, const fx_tensor* g,
                      const fx_tensor* o, const fx_tensor* lse, float scale) {
  int64_t L = round_up(d.Lq, W);
  read_rows<T>(f.q, d, q, b, h, 0, d.Lq, L, scale * kLog2E);
  read_rows<T>(f.g, d, g, b, h, 0, d.Lq, L, 1);
  for (int64_t i = 0; i < blocks.count; i++) {
    int64_t first = blocks.start(i) * W, w = blocks.size(i) * W;
    transpose(f.q_t + first * d.D, w, f.q + first * d.Dp, d.Dp, w, d.D);
    transpose(f.g_t + first * d.D, w, f.g + first * d.Dp, d.Dp, w, d.D);
  }
  const float* statistics = data<float>(lse) + (b * d.H + h) * d.Lq;
  const T* out = data<T>(o) + b * o->strides[0] + h * o->strides[2];
  for (int64_t l = 0; l < L; l++) {
    vf dot{};
    if (l < d.Lq)
      for_lanes(d.D, [&](int64_t i, int64_t lanes) { dot += load(f.g + l * d.Dp + i) * load_some(out + l * o->strides[1] + i, lanes); });
    f.delta[l] = sum(dot);
    f.lse2[l] = l < d.Lq ? statistics[l] * kLog2E : 0;
  }
  memset(f.dq_t, 0, size_t(L * d.D) * 4);
}

// All queries against the keys [from, to) of head (b, h): writes their dk and dv, adds to f.dq_t.
template <class T>
void backward_keys(const Backward& f, const Dims& d, const Blocks& blocks, int64_t from, int64_t to, int64_t b, int64_t h,
                   const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* k, const fx_tensor* v) {
  for (int64_t first = from; first < to; first += d.keys) {
    int64_t keys = to - first < d.keys ? to - first : d.keys, padded = round_up(keys, R);
    read_rows<T>(f.rows, d, v, b, h, first, keys, padded, 1);
    make_panels(f.v_panels, d, f.rows, padded);
    read_rows<T>(f.k, d, k, b, h, first, keys, padded, 1);
    make_panels(f.k_panels, d, f.k, padded);
    memset(f.dk, 0, size_t(padded * d.Dp) * 4);
    memset(f.dv, 0, size_t(padded * d.Dp) * 4);
    for (int64_t i = 0; i < blocks.count; i++)
      with_count(blocks.size(i), [&](auto count) { backward_block<decltype(count)::value>(f, d, blocks.start(i) * W, keys); });
    write_rows<T>(dk, d, f.dk, b, h, first, keys, kLn2);  // f.q carries scale / ln 2
    write_rows<T>(dv, d, f.dv, b, h, first, keys, 1);
  }
}

// dq of one block of queries from the sums of `parts` jobs, each at dq_t + part·stride. The first is overwritten by the total.
template <class T>
void write_dq(const fx_tensor* dq, const Dims& d, const Blocks& blocks, int64_t i, int64_t b, int64_t h, float* dq_t, int64_t parts,
              int64_t stride, float* rows, float scale) {
  int64_t first = blocks.start(i) * W, w = blocks.size(i) * W, n = d.Lq - first < w ? d.Lq - first : w;
  float* total = dq_t + first * d.D;
  for (int64_t part = 1; part < parts; part++)
    for (int64_t c = 0; c < w * d.D; c += kLanes) store(total + c, load(total + c) + load(total + part * stride + c));
  transpose(rows, d.Dp, total, w, d.D, w);
  write_rows<T>(dq, d, rows, b, h, first, n, scale);
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o, const fx_tensor* q,
                   const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse, float scale) {
  Dims d = dims(q, k);
  Blocks blocks(d.Lq);
  int64_t heads = d.B * d.H, parts = (kJobs + heads - 1) / heads;
  if (parts > d.key_blocks) parts = d.key_blocks;
  int64_t floats = Backward::floats(d), size = round_up(d.Lq, W) * d.D;
  // With several parts a head their dq_t live beside the scratch, one a job, and are added in a fixed order.
  float* scratch = static_cast<float*>(workspace(ctx, (ctx->threads * floats + (parts > 1 ? heads * parts * size : 0)) * 4));
  float* partial = scratch + ctx->threads * floats;
  parallel_for_dynamic(ctx, heads * parts, [&](int64_t job) {
    FlushDenormals flush;
    int64_t head = job / parts, part = job % parts, b = head / d.H, h = head % d.H;
    Backward f;
    f.place(scratch + thread_index() * floats, d);
    if (parts > 1) f.dq_t = partial + job * size;
    backward_queries<T>(f, d, blocks, b, h, q, d_o, o, lse, scale);
    int64_t from = part * d.key_blocks / parts * d.keys, to = (part + 1) * d.key_blocks / parts * d.keys;
    backward_keys<T>(f, d, blocks, from, to < d.Lk ? to : d.Lk, b, h, dk, dv, k, v);
    if (parts > 1) return;
    for (int64_t i = 0; i < blocks.count; i++) write_dq<T>(dq, d, blocks, i, b, h, f.dq_t, 1, 0, f.rows, scale);
  });
  if (parts == 1) return FX_STATUS_OK;
  parallel_for(ctx, heads * blocks.count, [&](int64_t job) {
    int64_t head = job / blocks.count;
    Backward f;
    f.place(scratch + thread_index() * floats, d);
    write_dq<T>(dq, d, blocks, job % blocks.count, head / d.H, head % d.H, partial + head * parts * size, parts, size, f.rows, scale);
  });
  return FX_STATUS_OK;
}

fx_status attention_forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k,
                            const fx_tensor* v, float scale) {
  return dispatch(q->dtype, [&](auto t) { return forward<decltype(t)>(ctx, o, lse, q, k, v, scale); });
}

fx_status attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                             const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                             float scale) {
  return dispatch(q->dtype, [&](auto t) { return backward<decltype(t)>(ctx, dq, dk, dv, d_o, q, k, v, o, lse, scale); });
}

}  // namespace

void add_attention(fx_ops* ops) {
  ops->attention_forward = attention_forward;
  ops->attention_backward = attention_backward;
}

}  // namespace fx::FX_TIER
