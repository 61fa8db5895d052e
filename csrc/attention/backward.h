// backward.h: dq, dk, dv of one head. A block of keys meets all queries; the probabilities are made again from lse.
#pragma once
#include "softmax.h"

namespace fx::FX_TIER {

// One thread's scratch: all queries of a head, one block of keys, and the probabilities of that block and one group of blocks of queries.
// The forms across are laid out block by block, a block that begins at query i at offset i·D/G.
template <class P>
struct Backward {
  typedef typename P::E E;
  static constexpr int64_t kKeys = 128;                         // keys of a block
  static constexpr int64_t kGroup = 192, kRow = kGroup / P::G;  // queries of a group
  static constexpr int64_t w_max = P::kUnit * P::kUnits;
  E *q, *q_t, *g, *g_t;                // pairs, and across; g: gradient of o
  float *dq_t, *lse2, *delta;          // delta: rowsum(g · o)
  E *k_columns, *k_panels, *v_panels;  // of the block of keys
  float *dk, *dv;                      // [keys][Dp]
  E *p, *ds, *ds_pairs;                // [keys][kRow]; [keys/G][kGroup]
  float* tile;                         // [R][w]
  E *rows, *pairs;
  float* out;
  static int64_t floats(const Dims& d) { return Backward().place(nullptr, d); }
  static int64_t padded_queries(const Dims& d) { return round_up(d.Lq, P::kUnit); }
  int64_t place(float* base, const Dims& d) {
    Scratch scratch(base);
    int64_t L = padded_queries(d), keys = d.keys, most = w_max > keys ? w_max : keys;
    scratch.take(q, L * d.Dp / P::G);
    scratch.take(q_t, L * d.D / P::G);
    scratch.take(g, L * d.Dp / P::G);
    scratch.take(g_t, L * d.D / P::G);
    scratch.take(dq_t, L * d.D);
    scratch.take(lse2, L);
    scratch.take(delta, L);
    scratch.take(k_columns, keys * d.D / P::G);
    scratch.take(k_panels, keys * d.D / P::G);
    scratch.take(v_panels, keys * d.D / P::G);
    scratch.take(dk, keys * d.Dp);
    scratch.take(dv, keys * d.Dp);
    scratch.take(p, keys * kRow);
    scratch.take(ds, keys * kRow);
    scratch.take(ds_pairs, P::G > 1 ? keys / P::G * kGroup : 0);
    scratch.take(tile, P::R * w_max);
    scratch.take(rows, most * d.Dp / P::G);
    scratch.take(pairs, most * d.Dp / P::G);
    scratch.take(out, w_max * d.Dp);
    return scratch.used();
  }
};

// Probabilities p and gradients ds of the scores of a panel of keys and the block of queries at `first`: p = 2^(s - lse2),
// ds = p · (v g^T - delta).
template <class P, int N>
FX_INLINE void gradients(const Backward<P>& f, typename P::E* p, typename P::E* ds, int64_t key, int64_t first, const Dims& d, float c) {
  constexpr int w = N * W;
  constexpr int64_t row = Backward<P>::kRow;
  int64_t n = d.D / P::G;
  float* tile = f.tile;
  const float *lse2 = f.lse2 + first, *delta = f.delta + first;
  P::template product<N>(n, f.k_panels + key * n, f.q_t + first * n, w, [&](int i, int j, vf s) FX_LAMBDA {
    if constexpr (P::G > 1) s *= c;
    vf x = exp2(s - load(lse2 + j * W));
    if constexpr (P::G > 1) store(tile + i * w + j * W, x);
    store_numbers(p + i * row, j, x);
  });
  P::template product<N>(n, f.v_panels + key * n, f.g_t + first * n, w, [&](int i, int j, vf dp) FX_LAMBDA {
    vf x;
    if constexpr (P::G > 1) x = load(tile + i * w + j * W);
    else x = load(p + i * row + j * W);
    store_numbers(ds + i * row, j, x * (dp - load(delta + j * W)));
  });
}

// out [keys][Dp] += x rows: x [keys][kRow] of a group of n queries, rows their pairs.
template <class P>
void gather(float* out, const typename P::E* x, const typename P::E* rows, const Dims& d, int64_t keys, int64_t n) {
  constexpr int64_t row = Backward<P>::kRow;
  for (int64_t c = 0; c < d.Dp; c += P::kColumns)
    for (int64_t k = 0; k < keys; k += P::R) P::template add_rows<row>(out + k * d.Dp + c, d.Dp, n / P::G, x + k * row, rows + c, d.Dp);
}

// The block of keys (padded of them) and the blocks [from, to) of queries: adds to dk, dv and dq_t.
template <class P>
void backward_group(const Backward<P>& f, const Dims& d, const Blocks<P>& blocks, int64_t from, int64_t to, int64_t padded, float c) {
  constexpr int64_t row = Backward<P>::kRow, group = Backward<P>::kGroup;
  int64_t begin = blocks.first(from), n = blocks.first(to) - begin;
  for (int64_t i = from; i < to; i++) {
    int64_t first = blocks.first(i), at = (first - begin) / P::G;
    with_count<P>(blocks.size(i), [&](auto count) {
      for (int64_t k = 0; k < padded; k += P::R)
        gradients<P, decltype(count)::value>(f, f.p + k * row + at, f.ds + k * row + at, k, first, d, c);
    });
  }
  gather<P>(f.dv, f.p, f.g + begin / P::G * d.Dp, d, padded, n);
  gather<P>(f.dk, f.ds, f.q + begin / P::G * d.Dp, d, padded, n);
  const typename P::E* ds = f.ds;
  if constexpr (P::G > 1) {
    interleave(f.ds_pairs, group, f.ds, row, padded, n);
    ds = f.ds_pairs;
  }
  for (int64_t i = from; i < to; i++) {
    int64_t first = blocks.first(i);
    with_count<P>(blocks.size(i), [&](auto count) {
      constexpr int N = decltype(count)::value;
      vf one[N];
      for (int j = 0; j < N; j++) one[j] = vf{} + 1.0f;
      for (int64_t r = 0; r < d.D; r += P::R)
        P::template add_panel<N>(f.dq_t + first * d.D + r * N * W, N * W, one, padded / P::G, f.k_columns + r * (padded / P::G),
                                 ds + first - begin, group);
    });
  }
}

// The tensors of one call.
struct BackwardArgs {
  const fx_tensor *dq, *dk, *dv, *d_o, *q, *k, *v, *o, *lse;
  const fx_qk_norm* norm;
  float scale;
};

// Gradients of the weights of q and k: each job sums its own, [4][Dp], and the sums are added in the order of the jobs.
class WeightSums {
 public:
  WeightSums(const fx_qk_norm* norm, float* space, int64_t Dp) : space_(space), Dp_(Dp) {
    for (int i = 0; norm && i < 2; i++) {
      grads_[i] = norm->dquery[i].rank ? data<float>(&norm->dquery[i]) : nullptr;
      grads_[2 + i] = norm->dkey[i].rank ? data<float>(&norm->dkey[i]) : nullptr;
    }
  }
  static int64_t floats(const fx_qk_norm* norm, int64_t jobs, int64_t Dp) { return norm ? jobs * 4 * Dp : 0; }
  // norms with the sums of a job, which are set to 0 if it is the first to use them.
  Norms of_job(const Norms& norms, int64_t job, bool first) const {
    Norms n = norms;
    float* sums = space_ + job * 4 * Dp_;
    if (first && any()) memset(sums, 0, size_t(4 * Dp_) * 4);
    for (int i = 0; i < 2; i++) {
      n.q.sums[i] = grads_[i] ? sums + i * Dp_ : nullptr;
      n.k.sums[i] = grads_[2 + i] ? sums + (2 + i) * Dp_ : nullptr;
    }
    return n;
  }
  void add(int64_t jobs, int64_t D) const {
    for (int i = 0; i < 4; i++)
      if (grads_[i]) add_partial(grads_[i], space_ + i * Dp_, jobs, 4 * Dp_, D);
  }

 private:
  bool any() const { return grads_[0] || grads_[1] || grads_[2] || grads_[3]; }
  float *grads_[4] = {}, *space_;
  int64_t Dp_;
};

// The queries' side of head (b, h): q and g in both forms, lse2, delta, dq_t zero. Queries beyond Lq are zeros and add nothing.
template <class P, class T>
void backward_queries(const Backward<P>& f, const Dims& d, const Blocks<P>& blocks, int64_t b, int64_t h, const RowNorm& norm,
                      const BackwardArgs& a) {
  int64_t L = Backward<P>::padded_queries(d);
  const float* statistics = data<float>(a.lse) + (b * d.H + h) * d.Lq;
  for (int64_t i = 0; i < blocks.count; i++) {
    int64_t first = blocks.first(i), w = blocks.lanes(i), n = d.Lq - first < w ? d.Lq - first : w;
    auto pack = [&](typename P::E* pairs, typename P::E* across, const fx_tensor* t, const RowNorm& how, float factor) {
      typename P::E* rows = P::G > 1 ? f.rows : pairs + first * d.Dp;
      read_rows<T>(rows, d, t, how, b, h, first, n, w, factor);
      make_pairs(pairs + first / P::G * d.Dp, d, rows, w);
      transpose(across + first * (d.D / P::G), w, rows, d.Dp / P::G, w, d.D / P::G);
    };
    pack(f.q, f.q_t, a.q, norm, P::G > 1 ? 1 : a.scale * kLog2E);
    pack(f.g, f.g_t, a.d_o, RowNorm(), 1);
    for (int64_t l = first; l < first + w; l++) {
      vf dot{};
      if (l < d.Lq) {
        const T *o = head_row<T>(a.o, b, h, l), *g = head_row<T>(a.d_o, b, h, l);
        fetch(o + kAhead * a.o->strides[1], d.width * int64_t(sizeof(T)));
        for_lanes(d.width, [&](int64_t i, int64_t lanes) { dot += load_some(g + i, lanes) * load_some(o + i, lanes); });
      }
      f.delta[l] = sum(dot);
      f.lse2[l] = l < d.Lq ? statistics[l] * kLog2E : 0;
    }
  }
  memset(f.dq_t, 0, size_t(L * d.D) * 4);
}

// All queries against the keys [from, to) of head (b, h): writes their dk and dv, adds to f.dq_t.
template <class P, class T>
void backward_keys(const Backward<P>& f, const Dims& d, const Blocks<P>& blocks, int64_t from, int64_t to, int64_t b, int64_t h,
                   const RowNorm& norm, const BackwardArgs& a) {
  for (int64_t first = from; first < to; first += d.keys) {
    int64_t keys = to - first < d.keys ? to - first : d.keys, padded = round_up(keys, P::R);
    read_rows<T>(f.rows, d, a.v, RowNorm(), b, h, first, keys, padded, 1);
    row_panels<P>(f.v_panels, d, f.rows, padded);
    read_rows<T>(f.rows, d, a.k, norm, b, h, first, keys, padded, 1);
    row_panels<P>(f.k_panels, d, f.rows, padded);
    column_panels<P>(f.k_columns, d, make_pairs(f.pairs, d, f.rows, padded), padded);
    memset(f.dk, 0, size_t(padded * d.Dp) * 4);
    memset(f.dv, 0, size_t(padded * d.Dp) * 4);
    constexpr int64_t most = Backward<P>::kGroup / Backward<P>::w_max;
    for (int64_t i = 0; i < blocks.count; i += most)
      backward_group<P>(f, d, blocks, i, i + most < blocks.count ? i + most : blocks.count, padded, a.scale * kLog2E);
    float factor = P::G > 1 ? a.scale : kLn2;  // f32 queries carry scale / ln 2
    write_gradients<T>(a.dk, d, f.dk, a.k, norm, b, h, first, keys, factor);
    write_rows<T>(a.dv, d, f.dv, b, h, first, keys, 1);
  }
}

// dq of one block of queries from the sums of `parts` jobs, each at dq_t + part·stride. The first is overwritten by the total.
template <class P, class T>
void write_dq(const Dims& d, const Blocks<P>& blocks, int64_t i, int64_t b, int64_t h, float* dq_t, int64_t parts, int64_t stride,
              float* rows, const RowNorm& norm, const BackwardArgs& a) {
  int64_t first = blocks.first(i), w = blocks.lanes(i), n = d.Lq - first < w ? d.Lq - first : w;
  float* total = dq_t + first * d.D;
  for (int64_t part = 1; part < parts; part++)
    for (int64_t c = 0; c < w * d.D; c += kLanes) store(total + c, load(total + c) + load(total + part * stride + c));
  fetch(total, w * d.D * 4);  // has left the near caches; the transposition would wait for line after line
  transpose(rows, d.Dp, total, w, d.D, w);
  write_gradients<T>(a.dq, d, rows, a.q, norm, b, h, first, n, a.scale);
}

constexpr int64_t kJobs = 16;  // the keys of few heads are split so that there are about this many jobs

template <class P, class T>
fx_status backward(fx_ctx* ctx, const BackwardArgs& a) {
  Dims d = dims<P>(a.q, a.k, Backward<P>::kKeys);
  Blocks<P> blocks(d.Lq);
  int64_t heads = d.B * d.H, parts = (kJobs + heads - 1) / heads;
  if (parts > d.key_blocks) parts = d.key_blocks;
  int64_t jobs = heads * parts, floats = Backward<P>::floats(d), size = Backward<P>::padded_queries(d) * d.D;
  // With several parts a head their dq_t live beside the scratch, one a job, and are added in a fixed order.
  int64_t partials = parts > 1 ? jobs * size : 0;
  float* scratch = static_cast<float*>(
      workspace(ctx, (ctx->threads * floats + partials + 4 * d.Dp + WeightSums::floats(a.norm, jobs, d.Dp)) * int64_t(sizeof(float))));
  float *partial = scratch + ctx->threads * floats, *weights = partial + partials;
  Norms norms = Norms::of<T>(a.norm, d, weights);
  WeightSums weight_sums(a.norm, weights + 4 * d.Dp, d.Dp);
  parallel_for_dynamic(ctx, jobs, [&](int64_t job) {
    FlushDenormals flush;
    [[maybe_unused]] typename P::Scope scope;
    int64_t head = job / parts, part = job % parts, b = head / d.H, h = head % d.H;
    Norms n = weight_sums.of_job(norms, job, true);
    Backward<P> f;
    f.place(scratch + thread_index() * floats, d);
    if (parts > 1) f.dq_t = partial + job * size;
    backward_queries<P, T>(f, d, blocks, b, h, n.q, a);
    int64_t from = part * d.key_blocks / parts * d.keys, to = (part + 1) * d.key_blocks / parts * d.keys;
    backward_keys<P, T>(f, d, blocks, from, to < d.Lk ? to : d.Lk, b, h, n.k, a);
    for (int64_t i = 0; parts == 1 && i < blocks.count; i++) write_dq<P, T>(d, blocks, i, b, h, f.dq_t, 1, 0, f.out, n.q, a);
  });
  if (parts > 1)
    parallel_for(ctx, jobs, [&](int64_t job) {
      int64_t head = job / parts, part = job % parts;
      Norms n = weight_sums.of_job(norms, job, false);
      Backward<P> f;
      f.place(scratch + thread_index() * floats, d);
      for (int64_t i = part * blocks.count / parts; i < (part + 1) * blocks.count / parts; i++)
        write_dq<P, T>(d, blocks, i, head / d.H, head % d.H, partial + head * parts * size, parts, size, f.out, n.q, a);
    });
  weight_sums.add(jobs, d.width);
  return FX_STATUS_OK;
}

}  // namespace fx::FX_TIER
