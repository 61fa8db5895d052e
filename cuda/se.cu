// se.cu: squeeze and excitation (spec 3.4), in f32: the mean over tokens, and the two small matrices that turn it into a gain per channel.
#include "core/columns.cuh"

namespace fx::cuda {
namespace {

template <class T>
struct Squeeze {
  const T* x;
  int64_t item, row;

  template <int V>
  __device__ void add(float (&sums)[1][V], int64_t b, int64_t l, int64_t c) const {
    float v[V];
    load(v, x + b * item + l * row + c);
#pragma unroll
    for (int i = 0; i < V; i++) sums[0][i] += v[i];
  }
};

fx_status se_squeeze_forward(fx_ctx* ctx, const fx_tensor* m, const fx_tensor* x) {
  return dispatch(x->dtype, [&](auto t) {
    using T = decltype(t);
    int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2];
    float* partial = static_cast<float*>(workspace(ctx, B * chunks_of(L) * C * 4));
    Squeeze<T> f{data<T>(x), x->strides[0], x->strides[1]};
    if (vectors(x, 16)) for_columns<vector_width<T>, 1>(ctx, partial, B, L, C, f);
    else for_columns<1, 1>(ctx, partial, B, L, C, f);
    finish_columns(ctx, data<float>(m), C, partial, B, chunks_of(L), C, C, 1.0f / float(L));
    return FX_STATUS_OK;
  });
}

template <class T>
struct Spread {
  T* dx;
  const float* dm;
  int64_t item, row, dm_item;
  float tokens;

  template <int V>
  __device__ Floats<V> start(int64_t b, int64_t, int64_t c) const {
    Floats<V> d;
    load(d.v, dm + b * dm_item + c);
#pragma unroll
    for (int i = 0; i < V; i++) d.v[i] /= tokens;
    return d;
  }
  template <int V>
  __device__ void add(float (&)[1][V], const Floats<V>& d, int64_t b, int64_t l, int64_t c) const {
    store(dx + b * item + l * row + c, d.v);
  }
};

fx_status se_squeeze_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dm) {
  return dispatch(dx->dtype, [&](auto t) {
    using T = decltype(t);
    int64_t B = dx->shape[0], L = dx->shape[1], C = dx->shape[2];
    Spread<T> f{data<T>(dx), data<float>(dm), dx->strides[0], dx->strides[1], dm->strides[0], float(L)};
    if (vectors(dx, 4 * sizeof(T)) && vectors(dm, 16)) for_columns<4, 0>(ctx, nullptr, B, L, C, f);
    else for_columns<1, 0>(ctx, nullptr, B, L, C, f);
    return FX_STATUS_OK;
  });
}

// ---- excite: B is small, so every row of a matrix is read once per item ----

// Sum of w[i] · f(i) over a warp.
template <class W, class F>
__device__ __forceinline__ float warp_dot(const W* w, int64_t n, const F& f) {
  float total = 0;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) total += to_float(w[i]) * f(i);
  return lanes_sum(total);
}

// A warp per output: its number, -1 beyond the last.
__device__ __forceinline__ int64_t warp_job(int64_t jobs) {
  int64_t job = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  return job < jobs ? job : -1;
}

__device__ __forceinline__ float silu(float u) { return u * sigmoid(u); }

template <class W>
__global__ void __launch_bounds__(kThreads)
    se_reduce_kernel(float* u, const float* m, const W* w1, const W* b1, int64_t B, int64_t C, int64_t R) {
  int64_t job = warp_job(B * R);
  if (job < 0) return;
  int64_t b = job / R, r = job % R;
  float total = warp_dot(w1 + r * C, C, [&](int64_t i) { return m[b * C + i]; });
  if (threadIdx.x % 32 == 0) u[job] = total + to_float(b1[r]);
}

template <class W>
__global__ void __launch_bounds__(kThreads)
    se_expand_kernel(float* a, float* s, const float* u, const W* w2, const W* b2, const W* gain, int64_t B, int64_t C, int64_t R) {
  int64_t job = warp_job(B * C);
  if (job < 0) return;
  int64_t b = job / C, c = job % C;
  float total = warp_dot(w2 + c * R, R, [&](int64_t i) { return silu(u[b * R + i]); });
  if (threadIdx.x % 32 != 0) return;
  float v = sigmoid(total + to_float(b2[c]));
  s[job] = v;
  a[job] = v * to_float(gain[c]);
}

fx_status se_excite_forward(fx_ctx* ctx, const fx_tensor* a, const fx_tensor* u, const fx_tensor* s, const fx_tensor* m,
                            const fx_tensor* w1, const fx_tensor* b1, const fx_tensor* w2, const fx_tensor* b2, const fx_tensor* gain) {
  int64_t B = m->shape[0], C = m->shape[1], R = w1->shape[0];
  return dispatch(w1->dtype, [&](auto t) {
    using W = decltype(t);

    if (R > 0)
      se_reduce_kernel<<<blocks_for(B * R * 32), kThreads, 0, stream(ctx)>>>(data<float>(u), data<float>(m), data<W>(w1), data<W>(b1), B, C,
                                                                             R);
    se_expand_kernel<<<blocks_for(B * C * 32), kThreads, 0, stream(ctx)>>>(data<float>(a), data<float>(s), data<float>(u), data<W>(w2),
                                                                           data<W>(b2), data<W>(gain), B, C, R);
    return FX_STATUS_OK;
  });
}

// de = da ⊙ gain ⊙ s (1 − s); db2 += sum over b of de, dgain += sum over b of da ⊙ s. A thread per channel.
template <class W>
__global__ void __launch_bounds__(kThreads)
    se_outer_kernel(float* de, float* db2, float* dgain, const float* da, const float* s, const W* gain, int64_t B, int64_t C) {
  int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= C) return;
  float g = to_float(gain[c]), sum = 0, product = 0;
  for (int64_t b = 0; b < B; b++) {
    float v = s[b * C + c], d = da[b * C + c], e = d * g * v * (1 - v);
    de[b * C + c] = e;
    sum += e;
    product += d * v;
  }
  if (db2) db2[c] += sum, dgain[c] += product;
}

// du = silu'(u) ⊙ dhidden, in place; db1 += sum over b. A thread per hidden channel.
__global__ void __launch_bounds__(kThreads) se_hidden_kernel(float* du, float* db1, const float* u, int64_t B, int64_t R) {
  int64_t r = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (r >= R) return;
  float total = 0;
  for (int64_t b = 0; b < B; b++) {
    float v = u[b * R + r], s, rest;
    sigmoid_pair(v, s, rest);
    float d = du[b * R + r] * s * (1 + v * rest);
    du[b * R + r] = d;
    total += d;
  }
  if (db1) db1[r] += total;
}

// dw [N,K] += sum over b of dy [B,N] ⊗ x [B,K], or ⊗ silu(x).
template <bool kSilu>
__global__ void __launch_bounds__(kThreads) se_weight_kernel(float* dw, const float* dy, const float* x, int64_t B, int64_t N, int64_t K) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= N * K) return;
  int64_t n = job / K, k = job % K;
  float total = 0;
  for (int64_t b = 0; b < B; b++) total += dy[b * N + n] * (kSilu ? silu(x[b * K + k]) : x[b * K + k]);
  dw[job] += total;
}

// Terms of dx [B,K] = dy [B,N] w [N,K].
template <class W>
struct Product {
  const float* dy;
  const W* w;
  int64_t N, K;

  template <int V>
  __device__ void add(float (&sums)[1][V], int64_t b, int64_t n, int64_t k) const {
    float v[V], d = dy[b * N + n];
    load(v, w + n * K + k);
#pragma unroll
    for (int i = 0; i < V; i++) sums[0][i] += d * v[i];
  }
};

// dx [B,K] = dy [B,N] w [N,K], contiguous.
template <class W>
void multiply(fx_ctx* ctx, float* dx, float* partial, const float* dy, const fx_tensor* w, int64_t B) {
  int64_t N = w->shape[0], K = w->shape[1];
  Product<W> f{dy, data<W>(w), N, K};
  if (vectors(w, 16)) for_columns<vector_width<W>, 1>(ctx, partial, B, N, K, f);
  else for_columns<1, 1>(ctx, partial, B, N, K, f);
  finish_columns(ctx, dx, K, partial, B, chunks_of(N), K, K);
}

fx_status se_excite_backward(fx_ctx* ctx, const fx_tensor* dm, const fx_tensor* dw1, const fx_tensor* db1, const fx_tensor* dw2,
                             const fx_tensor* db2, const fx_tensor* dgain, const fx_tensor* da, const fx_tensor* m, const fx_tensor* u,
                             const fx_tensor* s, const fx_tensor* w1, const fx_tensor* w2, const fx_tensor* gain) {
  int64_t B = m->shape[0], C = m->shape[1], R = w1->shape[0];
  return dispatch(w1->dtype, [&](auto t) {
    using W = decltype(t);
    int64_t outer = round_up(B * C, 64), inner = round_up(B * R, 64),
            most = B * (chunks_of(C) * R > chunks_of(R) * C ? chunks_of(C) * R : chunks_of(R) * C);
    float* de = static_cast<float*>(workspace(ctx, (outer + inner + most) * 4));
    float *du = de + outer, *partial = du + inner;
    cudaStream_t on = stream(ctx);
    se_outer_kernel<<<blocks_for(C), kThreads, 0, on>>>(de, data<float>(db2), data<float>(dgain), data<float>(da), data<float>(s),
                                                        data<W>(gain), B, C);
    if (R == 0) {  // no path from a to m
      require(cudaMemsetAsync(dm->data, 0, size_t(B * C) * 4, on), "se_excite_backward");
      return fx_status(FX_STATUS_OK);
    }
    multiply<W>(ctx, du, partial, de, w2, B);
    se_hidden_kernel<<<blocks_for(R), kThreads, 0, on>>>(du, data<float>(db1), data<float>(u), B, R);
    multiply<W>(ctx, data<float>(dm), partial, du, w1, B);
    if (!dw1) return fx_status(FX_STATUS_OK);
    se_weight_kernel<true><<<blocks_for(C * R), kThreads, 0, on>>>(data<float>(dw2), de, data<float>(u), B, C, R);
    se_weight_kernel<false><<<blocks_for(C * R), kThreads, 0, on>>>(data<float>(dw1), du, data<float>(m), B, R, C);
    return fx_status(FX_STATUS_OK);
  });
}

}  // namespace

void add_se(fx_ops* ops) {
  ops->se_squeeze_forward = se_squeeze_forward;
  ops->se_squeeze_backward = se_squeeze_backward;
  ops->se_excite_forward = se_excite_forward;
  ops->se_excite_backward = se_excite_backward;
}

}  // namespace fx::cuda
