// columns.cuh: sums over rows. A thread owns one vector of columns and kChunk rows, so sums need no other thread; the chunks' sums are then
// added in order. The split depends on the shape alone.
#pragma once
#include "device.cuh"

namespace fx::cuda {

constexpr int kChunk = 32;  // rows of a chunk

inline int64_t chunks_of(int64_t rows) { return ceil_div(rows, kChunk); }

// V floats that a thread keeps.
template <int V>
struct Floats {
  float v[V];
};

// partial [B, chunks, S, C] = per chunk the sums that f.add<V>(sums[S][V], b, row, column) makes; not stored where partial is NULL. An f
// with start<V>(b, column) gets what that returns, once for the chunk, as one more argument after sums.
template <int V, int S, class F>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(float* partial, Divider per_row, Divider chunks, int64_t jobs, int64_t rows, F f) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= jobs) return;
  uint32_t rest = uint32_t(job), b = per_row.split(rest);  // b: item and chunk so far
  int64_t column = int64_t(rest) * V, C = int64_t(per_row.d) * V, at = int64_t(b) * S * C + column;
  rest = b;
  b = chunks.split(rest);
  int64_t first = int64_t(rest) * kChunk, last = min(first + kChunk, rows);
  float sums[S][V] = {};
  if constexpr (requires { f.template start<V>(b, column); }) {
    auto state = f.template start<V>(b, column);
    for (int64_t row = first; row < last; row++) f.template add<V>(sums, state, b, row, column);
  } else {
    for (int64_t row = first; row < last; row++) f.template add<V>(sums, b, row, column);
  }
  if (!partial) return;
#pragma unroll
  for (int s = 0; s < S; s++) store(partial + at + s * C, sums[s]);
}

// partial as above for B items of `rows` rows and C columns; V divides C.
template <int V, int S, class F>
void sum_columns(fx_ctx* ctx, float* partial, int64_t B, int64_t rows, int64_t C, const F& f) {
  int64_t chunks = chunks_of(rows), jobs = B * chunks * (C / V);
  if (jobs >= int64_t(1) << 31) throw std::runtime_error("too many rows for the cuda backend");
  columns_kernel<V, S><<<blocks_for(jobs), kThreads, 0, stream(ctx)>>>(partial, Divider(C / V), Divider(chunks), jobs, rows, f);
}

constexpr int kSlices = kThreads / 32;

// out[b, c] = (or +=) factor · sum over chunks of partial[b, chunk, c]; rows of partial are `width` apart. A block takes 32 columns; its
// warps share the chunks and are added in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(T* out, int64_t stride, const float* partial, int64_t chunks, int64_t C, int64_t width, float factor, bool accumulate) {
  __shared__ double sums[kSlices][32];
  int64_t b = blockIdx.y, c = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  int slice = int(threadIdx.x) / 32;
  double total = 0;
  if (c < C)
    for (int64_t j = slice; j < chunks; j += kSlices) total += double(partial[(b * chunks + j) * width + c]);
  sums[slice][threadIdx.x % 32] = total;
  __syncthreads();
  if (slice > 0 || c >= C) return;
  for (int i = 1; i < kSlices; i++) total += sums[i][threadIdx.x];
  T* p = out + b * stride + c;
  put(p, float(double(factor) * total + (accumulate ? double(to_float(*p)) : 0)));
}

template <class T>
void finish_columns(fx_ctx* ctx, T* out, int64_t stride, const float* partial, int64_t B, int64_t chunks, int64_t C, int64_t width,
                    float factor = 1, bool accumulate = false) {
  dim3 blocks(unsigned(ceil_div(C, 32)), unsigned(B));
  finish_kernel<<<blocks, kThreads, 0, stream(ctx)>>>(out, stride, partial, chunks, C, width, factor, accumulate);
}

}  // namespace fx::cuda
