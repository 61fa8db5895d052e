// groupnorm.cpp: group normalisation of [B,Y,X,C] images with optional SiLU. Statistics per (image, group) from chunks of pixels: mean and
// sum of squared deviations of a chunk in f32 while it is in the cache, chunks merged in order in f64 (Chan et al. 1979), so neither a
// large mean nor a large image costs digits. Two passes over memory forward, two backward.
#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kChunkElements = 8192;  // f32 elements of a chunk: half of L1

struct Shape {
  int64_t B, pixels, X, C, groups, width, chunk, chunks;  // width: channels of a group; chunk: pixels, fixed by the shape

  Shape(const fx_tensor* x, const fx_groupnorm_args* args) {
    B = x->shape[0], X = x->shape[2], C = x->shape[3];
    pixels = x->shape[1] * X;
    groups = args->groups;
    width = C / groups;
    chunk = kChunkElements / C > 1 ? kChunkElements / C : 1;
    chunks = (pixels + chunk - 1) / chunk;
  }
};

// Calls f(pointers...) for the pixels of one chunk: the address of the pixel's channels in each tensor.
template <class T, class F, class... Tensor>
void for_pixels(const Shape& s, int64_t b, int64_t chunk, const F& f, const Tensor*... t) {
  int64_t first = chunk * s.chunk, last = first + s.chunk < s.pixels ? first + s.chunk : s.pixels;
  for (int64_t y = first / s.X, x = first % s.X; first < last; y++, x = 0)
    for (; x < s.X && first < last; x++, first++) f(data<T>(t) + b * t->strides[0] + y * t->strides[1] + x * t->strides[2]...);
}

// Sums of a group's channels, spread back over the channels: out[c] = factor · sum of in over the group of c.
void spread_groups(const Shape& s, float* out, const float* in, float factor) {
  for (int64_t g = 0; g < s.groups; g++) {
    float total = 0;
    for (int64_t c = g * s.width; c < (g + 1) * s.width; c++) total += in[c];
    for (int64_t c = g * s.width; c < (g + 1) * s.width; c++) out[c] = factor * total;
  }
}

// Adds up f(pixel's address, channel, lanes) over the pixels of one chunk into sums [C], a block of channels at a time: its sums stay in
// registers.
template <class T, class F>
void sum_pixels(const Shape& s, const fx_tensor* x, int64_t b, int64_t chunk, float* sums, const F& f) {
  constexpr int N = 4;
  int64_t c = 0;
  for (; c + N * kLanes <= s.C; c += N * kLanes) {
    vf total[N] = {};
    for_pixels<T>(
        s, b, chunk,
        [&](const T* in) {
#pragma GCC unroll 4
          for (int j = 0; j < N; j++) total[j] += f(in, c + j * kLanes, kLanes);
        },
        x);
    for (int j = 0; j < N; j++) store(sums + c + j * kLanes, total[j]);
  }
  for (; c < s.C; c += kLanes) {
    int64_t lanes = s.C - c < kLanes ? s.C - c : kLanes;
    vf total{};
    for_pixels<T>(
        s, b, chunk, [&](const T* in) { total += f(in, c, lanes); }, x);
    store_some(sums + c, total, lanes);
  }
}

// mean and sum of squared deviations of every group of one chunk, into stats [groups,2]. scratch [2,C].
template <class T>
void chunk_statistics(const Shape& s, const fx_tensor* x, int64_t b, int64_t chunk, float* stats, float* scratch) {
  int64_t C = s.C, left = s.pixels - chunk * s.chunk, n = left < s.chunk ? left : s.chunk;
  float *sums = scratch, *means = scratch + C;
  sum_pixels<T>(s, x, b, chunk, sums, [](const T* in, int64_t c, int64_t lanes) { return load_some(in + c, lanes); });
  spread_groups(s, means, sums, 1.0f / float(n * s.width));
  sum_pixels<T>(s, x, b, chunk, sums, [&](const T* in, int64_t c, int64_t lanes) {
    vf d = load_some(in + c, lanes) - load_some(means + c, lanes);
    return d * d;
  });
  for (int64_t g = 0; g < s.groups; g++) {
    float total = 0;
    for (int64_t c = g * s.width; c < (g + 1) * s.width; c++) total += sums[c];
    stats[2 * g] = means[g * s.width];
    stats[2 * g + 1] = total;
  }
}

// Merges the chunks' statistics of one group in order. stats points to the group in the first chunk.
void merge_statistics(const Shape& s, const float* stats, float eps, float* mean, float* rstd) {
  double n = 0, m = 0, squares = 0;
  for (int64_t i = 0; i < s.chunks; i++) {
    int64_t left = s.pixels - i * s.chunk;
    double k = double((left < s.chunk ? left : s.chunk) * s.width), delta = stats[2 * i * s.groups] - m;
    squares += stats[2 * i * s.groups + 1] + delta * delta * n * k / (n + k);
    m += delta * k / (n + k);
    n += k;
  }
  *mean = float(m);
  *rstd = float(1 / __builtin_sqrt(squares / n + double(eps)));
}

// Per-channel copies of one image's parameters: what the inner loops load.
struct Channels {
  float *mean, *rstd, *weight, *bias, *scale;  // scale = rstd · weight
};

template <class T>
void fill_channels(const Shape& s, const Channels& out, const float* mean, const float* rstd, const fx_tensor* w, const fx_tensor* b) {
  for (int64_t c = 0; c < s.C; c++) {
    out.mean[c] = mean[c / s.width];
    out.rstd[c] = rstd[c / s.width];
    out.weight[c] = to_float(data<T>(w)[c]);
    out.bias[c] = to_float(data<T>(b)[c]);
    out.scale[c] = out.rstd[c] * out.weight[c];
  }
}

Channels channels_at(float* base, int64_t C) { return {base, base + C, base + 2 * C, base + 3 * C, base + 4 * C}; }

template <class T>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x, const fx_tensor* w,
                  const fx_tensor* b, const fx_groupnorm_args* args) {
  Shape s(x, args);
  int64_t C = s.C, jobs = s.B * s.chunks;
  float* stats = static_cast<float*>(workspace(ctx, (jobs * s.groups * 2 + s.B * (5 * C + 2 * s.groups) + ctx->threads * 2 * C) * 4));
  float* channels = stats + jobs * s.groups * 2;
  float* own = channels + s.B * 5 * C;  // mean and rstd where the caller wants none
  float* scratch = own + s.B * 2 * s.groups;
  float *means = mean ? data<float>(mean) : own, *rstds = rstd ? data<float>(rstd) : own + s.B * s.groups;
  parallel_for(ctx, jobs, [&](int64_t job) {
    chunk_statistics<T>(s, x, job / s.chunks, job % s.chunks, stats + job * s.groups * 2, scratch + thread_index() * 2 * C);
  });
  for (int64_t i = 0; i < s.B * s.groups; i++)
    merge_statistics(s, stats + (i / s.groups * s.chunks * s.groups + i % s.groups) * 2, args->eps, means + i, rstds + i);
  for (int64_t i = 0; i < s.B; i++)
    fill_channels<T>(s, channels_at(channels + i * 5 * C, C), means + i * s.groups, rstds + i * s.groups, w, b);
  bool silu = args->silu != 0, stream = streamed(y);
  parallel_for(ctx, jobs, [&](int64_t job) {
    Channels p = channels_at(channels + job / s.chunks * 5 * C, C);
    for_pixels<T>(
        s, job / s.chunks, job % s.chunks,
        [&](T* out, const T* in) {
          for_lanes(C, [&](int64_t c, int64_t lanes) {
            vf z = (read_some(in + c, lanes) - load_some(p.mean + c, lanes)) * load_some(p.scale + c, lanes) + load_some(p.bias + c, lanes);
            write_some(out + c, silu ? z * sigmoid(z) : z, lanes, stream);
          });
        },
        y, x);
  });
  return FX_STATUS_OK;
}

// Gradient at the norm's output, z = xhat·w + b: dy, or dy · silu'(z).
FX_INLINE vf output_gradient(vf dy, vf xhat, vf w, vf b, bool silu) {
  if (!silu) return dy;
  vf z = xhat * w + b, e = sigmoid(z);
  return dy * e * (1.0f + z * (1.0f - e));
}

// Per channel of one chunk: sums of g and of g·xhat into sums [2,C].
template <class T>
void chunk_sums(const Shape& s, const Channels& p, const fx_tensor* dy, const fx_tensor* x, int64_t b, int64_t chunk, bool silu,
                float* sums) {
  int64_t C = s.C;
  memset(sums, 0, size_t(2 * C) * 4);
  for_pixels<T>(
      s, b, chunk,
      [&](const T* grad, const T* in) {
        for_lanes(C, [&](int64_t c, int64_t lanes) {
          vf xhat = (read_some(in + c, lanes) - load_some(p.mean + c, lanes)) * load_some(p.rstd + c, lanes);
          vf g = output_gradient(read_some(grad + c, lanes), xhat, load_some(p.weight + c, lanes), load_some(p.bias + c, lanes), silu);
          store_some(sums + c, load_some(sums + c, lanes) + g, lanes);
          store_some(sums + C + c, load_some(sums + C + c, lanes) + g * xhat, lanes);
        });
      },
      dy, x);
}

// dx of one chunk: rstd · (w g − a − xhat · c), with the group's means a of w g and c of w g xhat.
template <class T>
void chunk_gradient(const Shape& s, const Channels& p, const float* a, const float* c, const fx_tensor* dx, const fx_tensor* dy,
                    const fx_tensor* x, int64_t b, int64_t chunk, bool silu, bool stream) {
  for_pixels<T>(
      s, b, chunk,
      [&](T* out, const T* grad, const T* in) {
        for_lanes(s.C, [&](int64_t i, int64_t lanes) {
          vf rstd = load_some(p.rstd + i, lanes), w = load_some(p.weight + i, lanes);
          vf xhat = (read_some(in + i, lanes) - load_some(p.mean + i, lanes)) * rstd;
          vf g = output_gradient(load_some(grad + i, lanes), xhat, w, load_some(p.bias + i, lanes), silu);
          write_some(out + i, rstd * (w * g - load_some(a + i, lanes) - xhat * load_some(c + i, lanes)), lanes, stream);
        });
      },
      dx, dy, x);
}

// Adds the chunks' sums [chunks,2,C] of one image in order, in f64, into totals [2,C].
void merge_sums(const Shape& s, const float* sums, float* totals) {
  for (int64_t c = 0; c < 2 * s.C; c++) {
    double total = 0;
    for (int64_t i = 0; i < s.chunks; i++) total += sums[i * 2 * s.C + c];
    totals[c] = float(total);
  }
}

template <class T>
fx_status backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy, const fx_tensor* x,
                   const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* args) {
  Shape s(x, args);
  int64_t C = s.C, jobs = s.B * s.chunks;
  bool silu = args->silu != 0, stream = streamed(dx);
  float* sums = static_cast<float*>(workspace(ctx, (jobs * 2 + s.B * 9) * C * 4));
  float *totals = sums + jobs * 2 * C, *coefficients = totals + s.B * 2 * C, *channels = coefficients + s.B * 2 * C;
  for (int64_t i = 0; i < s.B; i++)
    fill_channels<T>(s, channels_at(channels + i * 5 * C, C), data<float>(mean) + i * s.groups, data<float>(rstd) + i * s.groups, w, b);
  parallel_for(ctx, jobs, [&](int64_t job) {
    chunk_sums<T>(s, channels_at(channels + job / s.chunks * 5 * C, C), dy, x, job / s.chunks, job % s.chunks, silu, sums + job * 2 * C);
  });
  parallel_for(ctx, s.B, [&](int64_t i) {
    float *total = totals + i * 2 * C, *weighted = coefficients + i * 2 * C, *weight = channels_at(channels + i * 5 * C, C).weight;
    merge_sums(s, sums + i * s.chunks * 2 * C, total);
    float factor = 1.0f / float(s.pixels * s.width);
    for (int64_t c = 0; c < C; c++) weighted[c] = weight[c] * total[c], weighted[C + c] = weight[c] * total[C + c];
    spread_groups(s, weighted, weighted, factor);
    spread_groups(s, weighted + C, weighted + C, factor);
  });
  if (dw)
    for (int64_t i = 0; i < s.B; i++)
      for (int64_t c = 0; c < C; c++) data<float>(db)[c] += totals[i * 2 * C + c], data<float>(dw)[c] += totals[i * 2 * C + C + c];
  parallel_for(ctx, jobs, [&](int64_t job) {
    int64_t i = job / s.chunks;
    const float* k = coefficients + i * 2 * C;
    chunk_gradient<T>(s, channels_at(channels + i * 5 * C, C), k, k + C, dx, dy, x, i, job % s.chunks, silu, stream);
  });
  return FX_STATUS_OK;
}

fx_status groupnorm_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* x,
                            const fx_tensor* w, const fx_tensor* b, const fx_groupnorm_args* args) {
  return dispatch(x->dtype, [&](auto t) { return forward<decltype(t)>(ctx, y, mean, rstd, x, w, b, args); });
}

fx_status groupnorm_backward(fx_ctx* ctx, const fx_tensor* dx, const fx_tensor* dw, const fx_tensor* db, const fx_tensor* dy,
                             const fx_tensor* x, const fx_tensor* mean, const fx_tensor* rstd, const fx_tensor* w, const fx_tensor* b,
                             const fx_groupnorm_args* args) {
  return dispatch(x->dtype, [&](auto t) { return backward<decltype(t)>(ctx, dx, dw, db, dy, x, mean, rstd, w, b, args); });
}

}  // namespace

void add_groupnorm(fx_ops* ops) {
  ops->groupnorm_forward = groupnorm_forward;
  ops->groupnorm_backward = groupnorm_backward;
}

}  // namespace fx::FX_TIER
