// conv2d.cu: convolution of [B,Y,X,C] images, forward and the gradient of its input, by one kernel: a destination pixel is a row of the
// product, its sum goes over (tap, channel of the source), and the source pixel of a tap is
//   forward         y·stride − pad + tap
//   input gradient  y' + c − tap', where the destination pixels are taken apart by their remainder modulo the stride: those of one
//   remainder
//                   see only every stride-th tap, and together they have as many products as forward
// Weights are first copied to [destination channel][tap][source channel], the order of the sum.
#include "conv2d.cuh"

namespace fx::cuda {
namespace {

// Elements of the sum in a tile: 64 bytes a row.
template <class T>
constexpr int kDepth = 4 * kUnit<T>;

template <class T>
struct Gather {
  Images<T> src, dst;                 // dst: the pixels of one remainder
  Pixels pixels;                      // of dst
  int scale, first_y, first_x, sign;  // source y = scale · y + first_y + sign · tap
  int taps_y, taps_x;                 // may be 0
  Divider units, tap_row;             // units of a tap, taps of a row
  const T* w;                         // [dst.C][w_taps][units · kUnit]
  int w_taps, w_first, w_row, w_col;  // where tap (ty, tx) lies in w: w_first + ty · w_row + tx · w_col
  const T* bias;
};

// What a thread copies of each tile: one unit of Rows rows, kConvBlock / 4 rows apart.
template <class T, int Rows>
struct GatherRows {
  const T* base[Rows];  // source pixel of tap (0, 0), which may not exist
  int y[Rows], x[Rows];

  __device__ GatherRows(const Gather<T>& p, int first) {
#pragma unroll
    for (int i = 0; i < Rows; i++) {
      int m = first + int(threadIdx.x) / 4 + i * kConvBlock / 4, b = 0;
      y[i] = x[i] = 0;
      if (m < p.pixels.count) p.pixels.split(m, b, y[i], x[i]);
      y[i] = y[i] * p.scale + p.first_y, x[i] = x[i] * p.scale + p.first_x;
      base[i] = p.src.at(b, y[i], x[i]);
      if (m >= p.pixels.count) y[i] = INT32_MIN / 2;  // outside of every image
    }
  }
};

// out [batch][C][Rp] = in [batch][R][C] transposed, zeros from R to Rp. 32 rows of up to 32 columns a block; rows that end in the tile
// follow one another in memory and are read in one go.
template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_pack_kernel(T* out, const T* in, int R, int C, int Rp) {
  __shared__ float tile[32 * 33];
  int c0 = int(blockIdx.x) * 32, r0 = int(blockIdx.y) * 32, width = min(32, C - c0), pitch = width | 1;  // odd: no bank conflicts
  in += int64_t(blockIdx.z) * R * C, out += int64_t(blockIdx.z) * C * Rp;
  for (int i = int(threadIdx.x); i < 32 * width; i += kThreads) {
    int r = i / width, c = i % width;
    tile[r * pitch + c] = r0 + r < R ? to_float(in[int64_t(r0 + r) * C + c0 + c]) : 0;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < 32 * width; i += kThreads) {
    int c = i / 32, r = i % 32;
    if (r0 + r < Rp) put(out + int64_t(c0 + c) * Rp + r0 + r, tile[r * pitch + c]);
  }
}

template <class T, class Tiling>
__global__ void __launch_bounds__(kConvBlock, 2) conv2d_gather_kernel(Gather<T> p, int col_tiles) {
  constexpr int depth = kDepth<T>, rows = Tiling::rows, cols = Tiling::cols, M = Tiling::M, N = Tiling::N;
  constexpr int a_rows = rows * 4 / kConvBlock;
  extern __shared__ __align__(128) char memory[];
  auto a_tile = [&](int step) { return Tile<T, depth>{memory + step % kConvStages * (rows + cols) * 64}; };
  auto b_tile = [&](int step) { return Tile<T, depth>{memory + (step % kConvStages * (rows + cols) + rows) * 64}; };
  int first_row = int(blockIdx.x) / col_tiles * rows, first_col = int(blockIdx.x) % col_tiles * cols;
  int unit = int(threadIdx.x) % 4, row = int(threadIdx.x) / 4, taps = p.taps_y * p.taps_x, steps = (taps * int(p.units.d) + 3) / 4;
  GatherRows<T, a_rows> from(p, first_row);

  auto fetch = [&](int step) {
    if (step < steps) {
      uint32_t c = uint32_t(step * 4 + unit), tap = p.units.split(c), tx = tap, ty = p.tap_row.split(tx);
      bool exists = int(tap) < taps;
      int dy = p.sign * int(ty), dx = p.sign * int(tx), channel = int(c) * kUnit<T>;
      int64_t offset = dy * p.src.row + dx * p.src.pixel + channel;
      Tile<T, depth> a = a_tile(step), b = b_tile(step);
#pragma unroll
      for (int i = 0; i < a_rows; i++) {
        bool inside = exists && unsigned(from.y[i] + dy) < unsigned(p.src.Y) && unsigned(from.x[i] + dx) < unsigned(p.src.X);
        char* to = a.at(row + i * kConvBlock / 4, unit);
        if (p.src.vec) cp_async16(to, inside ? from.base[i] + offset : p.src.data, inside);
        else load_unit(to, from.base[i] + offset, inside ? min(kUnit<T>, p.src.C - channel) : 0);
      }
      int64_t w_at = (int64_t(p.w_first) + int(ty) * p.w_row + int(tx) * p.w_col) * p.units.d * kUnit<T> + channel;
#pragma unroll
      for (int i = 0; i < cols; i += kConvBlock / 4) {
        int n = first_col + row + i;
        bool inside = exists && n < p.dst.C;
        if (row + i < cols)
          cp_async16(b.at(row + i, unit), inside ? p.w + int64_t(n) * p.w_taps * p.units.d * kUnit<T> + w_at : p.w, inside);
      }
    }
    cp_async_commit();
  };

  float acc[M][N][4] = {};
  int warp = int(threadIdx.x) / 32, warp_row = warp / Tiling::Wn * 16 * M, warp_col = warp % Tiling::Wn * 8 * N;
  conv_ring(steps, fetch, [&](int step) { product_nt<depth>(acc, a_tile(step), warp_row, b_tile(step), warp_col); });

  int col = first_col + warp_col, g = lane_id() >> 2, t = lane_id() & 3;
  if (p.bias) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int c = col + 8 * n + 2 * t + e;
        float bias = c < p.dst.C ? to_float(p.bias[c]) : 0;
#pragma unroll
        for (int m = 0; m < M; m++) acc[m][n][e] += bias, acc[m][n][2 + e] += bias;
      }
  }
#pragma unroll
  for (int m = 0; m < M; m++) {
    T* to[2] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int i = first_row + warp_row + 16 * m + 8 * h + g, b, y, x;
      if (i >= p.pixels.count) continue;
      p.pixels.split(i, b, y, x);
      to[h] = p.dst.at(b, y, x) + col;
    }
    store_rows(acc[m], to[0], to[1], p.dst.C - col, p.dst.vec);
  }
}

template <class T>
void gather(fx_ctx* ctx, const Gather<T>& p) {
  auto run = [&](auto tiling) {
    using Tiling = decltype(tiling);
    int64_t col_tiles = ceil_div(p.dst.C, Tiling::cols), row_tiles = ceil_div(p.pixels.count, Tiling::rows);
    launch(ctx, conv2d_gather_kernel<T, Tiling>, col_tiles * row_tiles, kConvBlock, kConvStages * (Tiling::rows + Tiling::cols) * 64, p,
           int(col_tiles));
  };
  // bf16: 128 channels a block read a source pixel once for twice the work of 64, unless that leaves too many columns empty.
  bool wide = sizeof(T) == 2 && 10 * round_up(p.dst.C, 128) <= 11 * round_up(p.dst.C, 64);
  if (p.dst.C <= 16) run(ConvTiling<4, 1, 2, 2>{});
  else if (!wide) run(ConvTiling<2, 2, 4, 4>{});
  else if constexpr (sizeof(T) == 2) run(ConvTiling<2, 2, 4, 8>{});
}

// Weights in the kernel's order: [O][taps][I], or for the input gradient [I][taps][O], the last padded to whole units. They are made in
// `memory`, unless w is in that order.
template <class T>
const T* pack(fx_ctx* ctx, T* memory, const fx_tensor* w, bool transposed) {
  int O = int(w->shape[0]), I = int(w->shape[1]), taps = int(w->shape[2] * w->shape[3]);
  if (!transposed && taps == 1 && I % kUnit<T> == 0 && reinterpret_cast<uintptr_t>(w->data) % 16 == 0) return data<T>(w);
  int R = transposed ? O : I, C = transposed ? I * taps : taps, Rp = int(round_up(R, kUnit<T>));
  dim3 grid(unsigned(ceil_div(C, 32)), unsigned(ceil_div(Rp, 32)), transposed ? 1u : unsigned(O));
  conv2d_pack_kernel<<<grid, kThreads, 0, stream(ctx)>>>(memory, data<T>(w), R, C, Rp);
  return memory;
}

int64_t packed_bytes(const fx_tensor* w, bool transposed) {
  int64_t unit = w->dtype == FX_DTYPE_F32 ? 4 : 8, outer = w->shape[transposed ? 1 : 0], inner = w->shape[transposed ? 0 : 1];
  return outer * w->shape[2] * w->shape[3] * round_up(inner, unit) * (16 / unit);
}

template <class T>
void forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b, const fx_conv2d_args* args,
             T* packed) {
  int KY = int(w->shape[2]), KX = int(w->shape[3]);
  const T* weights = pack(ctx, packed, w, false);
  Gather<T> p{images<T>(x),
              images<T>(y),
              Pixels(y->shape[0], int(y->shape[1]), int(y->shape[2])),
              args->stride,
              -args->pad_top,
              -args->pad_left,
              1,
              KY,
              KX,
              Divider(ceil_div(x->shape[3], kUnit<T>)),
              Divider(KX),
              weights,
              KY * KX,
              0,
              KX,
              1,
              data<T>(b)};
  gather(ctx, p);
}

template <class T>
void input_gradient(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, const fx_tensor* w, const fx_conv2d_args* args, T* packed) {
  int KY = int(w->shape[2]), KX = int(w->shape[3]), s = args->stride;
  const T* weights = pack(ctx, packed, w, true);
  Images<T> src = images<T>(dy), all = images<T>(dx);
  for (int cy = 0; cy < s && cy < all.Y; cy++)
    for (int cx = 0; cx < s && cx < all.X; cx++) {
      // Taps ky = ky0 + s · ty meet rows y = s · y' + cy, and their source row is y' + (cy + pad − ky0) / s − ty.
      int ky0 = (cy + args->pad_top) % s, kx0 = (cx + args->pad_left) % s;
      int taps_y = KY > ky0 ? (KY - ky0 + s - 1) / s : 0, taps_x = KX > kx0 ? (KX - kx0 + s - 1) / s : 0;
      Images<T> dst = all;
      dst.data += cy * all.row + cx * all.pixel, dst.row *= s, dst.pixel *= s;
      Gather<T> p{src,
                  dst,
                  Pixels(dx->shape[0], (all.Y - cy + s - 1) / s, (all.X - cx + s - 1) / s),
                  1,
                  (cy + args->pad_top - ky0) / s,
                  (cx + args->pad_left - kx0) / s,
                  -1,
                  taps_y,
                  taps_x,
                  Divider(ceil_div(src.C, kUnit<T>)),
                  Divider(taps_x ? taps_x : 1),
                  weights,
                  KY * KX,
                  ky0 * KX + kx0,
                  s * KX,
                  s,
                  nullptr};
      gather(ctx, p);
    }
}

// Pixels are counted in 32 bits.
bool too_large(const fx_tensor* image) { return image->shape[0] * image->shape[1] * image->shape[2] >= INT32_MAX; }

fx_status conv2d_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* w, const fx_tensor* b,
                         const fx_conv2d_args* args) {
  if (too_large(y)) return fail(ctx, FX_STATUS_UNSUPPORTED, "conv2d_forward: more than 2^31 pixels");
  void* packed = workspace(ctx, packed_bytes(w, false));
  return dispatch(x->dtype, [&](auto t) {
    forward(ctx, y, x, w, b, args, static_cast<decltype(t)*>(packed));
    return FX_STATUS_OK;
  });
}

fx_status conv2d_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                          const fx_tensor* x, const fx_tensor* w, const fx_conv2d_args* args) {
  if (too_large(dy) || too_large(x)) return fail(ctx, FX_STATUS_UNSUPPORTED, "conv2d_backward: more than 2^31 pixels");
  int64_t bytes = dx ? round_up(packed_bytes(w, true), 256) : 0;
  char* memory = static_cast<char*>(workspace(ctx, bytes + conv2d_weight_gradient_bytes(dw, db, dy, w)));
  return dispatch(dy->dtype, [&](auto t) {
    if (dx) input_gradient(ctx, dx, dy, w, args, reinterpret_cast<decltype(t)*>(memory));
    if (dw || db) conv2d_weight_gradient(ctx, dw, db, dy, x, w, args, reinterpret_cast<float*>(memory + bytes));
    return FX_STATUS_OK;
  });
}

}  // namespace

void add_conv2d(fx_ops* ops) {
  ops->conv2d_forward = conv2d_forward;
  ops->conv2d_backward = conv2d_backward;
}

}  // namespace fx::cuda
