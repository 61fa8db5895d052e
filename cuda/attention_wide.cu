// attention_wide.cu: attention and its gradients for head dimensions from 136 to 512, which only the middle of an autoencoder has. A warp
// owns a few rows, whose elements lie in its lanes' registers (lane i has the elements i, i + 32, ...), and reads the other side's rows one
// by one; the four warps of a block read the same rows, so most come from the cache. f32 throughout, for bf16 tensors too.
#include "attention.cuh"

namespace fx::cuda {
namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps;
constexpr int kElements = 16;  // of a row in a lane: 512 in all
constexpr int kForwardRows = 4, kBackwardRows = 2;

using Row = float[kElements];

template <class T>
__device__ inline void read(Row& x, const T* row, int D) {
#pragma unroll
  for (int i = 0; i < kElements; i++) {
    int c = lane_id() + 32 * i;
    x[i] = row && c < D ? to_float(row[c]) : 0;
  }
}

template <class T>
__device__ inline void write(T* row, const Row& x, float factor, int D) {
#pragma unroll
  for (int i = 0; i < kElements; i++) {
    int c = lane_id() + 32 * i;
    if (row && c < D) put(row + c, x[i] * factor);
  }
}

__device__ inline float dot(const Row& x, const Row& y) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kElements; i++) sum = fmaf(x[i], y[i], sum);
  return lanes_sum(sum);
}

__device__ inline void add(Row& x, float factor, const Row& y) {
#pragma unroll
  for (int i = 0; i < kElements; i++) x[i] = fmaf(factor, y[i], x[i]);
}

// The head and the first row of this warp, of the R rows it owns out of `length`.
struct Owned {
  int b, h, head, first;
  __device__ Owned(const AttentionShape& s, int length, int R) {
    int groups = (length + R * kWarps - 1) / (R * kWarps);
    head = int(blockIdx.x) / groups, b = head / s.H, h = head % s.H;
    first = (int(blockIdx.x) % groups * kWarps + int(threadIdx.x) / 32) * R;
  }
};

int64_t blocks(const AttentionShape& s, int length, int R) { return int64_t(s.B) * s.H * ceil_div(length, R * kWarps); }

template <class T>
__global__ void __launch_bounds__(kBlock)
    attention_wide_forward_kernel(Heads<T> o, float* lse, Heads<T> q, Heads<T> k, Heads<T> v, AttentionShape s, float scale_log2) {
  constexpr int R = kForwardRows;
  Owned own(s, s.Lq, R);
  HeadRows<T> q_rows = head_rows(q, own.b, own.h, s.Lq, s.D), o_rows = head_rows(o, own.b, own.h, s.Lq, s.D);
  HeadRows<T> k_rows = head_rows(k, own.b, own.h, s.Lk, s.D), v_rows = head_rows(v, own.b, own.h, s.Lk, s.D);
  Row x[R], y[R] = {};
  float top[R], sum[R] = {};
#pragma unroll
  for (int r = 0; r < R; r++) read(x[r], q_rows.row(own.first + r), s.D), top[r] = -INFINITY;
  for (int j = 0; j < s.Lk; j++) {
    Row key, value;
    read(key, k_rows.row(j), s.D), read(value, v_rows.row(j), s.D);
#pragma unroll
    for (int r = 0; r < R; r++) {
      float score = dot(x[r], key) * scale_log2;
      if (score > top[r]) {  // the same in all lanes, and rare after the first keys
        float alpha = exp2_fast(top[r] - score);
        top[r] = score, sum[r] *= alpha;
#pragma unroll
        for (int i = 0; i < kElements; i++) y[r][i] *= alpha;
      }
      float p = exp2_fast(score - top[r]);
      sum[r] += p;
      add(y[r], p, value);
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    write(o_rows.row(own.first + r), y[r], 1.0f / sum[r], s.D);
    if (lse && own.first + r < s.Lq && lane_id() == 0) lse[int64_t(own.head) * s.Lq + own.first + r] = (top[r] + log2f(sum[r])) * kLn2;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    attention_wide_backward_keys_kernel(Heads<T> dk, Heads<T> dv, Heads<T> g, Heads<T> q, Heads<T> k, Heads<T> v, const float* lse,
                                        const float* delta, AttentionShape s, float scale) {
  constexpr int R = kBackwardRows;
  Owned own(s, s.Lk, R);
  HeadRows<T> k_rows = head_rows(k, own.b, own.h, s.Lk, s.D), v_rows = head_rows(v, own.b, own.h, s.Lk, s.D);
  HeadRows<T> q_rows = head_rows(q, own.b, own.h, s.Lq, s.D), g_rows = head_rows(g, own.b, own.h, s.Lq, s.D);
  lse += int64_t(own.head) * s.Lq, delta += int64_t(own.head) * s.Lq;
  Row key[R], value[R], sum_k[R] = {}, sum_v[R] = {};
#pragma unroll
  for (int r = 0; r < R; r++) read(key[r], k_rows.row(own.first + r), s.D), read(value[r], v_rows.row(own.first + r), s.D);
  for (int l = 0; l < s.Lq; l++) {
    Row query, grad;
    read(query, q_rows.row(l), s.D), read(grad, g_rows.row(l), s.D);
    float row_lse = lse[l] * kLog2E, row_delta = delta[l];
#pragma unroll
    for (int r = 0; r < R; r++) {
      float p = exp2_fast(dot(key[r], query) * scale * kLog2E - row_lse);
      float ds = p * (dot(value[r], grad) - row_delta);
      add(sum_v[r], p, grad);
      add(sum_k[r], ds, query);
    }
  }
  HeadRows<T> dk_rows = head_rows(dk, own.b, own.h, s.Lk, s.D), dv_rows = head_rows(dv, own.b, own.h, s.Lk, s.D);
#pragma unroll
  for (int r = 0; r < R; r++) {
    write(dk_rows.row(own.first + r), sum_k[r], scale, s.D);
    write(dv_rows.row(own.first + r), sum_v[r], 1, s.D);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    attention_wide_backward_queries_kernel(Heads<T> dq, Heads<T> g, Heads<T> q, Heads<T> k, Heads<T> v, const float* lse,
                                           const float* delta, AttentionShape s, float scale) {
  constexpr int R = kBackwardRows;
  Owned own(s, s.Lq, R);
  HeadRows<T> k_rows = head_rows(k, own.b, own.h, s.Lk, s.D), v_rows = head_rows(v, own.b, own.h, s.Lk, s.D);
  HeadRows<T> q_rows = head_rows(q, own.b, own.h, s.Lq, s.D), g_rows = head_rows(g, own.b, own.h, s.Lq, s.D);
  Row query[R], grad[R], sum[R] = {};
  float row_lse[R], row_delta[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    int l = own.first + r;
    read(query[r], q_rows.row(l), s.D), read(grad[r], g_rows.row(l), s.D);
    row_lse[r] = l < s.Lq ? lse[int64_t(own.head) * s.Lq + l] * kLog2E : 0;
    row_delta[r] = l < s.Lq ? delta[int64_t(own.head) * s.Lq + l] : 0;
  }
  for (int j = 0; j < s.Lk; j++) {
    Row key, value;
    read(key, k_rows.row(j), s.D), read(value, v_rows.row(j), s.D);
#pragma unroll
    for (int r = 0; r < R; r++) {
      float p = exp2_fast(dot(query[r], key) * scale * kLog2E - row_lse[r]);
      add(sum[r], p * (dot(grad[r], value) - row_delta[r]), key);
    }
  }
  HeadRows<T> dq_rows = head_rows(dq, own.b, own.h, s.Lq, s.D);
#pragma unroll
  for (int r = 0; r < R; r++) write(dq_rows.row(own.first + r), sum[r], scale, s.D);
}

}  // namespace

void attention_wide_forward(fx_ctx* ctx, const fx_tensor* o, float* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v,
                            float scale) {
  AttentionShape s = attention_shape(q, k);
  dispatch(q->dtype, [&](auto e) {
    using T = decltype(e);
    launch(ctx, attention_wide_forward_kernel<T>, blocks(s, s.Lq, kForwardRows), kBlock, 0, heads<T>(o), lse, heads<T>(q), heads<T>(k),
           heads<T>(v), s, scale * kLog2E);
    return FX_STATUS_OK;
  });
}

void attention_wide_backward(fx_ctx* ctx, const BackwardTensors& t, float scale) {
  AttentionShape s = attention_shape(t.q, t.k);
  dispatch(t.q->dtype, [&](auto e) {
    using T = decltype(e);
    Heads<T> g = heads<T>(t.d_o), q = heads<T>(t.q), k = heads<T>(t.k), v = heads<T>(t.v);
    launch(ctx, attention_wide_backward_keys_kernel<T>, blocks(s, s.Lk, kBackwardRows), kBlock, 0, heads<T>(t.dk), heads<T>(t.dv), g, q, k,
           v, t.lse, t.delta, s, scale);
    launch(ctx, attention_wide_backward_queries_kernel<T>, blocks(s, s.Lq, kBackwardRows), kBlock, 0, heads<T>(t.dq), g, q, k, v, t.lse,
           t.delta, s, scale);
    return FX_STATUS_OK;
  });
}

}  // namespace fx::cuda
