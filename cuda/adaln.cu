// adaln.cu: LayerNorm without affine, modulated per item: y = xhat · (1 + scale_b) + shift_b. A row stays in registers for the passes over
// it; the variance is a second pass around the mean, so that a large mean costs no digits. A group of threads takes several rows of an
// item, so shift and scale are read once for all of them, and backward adds up dshift and dscale in registers.
#include "core/columns.cuh"
#include "core/group.cuh"

namespace fx::cuda {
namespace {

constexpr int kRows = 16;                 // rows of a group forward
constexpr int kChunk = 48, kShare = 384;  // backward: rows whose sums are stored together, and threads that share them

// [B,L,C] or [B,C], with rows of contiguous elements.
template <class T>
struct View {
  T* p;
  int64_t item, row;

  static View of(const fx_tensor* t) { return {data<T>(t), t ? t->strides[0] : 0, t && t->rank == 3 ? t->strides[1] : 0}; }
  __device__ T* at(int64_t b, int64_t l) const { return p + b * item + l * row; }
};

template <class T>
struct Forward {
  View<T> y;
  View<const T> x, shift, scale;
  float *mean, *rstd;
  int64_t L, C, chunks, groups;
  float eps;
};

template <class T, int V, int kHold>
__global__ void __launch_bounds__(kThreads) adaln_forward_kernel(Forward<T> a, int size) {
  extern __shared__ float shared[];
  Group group(size, shared);
  int64_t job = int64_t(blockIdx.x) * (blockDim.x / size) + threadIdx.x / size, b = job / a.chunks, first = job % a.chunks * kRows;
  bool live = job < a.groups;
  if (!live) b = 0;
  Row<T, V, kHold> scale(a.scale.at(b, 0), a.C, group, live), shift(a.shift.at(b, 0), a.C, group, live);
  for (int64_t l = first; l < first + min(int64_t(kRows), a.L); l++) {  // alike for all groups: sums are made by all

    bool here = live && l < a.L;
    Row<T, V, kHold> x(a.x.at(b, here ? l : 0), a.C, group, here);
    float total = 0, square = 0;
    for_vectors<kHold>(x.vectors, group, [&](int k, int at) {
      float v[V];
      x.get(v, k, at);
#pragma unroll
      for (int i = 0; i < V; i++) total += v[i];
    });
    float mean = group.sum(total) / float(a.C);
    for_vectors<kHold>(x.vectors, group, [&](int k, int at) {
      float v[V];
      x.get(v, k, at);
#pragma unroll
      for (int i = 0; i < V; i++) square += (v[i] - mean) * (v[i] - mean);
    });
    float rstd = 1 / sqrtf(group.sum(square) / float(a.C) + a.eps);
    for_vectors<kHold>(x.vectors, group, [&](int k, int at) {
      float v[V], s[V], t[V];
      x.get(v, k, at), scale.get(s, k, at), shift.get(t, k, at);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = (v[i] - mean) * rstd * (1 + s[i]) + t[i];
      store(a.y.at(b, l) + at * V, v);
    });
    if (here && group.lane == 0 && a.mean) a.mean[b * a.L + l] = mean, a.rstd[b * a.L + l] = rstd;
  }
}

fx_status adaln_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                        const fx_tensor* shift, const fx_tensor* scale, float eps) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2], chunks = ceil_div(L, kRows);
    GroupPlan plan(C, vector_width<T>, vectors(x, 16) && vectors(y, 16) && vectors(shift, 16) && vectors(scale, 16));
    Forward<T> a{View<T>::of(y),
                 View<const T>::of(x),
                 View<const T>::of(shift),
                 View<const T>::of(scale),
                 data<float>(mean),
                 data<float>(rstd),
                 L,
                 C,
                 chunks,
                 B * chunks,
                 eps};
    with_plan<vector_width<T>>(plan, [&](auto v, auto hold) {
      adaln_forward_kernel<T, v(), hold()>
          <<<unsigned(ceil_div(a.groups, plan.per_block())), plan.block, plan.shared(), stream(ctx)>>>(a, plan.size);
    });
    return FX_STATUS_OK;
  });
}

template <class T>
struct Backward {
  View<T> dx;
  View<const T> dy, x, scale;
  const float *mean, *rstd;
  float* partial;  // [B, chunks, 2, C]: sums of dy and of dy · xhat, NULL if not wanted
  int64_t L, C;
  uint32_t chunks;
  bool accumulate;  // dx +=
};

// Adds v to the thread's sums of columns: in registers, or in partial itself where the row is not held.
template <int V, int kHold>
__device__ __forceinline__ void add_to(float (&held)[kHold > 0 ? kHold : 1][V], float* partial, int k, int at, const float (&v)[V],
                                       bool first) {
#pragma unroll
  for (int i = 0; i < V; i++) {
    if (kHold > 0) held[k][i] += v[i];
    else partial[at * V + i] = (first ? 0 : partial[at * V + i]) + v[i];
  }
}

// out [C] = the sum of what the groups of a block hold of a row, added in order in `shared` [V / 4][vectors].
template <int V, int kHold>
__device__ __forceinline__ void add_groups(float* out, float4* shared, float (&held)[kHold][V], int vectors, const Group& group) {
  int own = int(threadIdx.x) / group.size;
  for (int turn = 0; turn < int(blockDim.x) / group.size; turn++) {
    if (turn == own)
      for_vectors<kHold>(vectors, group, [&](int k, int at) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
          float4& sum = shared[i / 4 * vectors + at];
          float* v = held[k] + i;
          if (own > 0) v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
          sum = make_float4(v[0], v[1], v[2], v[3]);
        }
      });
    __syncthreads();
  }
  for (int i = int(threadIdx.x); i < V / 4 * vectors; i += int(blockDim.x)) {
    float4 sum = shared[i % (V / 4) * vectors + i / (V / 4)];
    store(out + 4 * i, {sum.x, sum.y, sum.z, sum.w});
  }
  __syncthreads();
}

// With g = dy (1 + scale): dx = rstd (g − mean(g) − xhat · mean(g · xhat)). A block takes a chunk of rows, its groups row by row in turn.
template <class T, int V, int kHold>
__global__ void __launch_bounds__(kShare) adaln_backward_kernel(Backward<T> a, int size) {
  extern __shared__ float4 memory[];  // [C] where rows are held, and what sums over a row need
  int groups = int(blockDim.x) / size;
  Group group(size, reinterpret_cast<float*>(memory) + (kHold > 0 ? a.C : 0));
  int64_t b = blockIdx.x / a.chunks, first = blockIdx.x % a.chunks * int64_t(kChunk), last = min(first + kChunk, a.L);
  float* partial = a.partial ? a.partial + blockIdx.x * 2 * a.C : nullptr;
  Row<T, V, kHold> scale(a.scale.at(b, 0), a.C, group, true);
  float dshift[kHold > 0 ? kHold : 1][V] = {}, dscale[kHold > 0 ? kHold : 1][V] = {};
  for (int64_t turn = first; turn < last; turn += groups) {  // alike for all groups: sums are made by all
    int64_t l = turn + threadIdx.x / size;
    bool here = l < last;
    int64_t row = here ? l : 0;
    Row<T, V, kHold> x(a.x.at(b, row), a.C, group, here), dy(a.dy.at(b, row), a.C, group, here);
    float mean = here ? a.mean[b * a.L + l] : 0, rstd = here ? a.rstd[b * a.L + l] : 0, total = 0, projection = 0;
    for_vectors<kHold>(x.vectors, group, [&](int k, int at) {
      float d[V], v[V], s[V];
      dy.get(d, k, at), x.get(v, k, at), scale.get(s, k, at);
#pragma unroll
      for (int i = 0; i < V; i++) {
        v[i] = (v[i] - mean) * rstd;
        total += d[i] * (1 + s[i]);
        projection += d[i] * (1 + s[i]) * v[i];
        v[i] *= d[i];
      }
      if (!partial) return;
      add_to<V, kHold>(dshift, partial, k, at, d, l == first);
      add_to<V, kHold>(dscale, partial + a.C, k, at, v, l == first);
    });
    total = group.sum(total) / float(a.C);
    projection = group.sum(projection) / float(a.C);
    for_vectors<kHold>(x.vectors, group, [&](int k, int at) {
      float d[V], v[V], s[V];
      dy.get(d, k, at), x.get(v, k, at), scale.get(s, k, at);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = rstd * (d[i] * (1 + s[i]) - total - (v[i] - mean) * rstd * projection);
      if (a.accumulate) {
        load(d, a.dx.at(b, l) + at * V);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] += d[i];
      }
      store(a.dx.at(b, l) + at * V, v);
    });
  }
  if constexpr (kHold > 0) {
    if (!partial) return;
    add_groups<V, kHold>(partial, memory, dshift, scale.vectors, group);
    add_groups<V, kHold>(partial + a.C, memory, dscale, scale.vectors, group);
  }
}

fx_status adaln_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dshift, const fx_tensor* dscale, const fx_tensor* dy,
                         const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* scale, int32_t accumulate) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2], chunks = ceil_div(L, kChunk);
    float* partial = dshift ? static_cast<float*>(workspace(ctx, B * chunks * 2 * C * 4)) : nullptr;
    GroupPlan plan(C, vector_width<T>, vectors(x, 16) && vectors(dx, 16) && vectors(dy, 16) && vectors(scale, 16));
    Backward<T> a{View<T>::of(dx),
                  View<const T>::of(dy),
                  View<const T>::of(x),
                  View<const T>::of(scale),
                  data<float>(mean),
                  data<float>(rstd),
                  partial,
                  L,
                  C,
                  uint32_t(chunks),
                  accumulate != 0};
    // Rows that are not held are summed in partial itself, by one group.
    int groups = plan.hold ? (plan.size <= 32 ? 128 : kShare) / plan.size : 1, block = groups * plan.size;
    int64_t shared = block / 32 * 4 + (plan.hold ? C * 4 : 0);
    with_plan<vector_width<T>>(
        plan, [&](auto v, auto hold) { launch(ctx, adaln_backward_kernel<T, v(), hold()>, B * chunks, block, int(shared), a, plan.size); });
    if (!dshift) return FX_STATUS_OK;
    finish_columns(ctx, data<T>(dshift), dshift->strides[0], partial, B, chunks, C, 2 * C);
    finish_columns(ctx, data<T>(dscale), dscale->strides[0], partial + C, B, chunks, C, 2 * C);
    return FX_STATUS_OK;
  });
}

}  // namespace

void add_adaln(fx_ops* ops) {
  ops->adaln_forward = adaln_forward;
  ops->adaln_backward = adaln_backward;
}

}  // namespace fx::cuda
