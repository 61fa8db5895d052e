// forward.h: o = softmax(scale · q k^T) v of one head, block of queries by block of queries.
#pragma once
#include "softmax.h"

namespace fx::FX_TIER {

// The keys and values of a head as the products read them.
template <class P>
struct Packed {
  typename P::E *k, *v;  // k: panels of rows; v: panels of columns, one block of keys after another
  static int64_t floats(const Dims& d) { return Packed().place(nullptr, d); }
  int64_t place(float* base, const Dims& d) {
    Scratch scratch(base);
    scratch.take(k, d.key_blocks * d.keys * d.D / P::G);
    scratch.take(v, d.key_blocks * d.keys * d.D / P::G);
    return scratch.used();
  }
};

// One thread's scratch: one block of queries, or of keys that are being packed.
template <class P>
struct Forward {
  typedef typename P::E E;
  static constexpr int64_t kKeys = 128 * P::G;  // keys of a block: what their products read stays in L1 and L2
  static constexpr int64_t w_max = P::kUnit * P::kUnits;
  E *q_t, *p, *rows, *pairs;  // p: probabilities of a block; in f32 they take the place of their scores
  float *o_t, *s, *out;       // s: scores; out: rows of o
  static int64_t floats(const Dims& d) { return Forward().place(nullptr, d); }
  int64_t place(float* base, const Dims& d) {
    Scratch scratch(base);
    int64_t most = w_max > d.keys ? w_max : d.keys;
    scratch.take(q_t, w_max * d.D / P::G);
    scratch.take(o_t, w_max * d.D);
    scratch.take(s, d.keys * w_max);
    if constexpr (P::G > 1) scratch.take(p, d.keys * w_max / P::G);
    else p = s;
    scratch.take(rows, most * d.Dp / P::G);
    scratch.take(pairs, most * d.Dp / P::G);
    scratch.take(out, w_max * d.Dp);
    return scratch.used();
  }
};

// Scores s [R][N·W] of a panel of keys, of which `valid` exist (the others become -inf), and the maximum per query. c: factor of the
// scores, which f32 queries carry already. A function of its own: inlined, its loop keeps a pointer in memory.
template <class P, int N>
__attribute__((noinline)) void scores(float* s, vf (&top)[N], const typename P::E* panel, const typename P::E* q_t, const Dims& d,
                                      int64_t valid, float c) {
  vf high[N];  // apart from top, which is memory
  for (int j = 0; j < N; j++) high[j] = top[j];
  auto finish = [&](int i, int j, vf x) FX_LAMBDA {
    if constexpr (P::G > 1) x *= c;
    store(s + i * N * W + j * W, x);
    high[j] = x > high[j] ? x : high[j];
  };
  auto finish_last = [&](int i, int j, vf x) FX_LAMBDA { finish(i, j, i < valid ? x : vf{} - __builtin_inff()); };
  if (valid >= P::R) P::template product<N>(d.D / P::G, panel, q_t, N * W, finish);
  else P::template product<N>(d.D / P::G, panel, q_t, N * W, finish_last);
  for (int j = 0; j < N; j++) top[j] = high[j];
}

// One block of queries against all keys: f.o_t becomes the output, transposed; lse2 [N·W] the log2-sum-exp2.
template <class P, int N>
void forward_block(const Forward<P>& f, const Packed<P>& kv, const Dims& d, float* lse2, float c) {
  constexpr int w = N * W;
  vf m[N], l[N] = {};
  for (int j = 0; j < N; j++) m[j] = vf{} - __builtin_inff();
  memset(f.o_t, 0, size_t(d.D * w) * 4);
  for (int64_t first = 0; first < d.Lk; first += d.keys) {
    int64_t keys = d.Lk - first < d.keys ? d.Lk - first : d.keys, padded = round_up(keys, P::R);
    vf top[N], alpha[N];
    for (int j = 0; j < N; j++) top[j] = m[j];
    for (int64_t k = 0; k < keys; k += P::R) scores<P, N>(f.s + k * w, top, kv.k + (first + k) * (d.D / P::G), f.q_t, d, keys - k, c);
    for (int j = 0; j < N; j++) {
      alpha[j] = exp2(m[j] - top[j]);
      m[j] = top[j];
      l[j] *= alpha[j];
    }
    for (int64_t k = 0; k < padded; k += 2)
      for (int j = 0; j < N; j++) {
        vf p0 = exp2(load(f.s + k * w + j * W) - m[j]), p1 = exp2(load(f.s + (k + 1) * w + j * W) - m[j]);
        l[j] += p0;
        l[j] += p1;
        store_keys(f.p + k / P::G * w + j * W, w, p0, p1);
      }
    const typename P::E* v = kv.v + first * (d.D / P::G);
    for (int64_t r = 0; r < d.D; r += P::R)
      P::template add_panel<N>(f.o_t + r * w, w, alpha, padded / P::G, v + r * (padded / P::G), f.p, w);
  }
  vf inverse[N];
  for (int j = 0; j < N; j++) inverse[j] = 1.0f / l[j];
  for (int64_t r = 0; r < d.D; r++)
    for (int j = 0; j < N; j++) store(f.o_t + r * w + j * W, load(f.o_t + r * w + j * W) * inverse[j]);
  float sums[w];
  for (int j = 0; j < N; j++) {
    store(sums + j * W, l[j]);
    store(lse2 + j * W, m[j]);
  }
  for (int i = 0; i < w; i++) lse2[i] += log2f(sums[i]);
}

// The tensors of one call.
struct ForwardArgs {
  const fx_tensor *o, *lse, *q, *k, *v;
  const fx_qk_norm* norm;
  float scale;
};

// The i-th block of keys of head (b, h), normed and rotated, and their values.
template <class P, class T>
void pack_keys(const Packed<P>& kv, const Forward<P>& f, const Dims& d, int64_t i, int64_t b, int64_t h, const RowNorm& norm,
               const ForwardArgs& a) {
  int64_t first = i * d.keys, keys = d.Lk - first < d.keys ? d.Lk - first : d.keys, padded = round_up(keys, P::R);
  read_rows<T>(f.rows, d, a.k, norm, b, h, first, keys, padded, 1);
  row_panels<P>(kv.k + first * (d.D / P::G), d, f.rows, padded);
  read_rows<T>(f.rows, d, a.v, RowNorm(), b, h, first, keys, padded, 1);
  column_panels<P>(kv.v + first * (d.D / P::G), d, make_pairs(f.pairs, d, f.rows, padded), padded);
}

// The i-th block of queries of head (b, h).
template <class P, class T>
void forward_queries(const Packed<P>& kv, const Forward<P>& f, const Dims& d, const Blocks<P>& blocks, int64_t i, int64_t b, int64_t h,
                     const RowNorm& norm, const ForwardArgs& a) {
  int64_t first = blocks.first(i), w = blocks.lanes(i), n = d.Lq - first < w ? d.Lq - first : w;
  float lse2[Forward<P>::w_max], c = a.scale * kLog2E;
  read_rows<T>(f.rows, d, a.q, norm, b, h, first, n, w, P::G > 1 ? 1 : c);
  transpose(f.q_t, w, f.rows, d.Dp / P::G, w, d.D / P::G);
  with_count<P>(blocks.size(i), [&](auto count) { forward_block<P, decltype(count)::value>(f, kv, d, lse2, c); });
  transpose(f.out, d.Dp, f.o_t, w, d.D, w);
  write_rows<T>(a.o, d, f.out, b, h, first, n, 1);
  if (!a.lse) return;
  float* out = data<float>(a.lse) + (b * d.H + h) * d.Lq + first;
  for (int64_t r = 0; r < n; r++) out[r] = lse2[r] * kLn2;
}

// A job is a head, whose keys it packs for itself. Few heads are packed first, for all threads, and their queries split.
template <class P, class T>
fx_status forward(fx_ctx* ctx, const ForwardArgs& a) {
  Dims d = dims<P>(a.q, a.k, Forward<P>::kKeys);
  Blocks<P> blocks(d.Lq);
  int64_t heads = d.B * d.H, parts = (4 * ctx->threads + heads - 1) / heads;
  if (parts > blocks.count) parts = blocks.count;
  int64_t floats = Forward<P>::floats(d), packed = Packed<P>::floats(d), packs = parts > 1 ? heads : ctx->threads;
  float* scratch = static_cast<float*>(workspace(ctx, (ctx->threads * floats + packs * packed + 4 * d.Dp) * 4));
  float *panels = scratch + ctx->threads * floats, *weights = panels + packs * packed;
  Norms norms = Norms::of<T>(a.norm, d, weights);
  auto in_job = [&](int64_t head, const auto& work) {
    FlushDenormals flush;
    [[maybe_unused]] typename P::Scope scope;
    Forward<P> f;
    f.place(scratch + thread_index() * floats, d);
    Packed<P> kv;
    kv.place(panels + (parts > 1 ? head : thread_index()) * packed, d);
    work(f, kv, head / d.H, head % d.H);
  };
  if (parts > 1)
    parallel_for_dynamic(ctx, heads * d.key_blocks, [&](int64_t job) {
      in_job(job / d.key_blocks,
             [&](auto& f, auto& kv, int64_t b, int64_t h) { pack_keys<P, T>(kv, f, d, job % d.key_blocks, b, h, norms.k, a); });
    });
  parallel_for_dynamic(ctx, heads * parts, [&](int64_t job) {
    in_job(job / parts, [&](auto& f, auto& kv, int64_t b, int64_t h) {
      for (int64_t i = 0; parts == 1 && i < d.key_blocks; i++) pack_keys<P, T>(kv, f, d, i, b, h, norms.k, a);
      int64_t part = job % parts, to = (part + 1) * blocks.count / parts;
      for (int64_t i = part * blocks.count / parts; i < to; i++) forward_queries<P, T>(kv, f, d, blocks, i, b, h, norms.q, a);
    });
  });
  return FX_STATUS_OK;
}

}  // namespace fx::FX_TIER
