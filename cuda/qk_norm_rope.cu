// qk_norm_rope.cu: RMSNorm of every head's query or key and its rotation by position, in one pass (flux: layers.py QKNorm, math.py
// apply_rope), and the table of rotations. Bound by memory. A group of lanes takes all heads of a token, so the token's rotations are read
// once.
#include "core/columns.cuh"
#include "core/group.cuh"
#include "qk_norm_rope.cuh"

namespace fx::cuda {
namespace {

struct Axes {
  int32_t dims[3];
};

__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(float* pe, const float* ids, int64_t stride, int64_t L, int64_t pairs, Axes axes, double theta) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= L * pairs) return;
  int64_t l = job / pairs;
  int32_t i = 2 * int32_t(job % pairs), axis = 0;
  while (i >= axes.dims[axis]) i -= axes.dims[axis++];
  double angle = double(ids[l * stride + axis]) * (1.0 / pow(theta, double(i) / axes.dims[axis]));
  pe[2 * job] = float(cos(angle));
  pe[2 * job + 1] = float(sin(angle));
}

fx_status rope_table(fx_ctx* ctx, const fx_tensor* pe, const fx_tensor* ids, const int32_t axes[3], double theta) {
  int64_t L = ids->shape[0], pairs = pe->shape[1];
  rope_table_kernel<<<blocks_for(L * pairs), kThreads, 0, stream(ctx)>>>(data<float>(pe), data<float>(ids), ids->strides[0], L, pairs,
                                                                         Axes{axes[0], axes[1], axes[2]}, theta);
  return FX_STATUS_OK;
}

// [B,L,H,D] with contiguous D.
template <class T>
struct Heads {
  T* p;
  int64_t item, token, head;

  static Heads of(const fx_tensor* t) { return {data<T>(t), t ? t->strides[0] : 0, t ? t->strides[1] : 0, t ? t->strides[2] : 0}; }
  __device__ T* at(int64_t b, int64_t l, int64_t h) const { return p + b * item + l * token + h * head; }
};

// V elements, one by one where they are not aligned.
template <bool kWide, int V, class T>
__device__ __forceinline__ void fetch(float (&out)[V], const T* p) {
  if (kWide) load(out, p);
  else
    for (int i = 0; i < V; i++) out[i] = to_float(p[i]);
}
// A lane's V rotations, one step being all. Neighbours fetch whole sectors, half of each other's, where all have one. For all lanes.
template <bool kWide, int V>
__device__ __forceinline__ void fetch_turn(float (&out)[V], const float* p, int first, int D) {
  if constexpr (kWide && V == 8) {
    if (__all_sync(kAllLanes, D % 16 == 0)) {
      bool odd = threadIdx.x % 2 != 0;
      const float4* pair = reinterpret_cast<const float4*>(p - 8 * odd);
      float4 a = {}, b = {};
      if (first < D) a = pair[odd], b = pair[2 + odd];
      float mine[4] = {odd ? b.x : a.x, odd ? b.y : a.y, odd ? b.z : a.z, odd ? b.w : a.w};
      float other[4] = {odd ? a.x : b.x, odd ? a.y : b.y, odd ? a.z : b.z, odd ? a.w : b.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float got = __shfl_xor_sync(kAllLanes, other[i], 1);
        out[i] = odd ? got : mine[i];
        out[4 + i] = odd ? mine[i] : got;
      }
      return;
    }
  }
  if (first < D) fetch<kWide>(out, p);
}
template <bool kWide, int V, class T>
__device__ __forceinline__ void keep(T* p, const float (&x)[V]) {
  if (kWide) store(p, x);
  else
    for (int i = 0; i < V; i++) put(p + i, x[i]);
}

// Rotates the pairs of x by the angles pe (cos, sin), or back when inverse, which is the gradient.
template <int V>
__device__ __forceinline__ void rotate(float (&x)[V], const float (&pe)[V], bool inverse) {
#pragma unroll
  for (int i = 0; i < V; i += 2) {
    float c = pe[i], s = inverse ? -pe[i + 1] : pe[i + 1], even = x[i], odd = x[i + 1];
    x[i] = c * even - s * odd;
    x[i + 1] = s * even + c * odd;
  }
}

template <class T>
struct Arguments {
  Heads<T> y;            // dx
  Heads<const T> x, dy;  // dy: backward
  const T* weight;
  const float* pe;
  float* rstd;     // forward: may be NULL
  float* partial;  // backward: [blocks, D]
  int64_t tokens, L, H, D;
  float eps;
};

// One vector of V elements per lane and step; rows of more than size · V elements take several steps, and are read twice.
template <bool kWide, int V, class T>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_forward_kernel(Arguments<T> a, int size) {
  Group group(size, nullptr);
  int64_t job = int64_t(blockIdx.x) * (kThreads / size) + threadIdx.x / size;
  bool live = job < a.tokens;
  int64_t token = live ? job : 0, b = token / a.L, l = token % a.L;
  int D = live ? int(a.D) : 0, first = group.lane * V;
  float turn[V], weight[V], v[V], own_rstd = 0;
  bool one = a.D <= size * V;  // step: then rotations and weights stay in registers for all heads
  if (one && a.pe) fetch_turn<kWide>(turn, a.pe + l * a.D + first, first, D);
  if (one && first < D && a.weight) fetch<kWide>(weight, a.weight + first);
  for (int64_t h = 0; h < a.H; h++) {
    const T* x = a.x.at(b, l, h);
    float r = 1;
    if (a.weight) {
      float square = 0;
      for (int at = first; at < D; at += size * V) {
        fetch<kWide>(v, x + at);
#pragma unroll
        for (int i = 0; i < V; i++) square += v[i] * v[i];
      }
      r = 1 / sqrtf(group.sum(square) / float(a.D) + a.eps);
      // Lane i keeps that of head i, then all store theirs together.
      int turn_of = int(h) & (size - 1);
      if (turn_of == group.lane) own_rstd = r;
      if (a.rstd && live && (turn_of == size - 1 || h == a.H - 1) && group.lane <= turn_of)
        a.rstd[token * a.H + h - turn_of + group.lane] = own_rstd;
    }
    for (int at = first; at < D; at += size * V) {
      if (!one || !a.weight) fetch<kWide>(v, x + at);
      if (!one && a.pe) fetch<kWide>(turn, a.pe + l * a.D + at);
      if (!one && a.weight) fetch<kWide>(weight, a.weight + at);
      if (a.weight) {
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = v[i] * r * weight[i];
      }
      if (a.pe) rotate(v, turn, false);
      keep<kWide>(a.y.at(b, l, h) + at, v);
    }
  }
}

// With n = x·rstd and g the gradient of n·weight: dx = rstd·(g·weight - n·mean(n·g·weight)), sums += g·n. Without weight dx = g. Every
// element of dy is read, for the last time, just before its dx is written: they may be the same memory.
template <bool kWide, int V, class T>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_backward_kernel(Arguments<T> a, int size) {
  extern __shared__ float sums[];  // [groups of the block, D], where dweight is wanted
  Group group(size, nullptr);
  int64_t job = int64_t(blockIdx.x) * (kThreads / size) + threadIdx.x / size;
  bool live = job < a.tokens;
  int64_t token = live ? job : 0, b = token / a.L, l = token % a.L;
  int D = live ? int(a.D) : 0, first = group.lane * V;
  float* own = sums + int64_t(threadIdx.x / size) * a.D;
  if (a.partial)
    for (int at = first; at < int(a.D); at += size * V)
      for (int i = 0; i < V; i++) own[at + i] = 0;
  float turn[V], weight[V], g[V], n[V], held[V] = {};
  bool one = a.D <= size * V;
  if (one && a.pe) fetch_turn<kWide>(turn, a.pe + l * a.D + first, first, D);
  if (one && first < D && a.weight) fetch<kWide>(weight, a.weight + first);
  for (int64_t h = 0; h < a.H; h++) {
    const T *dy = a.dy.at(b, l, h), *x = a.x.at(b, l, h);
    float mean = 0, r = 1;
    for (int pass = a.weight ? 0 : 1; pass < 2; pass++) {
      float dot = 0;
      for (int at = first; at < D; at += size * V) {
        if (!one || !a.weight || pass == 0) {
          fetch<kWide>(g, dy + at);
          if (!one && a.pe) fetch<kWide>(turn, a.pe + l * a.D + at);
          if (!one && a.weight) fetch<kWide>(weight, a.weight + at);
          if (a.pe) rotate(g, turn, true);
          if (a.weight) {
            r = a.rstd[token * a.H + h];
            fetch<kWide>(n, x + at);
#pragma unroll
            for (int i = 0; i < V; i++) n[i] *= r;
          }
        }
        if (pass == 0) {
#pragma unroll
          for (int i = 0; i < V; i++) {
            if (one) held[i] += g[i] * n[i];
            else if (a.partial) own[at + i] += g[i] * n[i];
            dot += g[i] * n[i] * weight[i];
          }
        } else {
          float out[V];
#pragma unroll
          for (int i = 0; i < V; i++) out[i] = a.weight ? r * (g[i] * weight[i] - n[i] * mean) : g[i];
          keep<kWide>(a.y.at(b, l, h) + at, out);
        }
      }
      if (pass == 0) mean = group.sum(dot) / float(a.D);
    }
  }
  if (!a.partial) return;
  if (one && first < D)
    for (int i = 0; i < V; i++) own[first + i] = held[i];
  __syncthreads();
  int groups = kThreads / size;
  for (int i = threadIdx.x; i < int(a.D); i += kThreads) {
    float total = 0;
    for (int k = 0; k < groups; k++) total += sums[k * a.D + i];
    a.partial[blockIdx.x * a.D + i] = total;
  }
}

// Lanes of a group: a power of two, enough for the row where a warp is.
int group_size(int64_t D, int V) {
  int size = 32;
  while (size > 1 && size / 2 * V >= D) size /= 2;
  return size;
}

}  // namespace

void norm_rope(fx_ctx* ctx, const fx_tensor* y, float* rstd, const fx_tensor* x, const fx_tensor* weight, const fx_tensor* pe, float eps) {
  dispatch(x->dtype, [&](auto t) -> fx_status {
    using T = decltype(t);
    constexpr int V = vector_width<T>;
    int64_t L = x->shape[1], H = x->shape[2], D = x->shape[3], tokens = x->shape[0] * L;
    bool wide = vectors(x, 16) && vectors(y, 16) && vectors(weight, 16) && reinterpret_cast<uintptr_t>(data<float>(pe)) % 16 == 0;
    Arguments<T> a{Heads<T>::of(y), Heads<const T>::of(x), {}, data<T>(weight), data<float>(pe), rstd, nullptr, tokens, L, H, D, eps};
    int size = group_size(D, wide ? V : 2);
    auto kernel = wide ? qk_norm_rope_forward_kernel<true, V, T> : qk_norm_rope_forward_kernel<false, 2, T>;
    kernel<<<unsigned(ceil_div(tokens, kThreads / size)), kThreads, 0, stream(ctx)>>>(a, size);
    return FX_STATUS_OK;
  });
}

int64_t norm_rope_partial(int64_t tokens, int64_t D) { return ceil_div(tokens, kThreads / 32) * D; }

void norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, float* partial, const fx_tensor* dy, const fx_tensor* x,
                        const float* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  dispatch(dy->dtype, [&](auto t) -> fx_status {
    using T = decltype(t);
    constexpr int V = vector_width<T>;
    int64_t L = dy->shape[1], H = dy->shape[2], D = dy->shape[3], tokens = dy->shape[0] * L;
    bool wide = vectors(dy, 16) && vectors(dx, 16) && vectors(weight, 16) && (!weight || vectors(x, 16)) &&
                reinterpret_cast<uintptr_t>(data<float>(pe)) % 16 == 0;
    int size = group_size(D, wide ? V : 2);
    int64_t groups = kThreads / size, blocks = ceil_div(tokens, groups);
    Arguments<T> a{Heads<T>::of(dx),
                   Heads<const T>::of(weight ? x : nullptr),
                   Heads<const T>::of(dy),
                   data<T>(weight),
                   data<float>(pe),
                   const_cast<float*>(rstd),
                   dweight ? partial : nullptr,
                   tokens,
                   L,
                   H,
                   D,
                   0};
    auto kernel = wide ? qk_norm_rope_backward_kernel<true, V, T> : qk_norm_rope_backward_kernel<false, 2, T>;
    kernel<<<unsigned(blocks), kThreads, size_t(dweight ? groups * D * 4 : 0), stream(ctx)>>>(a, size);
    if (dweight) finish_columns(ctx, data<float>(dweight), 0, partial, 1, blocks, D, D, 1, true);
    return FX_STATUS_OK;
  });
}

namespace {

fx_status qk_norm_rope_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* weight,
                               const fx_tensor* pe, float eps) {
  norm_rope(ctx, y, data<float>(rstd), x, weight, pe, eps);
  return FX_STATUS_OK;
}

fx_status qk_norm_rope_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dweight, const fx_tensor* dy, const fx_tensor* x,
                                const fx_tensor* rstd, const fx_tensor* weight, const fx_tensor* pe) {
  int64_t tokens = dy->shape[0] * dy->shape[1], D = dy->shape[3];
  if (dweight && kThreads / group_size(D, 2) * D * 4 > 48 << 10)
    return fail(ctx, FX_STATUS_UNSUPPORTED, "qk_norm_rope_backward: head dim %lld is too large", (long long)D);
  float* partial = dweight ? static_cast<float*>(workspace(ctx, norm_rope_partial(tokens, D) * 4)) : nullptr;
  norm_rope_backward(ctx, dx, dweight, partial, dy, x, data<float>(weight ? rstd : nullptr), weight, pe);
  return FX_STATUS_OK;
}

}  // namespace

void add_qk_norm_rope(fx_ops* ops) {
  ops->rope_table = rope_table;
  ops->qk_norm_rope_forward = qk_norm_rope_forward;
  ops->qk_norm_rope_backward = qk_norm_rope_backward;
}

}  // namespace fx::cuda
