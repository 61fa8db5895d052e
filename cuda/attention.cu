// attention.cu: o = softmax(scale · q k^T) v per head, forward, for head dimensions up to 128 (FlashAttention-2, arXiv:2307.08691). A block
// holds 64 or 128 queries, 16 or 32 a warp, and meets a tile of keys and values at a time, while the next ones are copied. Scores,
// probabilities and the running softmax stay in registers: what one product leaves there is what the next one takes (mma.cuh). Queries are
// normed and rotated where they have arrived in shared memory; keys before, since every block reads all of them (attention_norm.cu).
// bf16: the probabilities, not yet divided by their sum, are rounded for the second product; all else is f32.
#include "attention.cuh"

namespace fx::cuda {
namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps;

// Keys of a tile and tiles in shared memory at a time.
template <class T, int D>
constexpr int kKeys = sizeof(T) == 4 || D == 128 ? 32 : 64;
template <class T, int D>
constexpr int kStages = sizeof(T) == 2 && D == 128 ? 3 : 2;

template <class T, int D, int M>
constexpr int kForwardBytes = (16 * M * kWarps + kStages<T, D> * 2 * kKeys<T, D>)*Tile<T, D>::kPitch;

// One step of the online softmax: scores to probabilities relative to the running maximum, sums and o to the new maximum.
template <int M, int N, int No>
__device__ inline void softmax_step(float (&s)[M][N][4], float (&top)[M][2], float (&sum)[M][2], float (&o)[M][No][4], float scale_log2) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float high = top[m][h];
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          s[m][n][e] *= scale_log2;
          high = fmaxf(high, s[m][n][e]);
        }
      high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 1));
      high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 2));
      float alpha = exp2_fast(top[m][h] - high);
      top[m][h] = high;
      sum[m][h] *= alpha;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          s[m][n][e] = exp2_fast(s[m][n][e] - high);
          sum[m][h] += s[m][n][e];
        }
#pragma unroll
      for (int n = 0; n < No; n++) o[m][n][2 * h] *= alpha, o[m][n][2 * h + 1] *= alpha;
    }
}

// Scores of keys from `keys` on become -inf.
template <int M, int N>
__device__ inline void mask(float (&s)[M][N][4], int keys) {
  int t = lane_id() & 3;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (8 * n + 2 * t + e % 2 >= keys) s[m][n][e] = -INFINITY;
}

// Norms and rotates the rows of a tile, [first, first + R) of `length`, in place, by all threads of a block.
template <int R, class T, int D>
__device__ inline void norm_tile(Tile<T, D> tile, const RowNorm<T>& norm, int first, int length) {
  constexpr int lanes = D / 4;
  int c = int(threadIdx.x) % lanes * 4;
#pragma unroll 1
  for (int r = int(threadIdx.x) / lanes; r < R; r += kBlock / lanes) {
    T* at = reinterpret_cast<T*>(tile.at(r, c / kUnit<T>)) + c % kUnit<T>;
    float x[4];
    load(x, at);
    norm.template forward<lanes>(x, first + r, c, first + r < length && c < norm.D);
    if constexpr (sizeof(T) == 4) *reinterpret_cast<float4*>(at) = make_float4(x[0], x[1], x[2], x[3]);
    else *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
  }
}

template <class T, int D, int M>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 4 ? 2 : 1)
    attention_forward_kernel(Heads<T> o, float* lse, Heads<T> q, Heads<T> k, Heads<T> v, AttentionShape s, RowNorm<T> norm, int query_tiles,
                             float scale_log2) {
  extern __shared__ __align__(128) char memory[];
  constexpr int keys = kKeys<T, D>, stages = kStages<T, D>, pitch = Tile<T, D>::kPitch;
  int head = int(blockIdx.x) / query_tiles, first = int(blockIdx.x) % query_tiles * 16 * M * kWarps, b = head / s.H, h = head % s.H;
  HeadRows<T> q_rows = head_rows(q, b, h, s.Lq, s.D), k_rows = head_rows(k, b, h, s.Lk, s.D), v_rows = head_rows(v, b, h, s.Lk, s.D);
  Tile<T, D> q_tile{memory};
  char* ring = memory + 16 * M * kWarps * pitch;
  auto k_tile = [&](int tile) { return Tile<T, D>{ring + tile % stages * 2 * keys * pitch}; };
  auto v_tile = [&](int tile) { return Tile<T, D>{ring + (tile % stages * 2 + 1) * keys * pitch}; };
  int tiles = (s.Lk + keys - 1) / keys;
  auto fetch = [&](int tile) {
    if (tile < tiles) {
      k_rows.template load<keys, D, kBlock>(k_tile(tile), tile * keys);
      v_rows.template load<keys, D, kBlock>(v_tile(tile), tile * keys);
    }
    cp_async_commit();
  };
  q_rows.template load<16 * M * kWarps, D, kBlock>(q_tile, first);
  cp_async_commit();
#pragma unroll
  for (int i = 0; i < stages - 1; i++) fetch(i);
  if (norm.any()) {
    cp_async_wait<stages - 1>();
    __syncthreads();  // the queries have arrived; what is made of them is seen after the loop's first barrier
    norm_tile<16 * M * kWarps>(q_tile, norm, first, s.Lq);
  }

  float acc[M][D / 8][4] = {}, top[M][2], sum[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITY;
  int warp_row = int(threadIdx.x) / 32 * 16 * M;
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<stages - 2>();
    __syncthreads();  // the tile has arrived, and everyone is done with the one before, whose place the next copy takes
    fetch(tile + stages - 1);
    float p[M][keys / 8][4] = {};
    product_nt<D>(p, q_tile, warp_row, k_tile(tile), 0);
    if (tile == tiles - 1 && s.Lk % keys) mask(p, s.Lk % keys);
    softmax_step(p, top, sum, acc, scale_log2);
    product_pn(acc, p, v_tile(tile), 0);
  }

  int block = int(blockIdx.x);
  asm volatile("" : "+r"(block));  // made again rather than kept: the loop needs all registers
  head = block / query_tiles, first = block % query_tiles * 16 * M * kWarps, b = head / s.H, h = head % s.H;
  warp_row = int(threadIdx.x) / 32 * 16 * M;
  HeadRows<T> o_rows = head_rows(o, b, h, s.Lq, s.D);
#pragma unroll
  for (int m = 0; m < M; m++) {
    int row = first + warp_row + 16 * m + (lane_id() >> 2);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      sum[m][i] = lanes_sum(sum[m][i], 4);
      float inverse = 1.0f / sum[m][i];
#pragma unroll
      for (int n = 0; n < D / 8; n++) acc[m][n][2 * i] *= inverse, acc[m][n][2 * i + 1] *= inverse;
      if (lse && row + 8 * i < s.Lq && lane_id() % 4 == 0) lse[int64_t(head) * s.Lq + row + 8 * i] = (top[m][i] + log2f(sum[m][i])) * kLn2;
    }
    store_rows(acc[m], o_rows.row(row), o_rows.row(row + 8), s.D, o.vec);
  }
}

template <class T, int D, int M>
void run(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v,
         const fx_qk_norm* norm, float scale) {
  AttentionShape s = attention_shape(q, k);
  int tiles = int(ceil_div(s.Lq, 16 * M * kWarps));
  launch(ctx, attention_forward_kernel<T, D, M>, int64_t(s.B) * s.H * tiles, kBlock, kForwardBytes<T, D, M>, heads<T>(o), data<float>(lse),
         heads<T>(q), heads<T>(k), heads<T>(v), s, row_norm<T>(norm, 0, s.D), tiles, scale * kLog2E);
}

fx_status attention_forward(fx_ctx* ctx, const fx_tensor* o, const fx_tensor* lse, const fx_tensor* q, const fx_tensor* k,
                            const fx_tensor* v, const fx_qk_norm* norm, float scale) {
  bool wide = q->shape[3] > 128;
  NormedHeads n{*q, *k, nullptr, nullptr, nullptr};
  if (norm) n = norm_heads(ctx, q, k, *norm, wide, false, 0);
  if (wide) {
    attention_wide_forward(ctx, o, data<float>(lse), &n.q, &n.k, v, scale);
    return FX_STATUS_OK;
  }
  // 128 queries a block read a tile of keys once for twice the work of 64, unless that leaves too many rows empty.
  int64_t Lq = q->shape[1];
  bool large = 10 * round_up(Lq, 128) <= 11 * round_up(Lq, 64);
  with_head_dim(q->shape[3], [&](auto dim) {
    constexpr int D = decltype(dim)::value;
    if (q->dtype == FX_DTYPE_F32) run<float, D, 1>(ctx, o, lse, q, &n.k, v, norm, scale);
    else if (large) run<bf16, D, 2>(ctx, o, lse, q, &n.k, v, norm, scale);
    else run<bf16, D, 1>(ctx, o, lse, q, &n.k, v, norm, scale);
  });
  return FX_STATUS_OK;
}

}  // namespace

void add_attention(fx_ops* ops) {
  ops->attention_forward = attention_forward;
  ops->attention_backward = attention_backward;
}

}  // namespace fx::cuda
