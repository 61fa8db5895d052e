// columns.cuh: walks rows of columns, with sums over the rows. A block takes up to 32 vectors of columns of a chunk of rows; a thread owns
// one vector of every `down`-th row. The threads' sums are added in order through shared memory, and the chunks' then in order by another
// kernel. The split depends on the shape alone.
#pragma once
#include "device.cuh"

namespace fx::cuda {

inline int64_t chunk_of(int64_t rows) { return rows < 1 << 15 ? 128 : 512; }
inline int64_t chunks_of(int64_t rows) { return ceil_div(rows, chunk_of(rows)); }

// V floats that a thread keeps.
template <int V>
struct Floats {
  float v[V];
};

// Which rows and columns the blocks of a launch take.
struct Columns {
  int64_t rows, chunk, vectors;
  int across, down;  // vectors of columns and rows that a block's threads take at a time
  Divider tiles, chunks, lines;

  Columns(int64_t rows, int64_t vectors)
      : rows(rows),
        chunk(chunk_of(rows)),
        vectors(vectors),
        across(int(ceil_div(vectors, ceil_div(vectors, 32)))),
        down(kThreads / across),
        tiles(ceil_div(vectors, across)),
        chunks(chunks_of(rows)),
        lines(across) {}
  int64_t blocks() const { return int64_t(tiles.d) * chunks.d; }
};

// Calls f.add<V>(sums[S][V], b, row, column) for every vector; partial [B, chunks, S, C] = what is then in sums, per chunk, where it is
// wanted. An f with start<V>(b, first row of the chunk, column) gets what that returns, once for all its rows, as one more argument after
// sums.
template <int V, int S, class F>
__global__ void __launch_bounds__(kThreads) columns_kernel(float* partial, Columns s, F f) {
  uint32_t tile = blockIdx.x, job = s.tiles.split(tile), chunk = job, b = s.chunks.split(chunk);
  uint32_t lane = threadIdx.x, line = s.lines.split(lane);
  int64_t first = int64_t(chunk) * s.chunk, last = min(first + s.chunk, s.rows), column = (int64_t(tile) * s.across + lane) * V;
  float sums[S > 0 ? S : 1][V] = {};
  if (int(line) < s.down && column < s.vectors * V) {
    if constexpr (requires { f.template start<V>(b, first, column); }) {
      auto state = f.template start<V>(b, first, column);
      for (int64_t row = first + line; row < last; row += s.down) f.template add<V>(sums, state, b, row, column);
    } else {
      for (int64_t row = first + line; row < last; row += s.down) f.template add<V>(sums, b, row, column);
    }
  }
  if constexpr (S > 0) {
    if (!partial) return;
    constexpr int pitch = kThreads + 32 / V;  // the V elements of 32 / V lanes meet different banks
    __shared__ float shared[S * V * pitch];
#pragma unroll
    for (int i = 0; i < S * V; i++) shared[i * pitch + threadIdx.x] = sums[i / V][i % V];
    __syncthreads();
    int width = s.across * V;
    int64_t C = s.vectors * V, left = C - int64_t(tile) * width;
    partial += int64_t(job) * S * C + int64_t(tile) * width;
    for (int i = int(threadIdx.x); i < S * width; i += kThreads) {
      int which = i / width, c = i - which * width;
      if (c >= left) continue;
      const float* from = shared + (which * V + c % V) * pitch + c / V;
      double total = 0;
      for (int k = 0; k < s.down; k++) total += double(from[k * s.across]);
      partial[which * C + c] = float(total);
    }
  }
}

// The above for B items of `rows` rows and C columns; V divides C.
template <int V, int S, class F>
void for_columns(fx_ctx* ctx, float* partial, int64_t B, int64_t rows, int64_t C, const F& f) {
  Columns s(rows, C / V);
  if (B * s.blocks() >= int64_t(1) << 31) throw std::runtime_error("too many rows for the cuda backend");
  columns_kernel<V, S><<<unsigned(B * s.blocks()), kThreads, 0, stream(ctx)>>>(partial, s, f);
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
