// attention_backward.cu: the gradients of attention for head dimensions up to 128, without atomics: one kernel owns tiles of keys and sums
// dk and dv over all queries, another owns tiles of queries and sums dq over all keys. Both recompute scores and probabilities from lse:
//   p = exp(scale · q k^T − lse)   dv = p^T do   ds = p ⊙ (do v^T − delta)   dq = scale · ds k   dk = scale · ds^T q
// with delta = rowsum(do ⊙ o) from a first kernel. That is seven products where one kernel for all would have five and either atomics,
// whose order changes the bits, or partial sums of dq in memory. bf16: p and ds are rounded for the second products; all else is f32.
// Where q and k are normed and rotated, both read the rows that attention_norm.cu made, and take dq and dk back through rotation and norm
// while they store them.
#include "attention.cuh"
#include "core/columns.cuh"

namespace fx::cuda {
namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps, kOwn = 16 * kWarps;  // rows that a block owns
constexpr int kStages = 2;

// Rows of a tile that passes by.
template <class T, int D>
constexpr int kPass = sizeof(T) == 2 ? (D == 128 ? 32 : 64) : (D == 128 ? 16 : 32);

template <class T, int D>
constexpr int kBackwardBytes = (2 * kOwn + kStages * 2 * kPass<T, D>)*Tile<T, D>::kPitch + kStages * 2 * kPass<T, D>* int(sizeof(float));

// delta[b,h,l] = sum over d of g · o; `lanes` threads, a power of two, share a row.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) attention_delta_kernel(float* delta, Heads<T> g, Heads<T> o, AttentionShape s, int lanes) {
  int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / lanes, rows = int64_t(s.B) * s.H * s.Lq;
  float sum = 0;
  if (index < rows) {
    int l = int(index % s.Lq), head = int(index / s.Lq), b = head / s.H, h = head % s.H;
    const T* pg = head_rows(g, b, h, s.Lq, s.D).row(l);
    const T* po = head_rows(o, b, h, s.Lq, s.D).row(l);
    for (int c = int(threadIdx.x) % lanes * V; c < s.D; c += lanes * V) {
      float x[V], y[V];
      load<V>(x, pg + c), load<V>(y, po + c);
#pragma unroll
      for (int i = 0; i < V; i++) sum = fmaf(x[i], y[i], sum);
    }
  }
  sum = lanes_sum(sum, lanes);
  if (index < rows && int(threadIdx.x) % lanes == 0) delta[index] = sum;
}

// Two owned tiles and the ring of tile pairs in shared memory.
template <class T, int D>
struct Memory {
  static constexpr int pass = kPass<T, D>, pitch = Tile<T, D>::kPitch;
  char* base;

  __device__ Tile<T, D> own(int which) const { return {base + which * kOwn * pitch}; }
  __device__ Tile<T, D> passing(int which, int tile) const { return {base + (2 * kOwn + (tile % kStages * 2 + which) * pass) * pitch}; }
  // Statistics of passing queries: lse or delta.
  __device__ float* statistics(int which, int tile) const {
    return reinterpret_cast<float*>(base + (2 * kOwn + kStages * 2 * pass) * pitch) + (tile % kStages * 2 + which) * pass;
  }
};

// How a gradient of normed rows becomes that of the rows x. partial [blocks][2][D]: the blocks' sums for the weights' gradients, NULL if
// not wanted.
template <class T>
struct Unnorm {
  Heads<T> x;
  RowNorm<T> norm;
  float* partial;
};

// Stores the block's rows of dq or dk, from `first` on: factor · c of every warp, taken back through rotation and norm where there are any.
// That needs whole rows in neighbouring lanes: they pass through `memory`, which everyone must be done with.
template <class T, int D>
__device__ inline void store_gradient(char* memory, float (&c)[D / 8][4], float factor, const HeadRows<T>& to, int first,
                                      const HeadRows<T>& from, const Unnorm<T>& un) {
  constexpr int lanes = D / 4, pitch = D + 8, groups = kBlock / lanes;  // 8 more: rows meet different banks
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) c[n][e] *= factor;
  int warp_row = int(threadIdx.x) / 32 * 16, g = lane_id() >> 2, t = lane_id() & 3;
  if (!un.norm.any()) {
    store_rows(c, to.row(first + warp_row + g), to.row(first + warp_row + g + 8), to.dims, to.vec);
    return;
  }
  float* tile = reinterpret_cast<float*>(memory);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      *reinterpret_cast<float2*>(tile + (warp_row + g + 8 * h) * pitch + 8 * n + 2 * t) = make_float2(c[n][2 * h], c[n][2 * h + 1]);
  __syncthreads();
  float sums[2][4] = {};
  int group = int(threadIdx.x) / lanes, column = int(threadIdx.x) % lanes * 4;
#pragma unroll 1
  for (int r = group; r < kOwn; r += groups) {
    bool exists = first + r < to.length && column < to.dims;
    float4 u = *reinterpret_cast<const float4*>(tile + r * pitch + column);
    float out[4] = {u.x, u.y, u.z, u.w}, x[4] = {};
    const T* src = from.row(first + r) + column;
    if (exists && from.vec) load(x, src);
    else if (exists)
      for (int i = 0; i < 4; i++) x[i] = to_float(src[i]);
    un.norm.template backward<lanes>(out, sums, x, first + r, column, exists);
    T* dst = to.row(first + r) + column;
    if (exists && to.vec) store(dst, out);
    else if (exists)
      for (int i = 0; i < 4; i++) put(dst + i, out[i]);
  }
  if (!un.partial) return;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < 2; w++)
    *reinterpret_cast<float4*>(tile + (w * groups + group) * D + column) = make_float4(sums[w][0], sums[w][1], sums[w][2], sums[w][3]);
  __syncthreads();
  for (int i = int(threadIdx.x); i < 2 * to.dims; i += kBlock) {
    int late = i >= to.dims, d = i - late * to.dims;
    float total = 0;
    for (int k = 0; k < groups; k++) total += tile[(late * groups + k) * D + d];
    un.partial[int64_t(blockIdx.x) * 2 * to.dims + i] = total;
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kBlock, 2)
    attention_backward_keys_kernel(Heads<T> dk, Heads<T> dv, Heads<T> g, Heads<T> q, Heads<T> k, Heads<T> v, const float* lse,
                                   const float* delta, AttentionShape s, int key_tiles, float scale, Unnorm<T> un) {
  extern __shared__ __align__(128) char memory[];
  constexpr int pass = kPass<T, D>;
  int head = int(blockIdx.x) / key_tiles, first = int(blockIdx.x) % key_tiles * kOwn, b = head / s.H, h = head % s.H;
  HeadRows<T> q_rows = head_rows(q, b, h, s.Lq, s.D), g_rows = head_rows(g, b, h, s.Lq, s.D);
  Memory<T, D> mem{memory};
  lse += int64_t(head) * s.Lq, delta += int64_t(head) * s.Lq;
  int tiles = (s.Lq + pass - 1) / pass;
  // Queries beyond the last are zeros with lse and delta 0: p = 1 meets do = 0, and ds is 0.
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      q_rows.template load<pass, D, kBlock>(mem.passing(0, tile), tile * pass);
      g_rows.template load<pass, D, kBlock>(mem.passing(1, tile), tile * pass);
      int i = int(threadIdx.x) % pass, l = tile * pass + i;
      if (threadIdx.x < 2 * pass) {
        const float* src = int(threadIdx.x) < pass ? lse : delta;
        cp_async4(mem.statistics(int(threadIdx.x) / pass, tile) + i, l < s.Lq ? src + l : src, l < s.Lq);
      }
    }
    cp_async_commit();
  };
  head_rows(k, b, h, s.Lk, s.D).template load<kOwn, D, kBlock>(mem.own(0), first);
  head_rows(v, b, h, s.Lk, s.D).template load<kOwn, D, kBlock>(mem.own(1), first);
  fetch(0);

  float sum_k[1][D / 8][4] = {}, sum_v[1][D / 8][4] = {}, scale_log2 = scale * kLog2E;
  int warp_row = int(threadIdx.x) / 32 * 16, t = lane_id() & 3;
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // the tile has arrived, and everyone is done with the one before
    fetch(tile + 1);
    const float *row_lse = mem.statistics(0, tile), *row_delta = mem.statistics(1, tile);
    float p[1][pass / 8][4] = {}, ds[1][pass / 8][4] = {};  // transposed: rows are keys
    product_nt<D>(p, mem.own(0), warp_row, mem.passing(0, tile), 0);
#pragma unroll
    for (int n = 0; n < pass / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) p[0][n][e] = exp2_fast(p[0][n][e] * scale_log2 - row_lse[8 * n + 2 * t + e % 2] * kLog2E);
    product_pn(sum_v, p, mem.passing(1, tile), 0);
    product_nt<D>(ds, mem.own(1), warp_row, mem.passing(1, tile), 0);
#pragma unroll
    for (int n = 0; n < pass / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - row_delta[8 * n + 2 * t + e % 2]);
    product_pn(sum_k, ds, mem.passing(0, tile), 0);
  }

  int row = first + warp_row + (lane_id() >> 2);
  HeadRows<T> dk_rows = head_rows(dk, b, h, s.Lk, s.D), dv_rows = head_rows(dv, b, h, s.Lk, s.D);
  store_rows(sum_v[0], dv_rows.row(row), dv_rows.row(row + 8), s.D, dv.vec);
  store_gradient<T, D>(memory, sum_k[0], scale, dk_rows, first, head_rows(un.x, b, h, s.Lk, s.D), un);
}

template <class T, int D>
__global__ void __launch_bounds__(kBlock, 2)
    attention_backward_queries_kernel(Heads<T> dq, Heads<T> g, Heads<T> q, Heads<T> k, Heads<T> v, const float* lse, const float* delta,
                                      AttentionShape s, int query_tiles, float scale, Unnorm<T> un) {
  extern __shared__ __align__(128) char memory[];
  constexpr int pass = kPass<T, D>;
  int head = int(blockIdx.x) / query_tiles, first = int(blockIdx.x) % query_tiles * kOwn, b = head / s.H, h = head % s.H;
  HeadRows<T> k_rows = head_rows(k, b, h, s.Lk, s.D), v_rows = head_rows(v, b, h, s.Lk, s.D);
  Memory<T, D> mem{memory};
  int tiles = (s.Lk + pass - 1) / pass;
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      k_rows.template load<pass, D, kBlock>(mem.passing(0, tile), tile * pass);
      v_rows.template load<pass, D, kBlock>(mem.passing(1, tile), tile * pass);
    }
    cp_async_commit();
  };
  head_rows(q, b, h, s.Lq, s.D).template load<kOwn, D, kBlock>(mem.own(0), first);
  head_rows(g, b, h, s.Lq, s.D).template load<kOwn, D, kBlock>(mem.own(1), first);
  fetch(0);

  int warp_row = int(threadIdx.x) / 32 * 16, row = first + warp_row + (lane_id() >> 2), t = lane_id() & 3;
  float row_lse[2], row_delta[2], scale_log2 = scale * kLog2E;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    bool exists = row + 8 * i < s.Lq;
    int64_t at = int64_t(head) * s.Lq + row + 8 * i;
    row_lse[i] = exists ? lse[at] * kLog2E : 0;
    row_delta[i] = exists ? delta[at] : 0;
  }
  float sum[1][D / 8][4] = {};
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // the tile has arrived, and everyone is done with the one before
    fetch(tile + 1);
    float p[1][pass / 8][4] = {}, ds[1][pass / 8][4] = {};
    product_nt<D>(p, mem.own(0), warp_row, mem.passing(0, tile), 0);
    product_nt<D>(ds, mem.own(1), warp_row, mem.passing(1, tile), 0);
    int keys = s.Lk - tile * pass;  // that exist, from this tile on
#pragma unroll
    for (int n = 0; n < pass / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float prob = exp2_fast(p[0][n][e] * scale_log2 - row_lse[e / 2]);
        ds[0][n][e] = 8 * n + 2 * t + e % 2 < keys ? prob * (ds[0][n][e] - row_delta[e / 2]) : 0;
      }
    product_pn(sum, ds, mem.passing(0, tile), 0);
  }
  HeadRows<T> dq_rows = head_rows(dq, b, h, s.Lq, s.D);
  store_gradient<T, D>(memory, sum[0], scale, dq_rows, first, head_rows(un.x, b, h, s.Lq, s.D), un);
}

template <class T>
void compute_delta(fx_ctx* ctx, float* delta, const fx_tensor* g, const fx_tensor* o, const AttentionShape& s) {
  int64_t rows = int64_t(s.B) * s.H * s.Lq;
  bool vec = vectors(g, 16) && vectors(o, 16);
  int lanes = 1, width = vec ? kUnit<T> : 1;
  while (lanes < 32 && lanes * width < s.D) lanes *= 2;
  auto kernel = vec ? attention_delta_kernel<T, kUnit<T>> : attention_delta_kernel<T, 1>;
  launch(ctx, kernel, ceil_div(rows * lanes, kThreads), kThreads, 0, delta, heads<T>(g), heads<T>(o), s, lanes);
}

// What the rows of q and k were before the norm, and the blocks' sums for the gradients of their weights.
struct Norms {
  const fx_tensor *q, *k;
  const fx_qk_norm* norm;  // NULL: none
  float *query_sums, *key_sums;
};

template <class T, int D>
void run(fx_ctx* ctx, const BackwardTensors& t, const Norms& n, float scale) {
  AttentionShape s = attention_shape(t.q, t.k);
  int key_tiles = int(ceil_div(s.Lk, kOwn)), query_tiles = int(ceil_div(s.Lq, kOwn)), bytes = kBackwardBytes<T, D>;
  Heads<T> g = heads<T>(t.d_o), q = heads<T>(t.q), k = heads<T>(t.k), v = heads<T>(t.v);
  Unnorm<T> queries{heads<T>(n.q), row_norm<T>(n.norm, 0, s.D), n.query_sums}, keys{heads<T>(n.k), row_norm<T>(n.norm, 1, s.D), n.key_sums};
  launch(ctx, attention_backward_keys_kernel<T, D>, int64_t(s.B) * s.H * key_tiles, kBlock, bytes, heads<T>(t.dk), heads<T>(t.dv), g, q, k,
         v, t.lse, t.delta, s, key_tiles, scale, keys);
  launch(ctx, attention_backward_queries_kernel<T, D>, int64_t(s.B) * s.H * query_tiles, kBlock, bytes, heads<T>(t.dq), g, q, k, v, t.lse,
         t.delta, s, query_tiles, scale, queries);
}

struct RowSums {
  const float* x;
  int64_t C;

  template <int V>
  __device__ void add(float (&sums)[1][V], int64_t, int64_t row, int64_t c) const {
    float v[V];
    load(v, x + row * C + c);
#pragma unroll
    for (int i = 0; i < V; i++) sums[0][i] += v[i];
  }
};

// grads[i] [D] += sum over blocks of sums [blocks, 2, D].
void add_weight_gradients(fx_ctx* ctx, const fx_tensor (&grads)[2], const float* sums, float* partial, int64_t blocks, int64_t D) {
  for_columns<4, 1>(ctx, partial, 1, blocks, 2 * D, RowSums{sums, 2 * D});
  for (int i = 0; i < 2; i++)
    if (grads[i].rank > 0) finish_columns(ctx, data<float>(&grads[i]), 0, partial + i * D, 1, chunks_of(blocks), D, 2 * D, 1, true);
}

}  // namespace

fx_status attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                             const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                             const fx_qk_norm* norm, float scale) {
  AttentionShape s = attention_shape(q, k);
  bool wide = s.D > 128, query_sums = norm && !wide && (norm->dquery[0].rank > 0 || norm->dquery[1].rank > 0);
  bool key_sums = norm && !wide && (norm->dkey[0].rank > 0 || norm->dkey[1].rank > 0);
  int64_t heads = int64_t(s.B) * s.H, blocks = heads * ceil_div(s.Lq, kOwn), one = 2 * s.D * 4;  // Lq is Lk where there is a norm
  int64_t rows = round_up(heads * s.Lq * 4, 256), sums = (query_sums + key_sums) * blocks * one;
  int64_t bytes = rows + sums + (sums ? chunks_of(blocks) * one : 0);
  NormedHeads n{*q, *k, nullptr, nullptr, nullptr};
  if (norm) n = norm_heads(ctx, q, k, *norm, true, wide, bytes);
  else n.more = workspace(ctx, bytes);
  float *delta = static_cast<float*>(n.more), *space = delta + rows / 4;
  BackwardTensors t = {dq, dk, dv, d_o, &n.q, &n.k, v, data<float>(lse), delta};
  Norms norms{q, k, norm, query_sums ? space : nullptr, key_sums ? space + query_sums * blocks * one / 4 : nullptr};
  dispatch(q->dtype, [&](auto e) {
    using T = decltype(e);
    compute_delta<T>(ctx, delta, d_o, o, s);
    if (wide) attention_wide_backward(ctx, t, scale);
    else with_head_dim(s.D, [&](auto dim) { run<T, decltype(dim)::value>(ctx, t, norms, scale); });
    return FX_STATUS_OK;
  });
  if (norm && wide) norm_heads_backward(ctx, n, dq, dk, q, k, *norm);
  float* partial = space + sums / 4;
  if (query_sums) add_weight_gradients(ctx, norm->dquery, norms.query_sums, partial, blocks, s.D);
  if (key_sums) add_weight_gradients(ctx, norm->dkey, norms.key_sums, partial, blocks, s.D);
  return FX_STATUS_OK;
}

}  // namespace fx::cuda
