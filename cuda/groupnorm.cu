// groupnorm.cu: group normalisation of [B,Y,X,C] images with optional SiLU. Per chunk of pixels and channel, sums of deviations from the
// chunk's first value and of their squares; a block per group merges them in f64 (Chan et al. 1979), so neither a large mean nor a large
// image costs digits. Two passes over memory forward, two backward: a group of a large image is in no multiprocessor's memory at once.
#include "core/columns.cuh"

namespace fx::cuda {
namespace {

struct Shape {
  int64_t B, pixels, C, groups, width, chunk, chunks;  // width: channels of a group; chunk: pixels
  Divider X, per_group;

  Shape(const fx_tensor* x, const fx_groupnorm_args* args) : X(x->shape[2]), per_group(x->shape[3] / args->groups) {
    B = x->shape[0], C = x->shape[3];
    pixels = x->shape[1] * x->shape[2];
    groups = args->groups;
    width = C / groups;
    chunk = chunk_of(pixels);
    chunks = chunks_of(pixels);
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

// partial [B, chunks, 2, C] of each channel: sums of x less the chunk's first value, and of the squares.
template <class T>
struct Statistics {
  Image<const T> x;
  Shape s;

  template <int V>
  struct State {
    float base[V], lost[V];
  };
  template <int V>
  __device__ State<V> start(int64_t b, int64_t first, int64_t c) const {
    State<V> k = {};
    load(k.base, x.at(s, b, first) + c);
    return k;
  }

  template <int V>
  __device__ void add(float (&sums)[2][V], State<V>& k, int64_t b, int64_t pixel, int64_t c) const {
    float v[V];
    load(v, x.at(s, b, pixel) + c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] -= k.base[i];
      sums[1][i] += v[i] * v[i];
      float term = v[i] - k.lost[i], next = sums[0][i] + term;  // Kahan: a first value far from the mean costs no digits either
      k.lost[i] = (next - sums[0][i]) - term;
      sums[0][i] = next;
    }
  }
};

// A block per group: the mean of all chunks' means, then the deviations around it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_statistics_kernel(float* mean, float* rstd, const float* partial, Image<const T> x, Shape s, float eps) {
  __shared__ double center;
  uint32_t group = blockIdx.x % uint32_t(s.groups), b = blockIdx.x / uint32_t(s.groups), n = uint32_t(s.chunks * s.width);
  int64_t first = group * s.width;
  partial += int64_t(b) * s.chunks * 2 * s.C + first;
  // f(pixels, mean, sum of squared deviations from it) of every channel of every chunk.
  auto for_means = [&](auto f) {
    for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
      uint32_t c = i, chunk = s.per_group.split(c);
      const float* stats = partial + int64_t(chunk) * 2 * s.C + c;
      double count = double(min(s.chunk, s.pixels - chunk * s.chunk)), shift = double(stats[0]) / count;
      f(count, double(to_float(x.at(s, b, chunk * s.chunk)[first + c])) + shift, double(stats[s.C]) - shift * double(stats[0]));
    }
  };
  double total = 0;
  for_means([&](double count, double m, double) { total += count * m; });
  total = block_sum(total);
  if (threadIdx.x == 0) center = total / double(s.pixels * s.width);
  __syncthreads();
  total = 0;
  for_means([&](double count, double m, double square) { total += fmax(square, 0.0) + count * (m - center) * (m - center); });
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  mean[blockIdx.x] = float(center);
  rstd[blockIdx.x] = float(1 / sqrt(total / double(s.pixels * s.width) + double(eps)));
}

// What a thread knows of its channels: weights, and N numbers of each one's group.
template <int V, int N>
struct Channels {
  float weight[V], bias[V], group[N][V];
};

// Tensors of a pass over pixels; numbers[n] [B, groups].
template <class T, int N>
struct Pass {
  Image<T> y;  // dx
  Image<const T> x, dy;
  const T *weight, *bias;
  const float* numbers[N];
  Shape s;
  bool silu;

  template <int V>
  __device__ Channels<V, N> start(int64_t b, int64_t, int64_t c) const {
    Channels<V, N> k;
    load(k.weight, weight + c), load(k.bias, bias + c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      uint32_t rest = uint32_t(c) + i, at = uint32_t(b * s.groups) + s.per_group.split(rest);
#pragma unroll
      for (int n = 0; n < N; n++) k.group[n][i] = i == 0 || rest == 0 ? numbers[n][at] : k.group[n][i > 0 ? i - 1 : 0];
    }
    return k;
  }
};

template <class T>
struct Forward : Pass<T, 2> {  // mean, rstd
  template <int V>
  __device__ void add(float (&)[1][V], const Channels<V, 2>& k, int64_t b, int64_t pixel, int64_t c) const {
    float v[V];
    load(v, this->x.at(this->s, b, pixel) + c);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = (v[i] - k.group[0][i]) * k.group[1][i] * k.weight[i] + k.bias[i];
      if (this->silu) v[i] *= sigmoid(v[i]);
    }
    store(this->y.at(this->s, b, pixel) + c, v);
  }
};

// x becomes xhat; dy the gradient at the norm's output z = xhat·w + b: itself, or dy · silu'(z).
template <int V, int N>
__device__ __forceinline__ void prepare(float (&x)[V], float (&dy)[V], const Channels<V, N>& k, bool silu) {
#pragma unroll
  for (int i = 0; i < V; i++) {
    x[i] = (x[i] - k.group[0][i]) * k.group[1][i];
    if (!silu) continue;
    float z = x[i] * k.weight[i] + k.bias[i], e = sigmoid(z);
    dy[i] *= e * (1 + z * (1 - e));
  }
}

// Sums of g and of g · xhat.
template <class T>
struct Sums : Pass<T, 2> {  // mean, rstd
  template <int V>
  __device__ void add(float (&sums)[2][V], const Channels<V, 2>& k, int64_t b, int64_t pixel, int64_t c) const {
    float xhat[V], g[V];
    load(xhat, this->x.at(this->s, b, pixel) + c), load(g, this->dy.at(this->s, b, pixel) + c);
    prepare(xhat, g, k, this->silu);
#pragma unroll
    for (int i = 0; i < V; i++) sums[0][i] += g[i], sums[1][i] += g[i] * xhat[i];
  }
};

// dx = rstd · (w g − mean(w g) − xhat · mean(w g xhat)), the means over the group.
template <class T>
struct Backward : Pass<T, 4> {  // mean, rstd, and those means
  template <int V>
  __device__ void add(float (&)[1][V], const Channels<V, 4>& k, int64_t b, int64_t pixel, int64_t c) const {
    float xhat[V], g[V];
    load(xhat, this->x.at(this->s, b, pixel) + c), load(g, this->dy.at(this->s, b, pixel) + c);
    prepare(xhat, g, k, this->silu);
#pragma unroll
    for (int i = 0; i < V; i++) g[i] = k.group[1][i] * (k.weight[i] * g[i] - k.group[2][i] - xhat[i] * k.group[3][i]);
    store(this->y.at(this->s, b, pixel) + c, g);
  }
};

// means [2, B, groups] = a group's means of w g and of w g xhat, from totals [B, 2, C]. A thread per group.
template <class T>
__global__ void __launch_bounds__(kThreads) group_means_kernel(float* means, const float* totals, const T* w, Shape s) {
  int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x, jobs = s.B * s.groups;
  if (job >= jobs) return;
  const float* t = totals + job / s.groups * 2 * s.C;
  float sum = 0, product = 0;
  for (int64_t c = job % s.groups * s.width, i = 0; i < s.width; c++, i++) {
    sum += to_float(w[c]) * t[c];
    product += to_float(w[c]) * t[s.C + c];
  }
  means[job] = sum / float(s.pixels * s.width);
  means[jobs + job] = product / float(s.pixels * s.width);
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
    float* partial = static_cast<float*>(workspace(ctx, s.partial_bytes() + s.B * s.groups * 8));
    float* own = partial + s.partial_bytes() / 4;  // mean and rstd where the caller wants none
    float *means = mean ? data<float>(mean) : own, *rstds = rstd ? data<float>(rstd) : own + s.B * s.groups;
    Image<const T> image = Image<const T>::of(x);
    for_columns<V, 2>(ctx, partial, s.B, s.pixels, s.C, Statistics<T>{image, s});
    merge_statistics_kernel<T><<<unsigned(s.B * s.groups), kThreads, 0, stream(ctx)>>>(means, rstds, partial, image, s, args->eps);
    Forward<T> f{{Image<T>::of(y), image, {}, data<T>(w), data<T>(b), {means, rstds}, s, args->silu != 0}};
    for_columns<V, 0>(ctx, nullptr, s.B, s.pixels, s.C, f);
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
    float* partial = static_cast<float*>(workspace(ctx, s.partial_bytes() + s.B * (2 * s.C + 2 * s.groups) * 4));
    float *totals = partial + s.partial_bytes() / 4, *means = totals + s.B * 2 * s.C, *center = data<float>(mean),
          *scale = data<float>(rstd);
    Image<const T> image = Image<const T>::of(x), gradient = Image<const T>::of(dy);
    Sums<T> sums{{{}, image, gradient, data<T>(w), data<T>(b), {center, scale}, s, args->silu != 0}};
    for_columns<V, 2>(ctx, partial, s.B, s.pixels, s.C, sums);
    finish_columns(ctx, totals, 2 * s.C, partial, s.B, s.chunks, 2 * s.C, 2 * s.C);
    if (dw) {
      finish_columns(ctx, data<float>(db), 0, totals, 1, s.B, s.C, 2 * s.C, 1, true);
      finish_columns(ctx, data<float>(dw), 0, totals + s.C, 1, s.B, s.C, 2 * s.C, 1, true);
    }
    group_means_kernel<<<blocks_for(s.B * s.groups), kThreads, 0, stream(ctx)>>>(means, totals, data<T>(w), s);
    Backward<T> f{
        {Image<T>::of(dx), image, gradient, data<T>(w), data<T>(b), {center, scale, means, means + s.B * s.groups}, s, args->silu != 0}};
    for_columns<V, 0>(ctx, nullptr, s.B, s.pixels, s.C, f);
    return fx_status(FX_STATUS_OK);
  });
}

}  // namespace

void add_groupnorm(fx_ops* ops) {
  ops->groupnorm_forward = groupnorm_forward;
  ops->groupnorm_backward = groupnorm_backward;
}

}  // namespace fx::cuda
