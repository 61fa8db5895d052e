// conv2d_weights.cu: dw and db of a convolution: dw[o][tap, i] = sum over pixels of dy[pixel][o] · x[source of pixel and tap][i]. The
// pixels are cut into slices that the shape decides; each block sums one tile of dw over one slice, and the slices' sums are added in
// order, so there are no atomics. db is one more column, of ones: the sum of dy.
#include <algorithm>

#include "conv2d.cuh"

namespace fx::cuda {
namespace {

constexpr int64_t kBlocks = 1024;            // about as many as a large card runs in a few rounds
constexpr int64_t kLeastSteps = 8;           // of a slice
constexpr int64_t kPartialBytes = 64 << 20;  // the slices' sums take no more than this

// Pixels of a tile.
template <class T>
constexpr int kDepth = sizeof(T) == 4 ? 16 : 32;

template <class T>
struct WeightGradient {
  Images<T> g, x;  // dy and the input
  Pixels pixels;   // of dy
  int stride, pad_top, pad_left;
  int taps, bias_unit;     // columns are units: (tap, unit of channels), then the one of db; -1: none
  Divider units, tap_row;  // units of a tap, taps of a row
  float* partial;          // [slices][g.C][width]
  int width, slice;        // columns; pixels of a slice
};

struct Plan {
  int64_t units, width, slices, slice;  // columns in units and in elements; pixels of a slice
};

constexpr int kNarrow = 32;  // output channels up to which the narrow tiling serves

Plan plan(const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* w) {
  bool wide = dy->shape[3] > kNarrow;
  int64_t unit = dy->dtype == FX_DTYPE_F32 ? 4 : 8, depth = dy->dtype == FX_DTYPE_F32 ? kDepth<float> : kDepth<bf16>;
  int64_t pixels = dy->shape[0] * dy->shape[1] * dy->shape[2];
  Plan p;
  p.units = (dw ? w->shape[2] * w->shape[3] * ceil_div(w->shape[1], unit) : 0) + (db ? 1 : 0);
  p.width = p.units * unit;
  int64_t tiles = ceil_div(dy->shape[3], wide ? 128 : 32) * ceil_div(p.width, wide ? 64 : 128);
  int64_t most = kPartialBytes / (dy->shape[3] * p.width * 4), wanted = ceil_div(kBlocks, tiles);
  p.slices = std::max<int64_t>(1, std::min({ceil_div(pixels, depth * kLeastSteps), most, wanted}));
  p.slice = round_up(ceil_div(pixels, p.slices), depth);
  p.slices = ceil_div(pixels, p.slice);
  return p;
}

template <class T, class Tiling>
__global__ void __launch_bounds__(kConvBlock, 2) conv2d_weight_gradient_kernel(WeightGradient<T> p, int row_tiles, int col_tiles) {
  constexpr int depth = kDepth<T>, rows = Tiling::rows, cols = Tiling::cols, M = Tiling::M, N = Tiling::N;
  using TileA = Tile<T, rows>;
  using TileB = Tile<T, cols>;
  constexpr int stage = depth * (TileA::kPitch + TileB::kPitch);
  constexpr int step_a = kConvBlock / TileA::kUnits, step_b = kConvBlock / TileB::kUnits;
  extern __shared__ __align__(128) char memory[];
  auto a_tile = [&](int step) { return TileA{memory + step % kConvStages * stage}; };
  auto b_tile = [&](int step) { return TileB{memory + step % kConvStages * stage + depth * TileA::kPitch}; };
  int tile = int(blockIdx.x) % (row_tiles * col_tiles), slice = int(blockIdx.x) / (row_tiles * col_tiles);
  int first_row = tile / col_tiles * rows, first_col = tile % col_tiles * cols;
  int first = slice * p.slice, last = min(first + p.slice, p.pixels.count), steps = (last - first + depth - 1) / depth;

  int unit_a = int(threadIdx.x) % TileA::kUnits, channel_a = first_row + unit_a * kUnit<T>, left_a = p.g.C - channel_a;
  int unit_b = int(threadIdx.x) % TileB::kUnits, column = first_col / kUnit<T> + unit_b;
  uint32_t rest = uint32_t(column), tap = p.units.split(rest), kx = tap, ky = p.tap_row.split(kx);
  int channel_b = int(rest) * kUnit<T>, left_b = p.x.C - channel_b;
  bool is_bias = column == p.bias_unit, is_data = !is_bias && int(tap) < p.taps;

  auto fetch_a = [&](TileA a, int k, int pixel) {
    int b, y, x;
    p.pixels.split(min(pixel, p.pixels.count - 1), b, y, x);
    const T* from = p.g.at(b, y, x) + channel_a;
    bool exists = pixel < last && left_a > 0;
    if (p.g.vec) cp_async16(a.at(k, unit_a), exists ? from : p.g.data, exists);
    else load_unit(a.at(k, unit_a), from, exists ? min(kUnit<T>, left_a) : 0);
  };
  auto fetch_b = [&](TileB tile_b, int k, int pixel) {
    char* to = tile_b.at(k, unit_b);
    if (is_bias) {
      *reinterpret_cast<uint4*>(to) = make_uint4(sizeof(T) == 4 ? 0x3f800000 : 0x3f80, 0, 0, 0);  // 1, 0, 0, ...
      return;
    }
    int b, y, x;
    p.pixels.split(min(pixel, p.pixels.count - 1), b, y, x);
    y = y * p.stride - p.pad_top + int(ky), x = x * p.stride - p.pad_left + int(kx);
    bool exists = is_data && pixel < last && unsigned(y) < unsigned(p.x.Y) && unsigned(x) < unsigned(p.x.X);
    const T* from = p.x.at(b, y, x) + channel_b;
    if (p.x.vec) cp_async16(to, exists ? from : p.x.data, exists);
    else load_unit(to, from, exists ? min(kUnit<T>, left_b) : 0);
  };
  auto fetch = [&](int step) {
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < depth; i += step_a) {
        int k = int(threadIdx.x) / TileA::kUnits + i;
        fetch_a(a_tile(step), k, first + step * depth + k);
      }
#pragma unroll
      for (int i = 0; i < depth; i += step_b) {
        int k = int(threadIdx.x) / TileB::kUnits + i;
        fetch_b(b_tile(step), k, first + step * depth + k);
      }
    }
    cp_async_commit();
  };

  float acc[M][N][4] = {};
  int warp = int(threadIdx.x) / 32, warp_row = warp / Tiling::Wn * 16 * M, warp_col = warp % Tiling::Wn * 8 * N;
  conv_ring(steps, fetch, [&](int step) { product_tn<depth>(acc, a_tile(step), warp_row, b_tile(step), warp_col); });

  int col = first_col + warp_col;
#pragma unroll
  for (int m = 0; m < M; m++) {
    float* to[2] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int o = first_row + warp_row + 16 * m + 8 * h + (lane_id() >> 2);
      if (o < p.g.C) to[h] = p.partial + (int64_t(slice) * p.g.C + o) * p.width + col;
    }
    store_rows(acc[m], to[0], to[1], p.width - col, true);
  }
}

// dw[o][i][tap] += sum over slices of partial[slice][o][tap][i], db[o] likewise of the last column. 32 channels of up to 32 taps a block.
__global__ void __launch_bounds__(kThreads) conv2d_weight_sum_kernel(float* dw, float* db, const float* partial, int slices, int64_t O,
                                                                     int I, int taps, int padded, int64_t width) {
  __shared__ float tile[32 * 33];
  int64_t o = blockIdx.z;
  auto sum = [&](int64_t column) {
    const float* from = partial + o * width + column;
    float total = 0;
#pragma unroll 8
    for (int s = 0; s < slices; s++) total += from[s * O * width];
    return total;
  };
  if (db && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) db[o] += sum(int64_t(taps) * padded);
  int i0 = int(blockIdx.x) * 32, tap0 = int(blockIdx.y) * 32, count = min(32, taps - tap0), channels = min(32, I - i0), pitch = count | 1;
  for (int n = int(threadIdx.x); n < 32 * count; n += kThreads)
    if (n % 32 < channels) tile[n % 32 * pitch + n / 32] = sum(int64_t(tap0 + n / 32) * padded + i0 + n % 32);
  __syncthreads();
  for (int n = int(threadIdx.x); n < channels * count; n += kThreads)
    dw[(o * I + i0 + n / count) * taps + tap0 + n % count] += tile[n / count * pitch + n % count];
}

template <class T>
void run(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* x, const fx_tensor* w,
         const fx_conv2d_args* args, float* partial) {
  Plan plan_ = plan(dw, db, dy, w);
  int KX = int(w->shape[3]), taps = dw ? int(w->shape[2]) * KX : 0, units = int(ceil_div(w->shape[1], kUnit<T>));
  WeightGradient<T> p{images<T>(dy),
                      images<T>(x),
                      Pixels(dy->shape[0], int(dy->shape[1]), int(dy->shape[2])),
                      args->stride,
                      args->pad_top,
                      args->pad_left,
                      taps,
                      db ? taps * units : -1,
                      Divider(units),
                      Divider(KX),
                      partial,
                      int(plan_.width),
                      int(plan_.slice)};
  auto go = [&](auto tiling) {
    using Tiling = decltype(tiling);
    int64_t row_tiles = ceil_div(p.g.C, Tiling::rows), col_tiles = ceil_div(p.width, Tiling::cols);
    launch(ctx, conv2d_weight_gradient_kernel<T, Tiling>, plan_.slices * row_tiles * col_tiles, kConvBlock,
           kConvStages * kDepth<T> * (Tiling::rows + Tiling::cols) * int(sizeof(T)), p, int(row_tiles), int(col_tiles));
  };
  if (p.g.C <= kNarrow) go(ConvTiling<1, 4, 2, 4>{});
  else go(ConvTiling<2, 2, 4, 4>{});
  int I = int(w->shape[1]);
  dim3 grid(dw ? unsigned(ceil_div(I, 32)) : 1, dw ? unsigned(ceil_div(taps, 32)) : 1, unsigned(p.g.C));
  conv2d_weight_sum_kernel<<<grid, kThreads, 0, stream(ctx)>>>(data<float>(dw), data<float>(db), partial, int(plan_.slices), p.g.C, I, taps,
                                                               units * kUnit<T>, plan_.width);
}

}  // namespace

int64_t conv2d_weight_gradient_bytes(const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* w) {
  if (!dw && !db) return 0;
  Plan p = plan(dw, db, dy, w);
  return p.slices * dy->shape[3] * p.width * 4;
}

void conv2d_weight_gradient(fx_ctx* ctx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* x,
                            const fx_tensor* w, const fx_conv2d_args* args, float* partial) {
  dispatch(dy->dtype, [&](auto t) {
    run<decltype(t)>(ctx, dw, db, dy, x, w, args, partial);
    return FX_STATUS_OK;
  });
}

}  // namespace fx::cuda
