// groupnorm.cu: group normalisation of [B,Y,X,C] images with optional SiLU. A thread takes one vector of channels of a chunk of pixels. Per
// chunk and channel it makes the mean and the sum of squared deviations, from values less the chunk's first one; a block per group merges
// them in f64 (Chan et al. 1979), so neither a large mean nor a large image costs digits. Two passes over memory forward, two backward.
#include "core/columns.cuh"
#include "core/device.cuh"

namespace fx::cuda {
namespace {

// An image's pixels in chunks of rows; the split depends on the shape alone.
struct Shape {
  int64_t B, pixels, C, groups, width, chunk, chunks;  // width: channels of a group; chunk: pixels
  Divider X;

  Shape(const fx_tensor* x, const fx_groupnorm_args* args) : X(x->shape[2]) {
    B = x->shape[0], C = x->shape[3];
    pixels = x->shape[1] * x->shape[2];
    groups = args->groups;
    width = C / groups;
    chunk = pixels < 16384 ? 32 : 128;
    chunks = ceil_div(pixels, chunk);
  }
  int64_t partial_bytes() const { return B * chunks * 2 * C * 4; }
};

template <class T>
struct Image {
  T* p;
  int64_t item, row, column;

  static Image of(const fx_tensor* t) { return {data<T>(t), t->strides[0], t->strides[1], t->strides[2]}; }
  __device__ T* at(const Shape& s, int64_t b, int64_t pixel) const {
    uint32_t x = uint32_t(pixel), y = s.X.split(x);
    return p + b * item + y * row + x * column;
  }
};

// The job of a thread: an item, a chunk of pixels, the first of V channels.
struct Job {
  int64_t b, chunk, first, last, c;
  bool live;

  template <int V>
  static __device__ Job of(const Shape& s) {
    int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, vectors = s.C / V;
    Job j;
    j.live = i < s.B * s.chunks * vectors;
    j.c = i % vectors * V;
    i /= vectors;
    j.chunk = i % s.chunks, j.b = i / s.chunks;
    j.first = j.chunk * s.chunk;
    j.last = min(j.first + s.chunk, s.pixels);
    return j;
  }
};

template <int V>
unsigned blocks_of(const Shape& s) {
  return blocks_for(s.B * s.chunks * (s.C / V));
}

// partial [B, chunks, 2, C] of each channel: the mean less the chunk's first value, which need not be rounded together, and the sum of
// squared deviations.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) statistics_kernel(float* partial, Image<const T> x, Shape s) {
  Job j = Job::of<V>(s);
  if (!j.live) return;
  float base[V], sum[V] = {}, lost[V] = {}, square[V] = {}, v[V];
  load(base, x.at(s, j.b, j.first) + j.c);
  for (int64_t p = j.first + 1; p < j.last; p++) {
    load(v, x.at(s, j.b, p) + j.c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] -= base[i];
      square[i] += v[i] * v[i];
      float term = v[i] - lost[i], next = sum[i] + term;  // Kahan: a first value far from the mean costs no digits either
      lost[i] = (next - sum[i]) - term;
      sum[i] = next;
    }
  }
  float n = float(j.last - j.first);
#pragma unroll
  for (int i = 0; i < V; i++) {
    float mean = sum[i] / n;
    square[i] = fmaxf(square[i] - sum[i] * mean, 0);
    sum[i] = mean;
  }
  float* out = partial + (j.b * s.chunks + j.chunk) * 2 * s.C + j.c;
  store(out, sum), store(out + s.C, square);
}

// A block per group: the mean of all chunks' means, then the deviations around it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_statistics_kernel(float* mean, float* rstd, const float* partial, Image<const T> x, Shape s, float eps) {
  __shared__ double center;
  int64_t b = blockIdx.x / s.groups, first = blockIdx.x % s.groups * s.width, n = s.chunks * s.width;
  const float* stats = partial + b * s.chunks * 2 * s.C + first;
  auto pixels = [&](int64_t chunk) { return double(min(s.chunk, s.pixels - chunk * s.chunk)); };
  auto mean_of = [&](int64_t chunk, int64_t c) {
    return double(to_float(x.at(s, b, chunk * s.chunk)[first + c])) + double(stats[chunk * 2 * s.C + c]);
  };
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) total += mean_of(i / s.width, i % s.width) * pixels(i / s.width);
  total = block_sum(total);
  if (threadIdx.x == 0) center = total / double(s.pixels * s.width);
  __syncthreads();
  total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    double d = mean_of(i / s.width, i % s.width) - center;
    total += double(stats[(i / s.width * 2 + 1) * s.C + i % s.width]) + d * d * pixels(i / s.width);
  }
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  mean[blockIdx.x] = float(center);
  rstd[blockIdx.x] = float(1 / sqrt(total / double(s.pixels * s.width) + double(eps)));
}

// What a thread needs to know of its channels.
template <int V>
struct Channels {
  float mean[V], rstd[V], weight[V], bias[V];

  template <class T>
  __device__ Channels(const Shape& s, const Job& j, const float* means, const float* rstds, const T* w, const T* b) {
    load(weight, w + j.c), load(bias, b + j.c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      int64_t group = j.b * s.groups + (j.c + i) / s.width;
      mean[i] = means[group];
      rstd[i] = rstds[group];
    }
  }
};

template <class T>
struct Arguments {
  Image<T> y;  // dx
  Image<const T> x, dy;
  const float *mean, *rstd;
  const T *w, *b;
  bool silu;
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) groupnorm_forward_kernel(Arguments<T> a, Shape s) {
  Job j = Job::of<V>(s);
  if (!j.live) return;
  Channels<V> k(s, j, a.mean, a.rstd, a.w, a.b);
  for (int64_t p = j.first; p < j.last; p++) {
    float v[V];
    load(v, a.x.at(s, j.b, p) + j.c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = (v[i] - k.mean[i]) * k.rstd[i] * k.weight[i] + k.bias[i];
      if (a.silu) v[i] *= sigmoid(v[i]);
    }
    store(a.y.at(s, j.b, p) + j.c, v);
  }
}

// Gradient at the norm's output, z = xhat·w + b: dy, or dy · silu'(z).
__device__ __forceinline__ float output_gradient(float dy, float xhat, float w, float b, bool silu) {
  if (!silu) return dy;
  float z = xhat * w + b, e = sigmoid(z);
  return dy * e * (1 + z * (1 - e));
}

// partial [B, chunks, 2, C]: sums of g and of g · xhat.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) groupnorm_sums_kernel(float* partial, Arguments<T> a, Shape s) {
  Job j = Job::of<V>(s);
  if (!j.live) return;
  Channels<V> k(s, j, a.mean, a.rstd, a.w, a.b);
  float sum[V] = {}, product[V] = {};
  for (int64_t p = j.first; p < j.last; p++) {
    float v[V], d[V];
    load(v, a.x.at(s, j.b, p) + j.c), load(d, a.dy.at(s, j.b, p) + j.c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = (v[i] - k.mean[i]) * k.rstd[i];
      d[i] = output_gradient(d[i], v[i], k.weight[i], k.bias[i], a.silu);
      sum[i] += d[i];
      product[i] += d[i] * v[i];
    }
  }
  float* out = partial + (j.b * s.chunks + j.chunk) * 2 * s.C + j.c;
  store(out, sum), store(out + s.C, product);
}

// means [B, groups, 2] = a group's means of w g and of w g xhat, from totals [B, 2, C]. A thread per group.
template <class T>
__global__ void __launch_bounds__(kThreads) group_means_kernel(float* means, const float* totals, const T* w, Shape s) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= s.B * s.groups) return;
  const float* t = totals + job / s.groups * 2 * s.C;
  float sum = 0, product = 0;
  for (int64_t c = job % s.groups * s.width, i = 0; i < s.width; c++, i++) {
    sum += to_float(w[c]) * t[c];
    product += to_float(w[c]) * t[s.C + c];
  }
  means[2 * job] = sum / float(s.pixels * s.width);
  means[2 * job + 1] = product / float(s.pixels * s.width);
}

// dx = rstd · (w g − a − xhat · c), with the group's means a and c.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) groupnorm_backward_kernel(Arguments<T> a, const float* means, Shape s) {
  Job j = Job::of<V>(s);
  if (!j.live) return;
  Channels<V> k(s, j, a.mean, a.rstd, a.w, a.b);
  float plain[V], along[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    const float* m = means + 2 * (j.b * s.groups + (j.c + i) / s.width);
    plain[i] = m[0], along[i] = m[1];
  }
  for (int64_t p = j.first; p < j.last; p++) {
    float v[V], d[V];
    load(v, a.x.at(s, j.b, p) + j.c), load(d, a.dy.at(s, j.b, p) + j.c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      float xhat = (v[i] - k.mean[i]) * k.rstd[i], g = output_gradient(d[i], xhat, k.weight[i], k.bias[i], a.silu);
      v[i] = k.rstd[i] * (k.weight[i] * g - plain[i] - xhat * along[i]);
    }
    store(a.y.at(s, j.b, p) + j.c, v);
  }
}

// f(T{}, V) with V the vector's width where everything is aligned, else 1.
template <class F>
fx_status dispatch_wide(fx_ctx* ctx, const Shape& s, const fx_tensor* x, const fx_tensor* y, const fx_tensor* dy, const fx_tensor* w,
                        const fx_tensor* b, const F& f) {
  if (s.pixels >= int64_t(1) << 31) return fail(ctx, FX_STATUS_UNSUPPORTED, "groupnorm: %lld pixels are too many", (long long)s.pixels);
  bool wide = vectors(x, 16) && vectors(y, 16) && vectors(dy, 16) && vectors(w, 16) && vectors(b, 16);
  return dispatch(x->dtype, [&](auto t) {
    if (wide) return f(t, std::integral_constant<int, vector_width<decltype(t)>>{});
    return f(t, std::integral_constant<int, 1>{});
  });
}

fx_status groupnorm_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                            const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* args) {
  Shape s(x, args);
  return dispatch_wide(ctx, s, x, y, nullptr, w, b, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int V = width();
    cudaStream_t on = stream(ctx);
    float* partial = static_cast<float*>(workspace(ctx, s.partial_bytes() + s.B * s.groups * 8));
    float* own = partial + s.partial_bytes() / 4;  // mean and rstd where the caller wants none
    float *means = mean ? data<float>(mean) : own, *rstds = rstd ? data<float>(rstd) : own + s.B * s.groups;
    Arguments<T> a{Image<T>::of(y), Image<const T>::of(x), {}, means, rstds, data<T>(w), data<T>(b), args->silu != 0};
    statistics_kernel<T, V><<<blocks_of<V>(s), kThreads, 0, on>>>(partial, a.x, s);
    merge_statistics_kernel<T><<<unsigned(s.B * s.groups), kThreads, 0, on>>>(means, rstds, partial, a.x, s, args->eps);
    groupnorm_forward_kernel<T, V><<<blocks_of<V>(s), kThreads, 0, on>>>(a, s);
    return fx_status(FX_STATUS_OK);
  });
}

fx_status groupnorm_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                             const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* w, const fx_tensor* b,
                             const fx_groupnorm_args* args) {
  Shape s(x, args);
  return dispatch_wide(ctx, s, x, dx, dy, w, b, [&](auto t, auto width) {
    using T = decltype(t);
    constexpr int V = width();
    cudaStream_t on = stream(ctx);
    float* partial = static_cast<float*>(workspace(ctx, s.partial_bytes() + s.B * (2 * s.C + 2 * s.groups) * 4));
    float *totals = partial + s.partial_bytes() / 4, *means = totals + s.B * 2 * s.C;
    Arguments<T> a{Image<T>::of(dx), Image<const T>::of(x), Image<const T>::of(dy), data<float>(mean), data<float>(rstd), data<T>(w),
                   data<T>(b),       args->silu != 0};
    groupnorm_sums_kernel<T, V><<<blocks_of<V>(s), kThreads, 0, on>>>(partial, a, s);
    finish_columns(ctx, totals, 2 * s.C, partial, s.B, s.chunks, 2 * s.C, 2 * s.C);
    if (dw) {
      finish_columns(ctx, data<float>(db), 0, totals, 1, s.B, s.C, 2 * s.C, 1, true);
      finish_columns(ctx, data<float>(dw), 0, totals + s.C, 1, s.B, s.C, 2 * s.C, 1, true);
    }
    group_means_kernel<<<blocks_for(s.B * s.groups), kThreads, 0, on>>>(means, totals, data<T>(w), s);
    groupnorm_backward_kernel<T, V><<<blocks_of<V>(s), kThreads, 0, on>>>(a, means, s);
    return fx_status(FX_STATUS_OK);
  });
}

}  // namespace

void add_groupnorm(fx_ops* ops) {
  ops->groupnorm_forward = groupnorm_forward;
  ops->groupnorm_backward = groupnorm_backward;
}

}  // namespace fx::cuda
