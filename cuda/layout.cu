// layout.cu: packing of pixels into tokens, copies between any strides and dtypes, fill, and the sum over a batch.
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

// ---- pack, unpack ----

// Moves between an image [B,2H,2W,C] and its tokens [B,H·W,4C]: a thread per (token, channel), whose four elements are neighbours in the
// token. U: an integer of the element's size; Four: four of them, or U where tokens are not aligned.
struct PackShape {
  Divider channels, across, down;
  int64_t jobs, image[3], tokens[2];
};

template <class U, bool kPack, bool kWide>
__global__ void __launch_bounds__(kThreads) pack_kernel(U* image, U* tokens, PackShape s) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= s.jobs) return;
  uint32_t c = uint32_t(job), column = s.channels.split(c), row = s.across.split(column), b = s.down.split(row);
  U* pixel = image + b * s.image[0] + 2 * row * s.image[1] + 2 * column * s.image[2] + c;
  U* token = tokens + b * s.tokens[0] + (int64_t(row) * s.across.d + column) * s.tokens[1] + 4 * int64_t(c);
  const int64_t at[4] = {0, s.image[2], s.image[1], s.image[1] + s.image[2]};
  Pack<U, kWide ? 4 : 1> four[kWide ? 1 : 4];
  U* v = &four[0].v[0];
  if (kPack) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = pixel[at[i]];
    if constexpr (!kWide) {
      for (int i = 0; i < 4; i++) token[i] = v[i];
    } else if constexpr (sizeof(U) == 4) {
      store_words(token, {v[0], v[1], v[2], v[3]});
    } else {
      store_words(token, {v[0] | uint32_t(v[1]) << 16, v[2] | uint32_t(v[3]) << 16});
    }
  } else {
    if (kWide) four[0] = *reinterpret_cast<decltype(&four[0])>(token);
    else
      for (int i = 0; i < 4; i++) v[i] = token[i];
#pragma unroll
    for (int i = 0; i < 4; i++) pixel[at[i]] = v[i];
  }
}

template <bool kPack>
fx_status repack(fx_ctx* ctx, const fx_tensor* image, const fx_tensor* tokens) {
  int64_t H = image->shape[1] / 2, W = image->shape[2] / 2, C = image->shape[3], jobs = image->shape[0] * H * W * C;
  if (jobs >= int64_t(1) << 31) return fail(ctx, FX_STATUS_UNSUPPORTED, "pack: %lld elements are too many", (long long)(4 * jobs));
  PackShape s{Divider(C), Divider(W), Divider(H), jobs, {}, {}};
  for (int d = 0; d < 3; d++) s.image[d] = image->strides[d];
  for (int d = 0; d < 2; d++) s.tokens[d] = tokens->strides[d];
  auto run = [&](auto u) {
    using U = decltype(u);
    bool wide = vectors(tokens, 4 * int64_t(sizeof(U)));
    auto kernel = wide ? pack_kernel<U, kPack, true> : pack_kernel<U, kPack, false>;
    kernel<<<blocks_for(jobs), kThreads, 0, stream(ctx)>>>(data<U>(image), data<U>(tokens), s);
    return FX_STATUS_OK;
  };
  return image->dtype == FX_DTYPE_F32 ? run(uint32_t{}) : run(uint16_t{});
}

fx_status pack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) { return repack<true>(ctx, x, y); }
fx_status unpack(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) { return repack<false>(ctx, y, x); }

// ---- layout ----

// Conversions go through f32; a copy keeps the bits.
template <class Y, class X>
struct Convert {
  __device__ static Y of(X x) {
    Y y;
    put(&y, to_float(x));
    return y;
  }
};
template <class T>
struct Convert<T, T> {
  __device__ static T of(T x) { return x; }
};
// The dimensions of a copy with those of size 1 left out and gapless ones merged. The last is where y is dense.
struct CopyPlan {
  int rank = 0;
  int64_t n[FX_MAX_RANK + 2], ys[FX_MAX_RANK + 2], xs[FX_MAX_RANK + 2], total = 1;

  CopyPlan(const fx_tensor* y, const fx_tensor* x) {
    for (int d = 0; d < y->rank; d++) {
      int64_t size = y->shape[d];
      total *= size;
      int last = rank - 1;
      if (size == 1) continue;
      if (last >= 0 && ys[last] == size * y->strides[d] && xs[last] == size * x->strides[d])
        n[last] *= size, ys[last] = y->strides[d], xs[last] = x->strides[d];
      else push(size, y->strides[d], x->strides[d]);
    }
    if (rank == 0) push(1, 1, 1);
    to_back(densest(ys, rank));
  }

  void push(int64_t size, int64_t y, int64_t x) { n[rank] = size, ys[rank] = y, xs[rank] = x, rank++; }

  // Of the first count dimensions the one with the smallest stride other than 0.
  int densest(const int64_t* strides, int count) const {
    int best = 0;
    for (int d = 1; d < count; d++)
      if (strides[d] && (!strides[best] || strides[d] <= strides[best])) best = d;
    return best;
  }

  // Moves dimension d behind all others.
  void to_back(int d) {
    int64_t size = n[d], y = ys[d], x = xs[d];
    for (; d + 1 < rank; d++) n[d] = n[d + 1], ys[d] = ys[d + 1], xs[d] = xs[d + 1];
    n[d] = size, ys[d] = y, xs[d] = x;
  }
};

// The outer dimensions of a copy, as a kernel takes them.
struct Outer {
  int rank;
  Divider n[FX_MAX_RANK + 1];
  int64_t ys[FX_MAX_RANK + 1], xs[FX_MAX_RANK + 1];

  Outer(const CopyPlan& plan, int inner) : rank(plan.rank - inner) {
    for (int d = 0; d < rank; d++) n[d] = Divider(plan.n[d]), ys[d] = plan.ys[d], xs[d] = plan.xs[d];
  }
  __device__ void at(uint32_t row, int64_t& y, int64_t& x) const {
    for (int d = rank - 1; d >= 0; d--) {
      uint32_t i = row;
      row = n[d].split(i);
      y += i * ys[d], x += i * xs[d];
    }
  }
};

// Rows that are dense on both sides: vectors of V elements.
template <class Y, class X, int V>
__global__ void __launch_bounds__(kThreads) copy_rows_kernel(Y* y, const X* x, Divider per_row, int64_t total, Outer outer) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= total) return;
  uint32_t i = uint32_t(job), row = per_row.split(i);
  int64_t ya = int64_t(i) * V, xa = ya;
  outer.at(row, ya, xa);
  Pack<X, V> in = *reinterpret_cast<const Pack<X, V>*>(x + xa);
  Pack<Y, V> out;
#pragma unroll
  for (int k = 0; k < V; k++) out.v[k] = Convert<Y, X>::of(in.v[k]);
  *reinterpret_cast<Pack<Y, V>*>(y + ya) = out;
}

constexpr int kTile = 32;

// A tile [down, across] of a transposition goes through shared memory, so that both sides are walked where they are dense.
template <class Y, class X>
__global__ void __launch_bounds__(kThreads) transpose_kernel(Y* y, const X* x, Divider across_tiles, Divider down_tiles, int64_t across,
                                                             int64_t down, int64_t yi, int64_t yj, int64_t xi, int64_t xj, Outer outer) {
  __shared__ Y tile[kTile][kTile + 4 / sizeof(Y)];  // a column's elements lie in different banks
  uint32_t i0 = blockIdx.x, j0 = across_tiles.split(i0), row = down_tiles.split(j0);
  int64_t ya = 0, xa = 0, i = int64_t(i0) * kTile, j = int64_t(j0) * kTile;
  outer.at(row, ya, xa);
  int lane = threadIdx.x % kTile, line = threadIdx.x / kTile;
  for (int k = line; k < kTile; k += kThreads / kTile)
    if (j + lane < down && i + k < across) tile[k][lane] = Convert<Y, X>::of(x[xa + (i + k) * xi + (j + lane) * xj]);
  __syncthreads();
  for (int k = line; k < kTile; k += kThreads / kTile)
    if (i + lane < across && j + k < down) y[ya + (i + lane) * yi + (j + k) * yj] = tile[lane][k];
}

template <class Y, class X>
fx_status copy(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  CopyPlan p(y, x);
  if (p.total >= int64_t(1) << 31) return fail(ctx, FX_STATUS_UNSUPPORTED, "layout: %lld elements are too many", (long long)p.total);
  Y* yp = data<Y>(y);
  const X* xp = data<X>(x);
  int i = p.rank - 1, j = i - 1;
  if (p.rank > 1 && !(p.ys[i] == 1 && p.xs[i] == 1)) {  // bring the dimension where x is dense next to the last
    int dense = p.densest(p.xs, i);
    if (p.xs[i] == 0 || p.xs[dense] < p.xs[i]) {
      p.to_back(dense);
      p.to_back(i - 1);
    }
    int64_t across = ceil_div(p.n[i], kTile), down = ceil_div(p.n[j], kTile), tiles = across * down;
    for (int d = 0; d < j; d++) tiles *= p.n[d];
    transpose_kernel<Y, X><<<unsigned(tiles), kThreads, 0, stream(ctx)>>>(yp, xp, Divider(across), Divider(down), p.n[i], p.n[j], p.ys[i],
                                                                          p.ys[j], p.xs[i], p.xs[j], Outer(p, 2));
    return FX_STATUS_OK;
  }
  constexpr int V = 16 / (sizeof(Y) > sizeof(X) ? sizeof(Y) : sizeof(X));
  bool dense = p.ys[i] == 1 && p.xs[i] == 1, wide = dense && p.n[i] % V == 0;
  wide = wide && reinterpret_cast<uintptr_t>(yp) % (V * sizeof(Y)) == 0 && reinterpret_cast<uintptr_t>(xp) % (V * sizeof(X)) == 0;
  for (int d = 0; d < i; d++) wide = wide && p.ys[d] % V == 0 && p.xs[d] % V == 0;
  if (wide) {
    copy_rows_kernel<Y, X, V><<<blocks_for(p.total / V), kThreads, 0, stream(ctx)>>>(yp, xp, Divider(p.n[i] / V), p.total / V, Outer(p, 1));
    return FX_STATUS_OK;
  }
  int inner = 1;
  int64_t row = p.n[i];
  if (!dense) inner = 0, row = 1;  // one dimension with gaps
  copy_rows_kernel<Y, X, 1><<<blocks_for(p.total), kThreads, 0, stream(ctx)>>>(yp, xp, Divider(row), p.total, Outer(p, inner));
  return FX_STATUS_OK;
}

template <class F>
fx_status dispatch_loading(fx_dtype dtype, const F& f) {
  return dtype == FX_DTYPE_F16 ? f(f16{}) : dispatch(dtype, f);
}

fx_status layout(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x) {
  return dispatch_loading(
      y->dtype, [&](auto ty) { return dispatch_loading(x->dtype, [&](auto tx) { return copy<decltype(ty), decltype(tx)>(ctx, y, x); }); });
}

// ---- fill, sum_batch ----

template <class T>
struct Fill {
  static constexpr int kWidth = vector_width<T>;
  T* y;
  float value;

  template <int V>
  __device__ void run(const At<1>& at) const {
    float v[V];
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = value;
    store(y + at.at[0], v);
  }
};

fx_status fill(fx_ctx* ctx, const fx_tensor* y, float value) {
  return dispatch(y->dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows(ctx, RowsPlan<1>({y}), Fill<T>{data<T>(y), value});
  });
}

template <class X, class Y>
struct SumItems {
  static constexpr int kWidth = vector_width<X, Y>;
  X* dx;
  const Y* dy;
  int64_t B, stride;
  bool accumulate;

  template <int V>
  __device__ void run(const At<2>& at) const {
    float total[V] = {}, v[V];
    for (int64_t b = 0; b < B; b++) {
      load(v, dy + at.at[1] + b * stride);
#pragma unroll
      for (int i = 0; i < V; i++) total[i] += v[i];
    }
    if (accumulate) {
      load(v, dx + at.at[0]);
#pragma unroll
      for (int i = 0; i < V; i++) total[i] += v[i];
    }
    store(dx + at.at[0], total);
  }
};

fx_status sum_batch(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dy, int32_t accumulate) {
  fx_tensor item = *dy;
  item.rank = dx->rank;
  for (int d = 0; d < item.rank; d++) item.shape[d] = dy->shape[d + 1], item.strides[d] = dy->strides[d + 1];
  return dispatch(dx->dtype, [&](auto tx) {
    return dispatch(dy->dtype, [&](auto ty) {
      using F = SumItems<decltype(tx), decltype(ty)>;
      RowsPlan<2> plan({dx, &item});
      F f{data<decltype(tx)>(dx), data<decltype(ty)>(dy), dy->shape[0], dy->strides[0], accumulate != 0};
      return for_rows(ctx, plan, f, plan.wide(F::kWidth) && dy->strides[0] % F::kWidth == 0);
    });
  });
}

}  // namespace

void add_layout(fx_ops* ops) {
  ops->pack = pack;
  ops->unpack = unpack;
  ops->layout = layout;
  ops->fill = fill;
  ops->sum_batch = sum_batch;
}

}  // namespace fx::cuda
