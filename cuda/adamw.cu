// adamw.cu: AdamW over many parameters at once, the squared gradient norm it clips by, and the moving average of the weights. Bound by
// memory. The list of parameters travels with the launch, kTensors at a time, and the work is cut in chunks over all of them together: no
// copies of lists to the card, and small tensors cost no launch of their own.
#include "core/device.cuh"

namespace fx::cuda {
namespace {

constexpr int64_t kElements = 4096;  // of a chunk
constexpr int kTensors = 44;         // of a launch: the arguments of a kernel may have 4 KB

struct Batch {
  fx_adamw_param params[kTensors];
  uint32_t first[kTensors + 1];  // number of each parameter's first chunk
  int count;

  // The parameter that a chunk belongs to.
  __device__ int parameter(uint32_t chunk) const {
    int low = 0, high = count;
    while (high - low > 1) {
      int middle = (low + high) / 2;
      (first[middle] <= chunk ? low : high) = middle;
    }
    return low;
  }
};

// Calls f(batch, chunks before it) for all parameters that are not empty.
template <class F>
void for_batches(const fx_adamw_param* params, int64_t count, const F& f) {
  int64_t before = 0;
  Batch batch;
  batch.count = 0;
  batch.first[0] = 0;
  for (int64_t i = 0; i < count; i++) {
    if (params[i].n > 0) {
      batch.params[batch.count] = params[i];
      batch.first[batch.count + 1] = batch.first[batch.count] + uint32_t(ceil_div(params[i].n, kElements));
      batch.count++;
    }
    if (batch.count == kTensors || (i == count - 1 && batch.count > 0)) {
      f(batch, before);
      before += batch.first[batch.count];
      batch.count = 0;
    }
  }
}

__device__ __forceinline__ bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls f.run<V>(index) for the elements of a chunk that starts at `start`.
template <class F>
__device__ __forceinline__ void for_chunk(int64_t start, int64_t n, bool wide, const F& f) {
  int64_t end = min(start + kElements, n), i = start;
  if (wide) {
    int64_t last = start + (end - start) / 4 * 4;
    for (i = start + int64_t(threadIdx.x) * 4; i < last; i += kThreads * 4) f.template run<4>(i);
    i = last;
  }
  for (i += threadIdx.x; i < end; i += kThreads) f.template run<1>(i);
}

struct Squares {
  const float* grad;
  double* total;

  template <int V>
  __device__ void run(int64_t at) const {
    float g[V];
    load(g, grad + at);
#pragma unroll
    for (int i = 0; i < V; i++) *total += double(g[i]) * double(g[i]);
  }
};

__global__ void __launch_bounds__(kThreads) grad_sum_squares_kernel(double* partial, __grid_constant__ const Batch batch) {
  int p = batch.parameter(blockIdx.x);
  double total = 0;
  const float* grad = batch.params[p].grad;
  for_chunk(int64_t(blockIdx.x - batch.first[p]) * kElements, batch.params[p].n, aligned(grad), Squares{grad, &total});
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) finish_squares_kernel(float* out, const double* partial, int64_t n) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) total += partial[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *out = float(total);
}

fx_status grad_sum_squares(fx_ctx* ctx, const fx_tensor* out, const fx_adamw_param* params, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; i++) chunks += ceil_div(params[i].n, kElements);
  double* partial = static_cast<double*>(workspace(ctx, (chunks + 1) * 8));
  for_batches(params, count, [&](const Batch& batch, int64_t before) {
    grad_sum_squares_kernel<<<batch.first[batch.count], kThreads, 0, stream(ctx)>>>(partial + before, batch);
  });
  finish_squares_kernel<<<1, kThreads, 0, stream(ctx)>>>(data<float>(out), partial, chunks);
  return FX_STATUS_OK;
}

// The constants of one step, made in f64.
struct Step {
  float keep, beta1, rest1, beta2, rest2, rate, root, eps, decay, rest_decay;
  double clip;

  explicit Step(const fx_adamw_args& a) {
    double b1 = a.beta1, b2 = a.beta2, t = double(a.step);
    keep = float(1 - double(a.lr) * double(a.weight_decay));
    beta1 = a.beta1, rest1 = float(1 - b1);
    beta2 = a.beta2, rest2 = float(1 - b2);
    rate = float(double(a.lr) / (1 - pow(b1, t)));
    root = float(1 / sqrt(1 - pow(b2, t)));
    eps = a.eps;
    decay = a.ema_decay, rest_decay = float(1 - double(a.ema_decay));
    clip = a.clip;
  }

  __device__ float scale(const float* sum_squares) const {
    if (!(clip > 0)) return 1;
    double s = clip / (sqrt(double(*sum_squares)) + 1e-6);
    return float(s > 1 ? 1 : s);  // a NaN norm stays NaN, and shows
  }
};

template <class P>
struct Update {
  Step s;
  float clip;
  P* param;
  float *master, *m, *v, *ema;
  const float* grad;

  template <int V>
  __device__ void run(int64_t at) const {
    float g[V], mean[V], square[V], w[V];
    load(g, grad + at), load(mean, m + at), load(square, v + at), load(w, master + at);
#pragma unroll
    for (int i = 0; i < V; i++) {
      g[i] *= clip;
      mean[i] = s.beta1 * mean[i] + s.rest1 * g[i];
      square[i] = s.beta2 * square[i] + s.rest2 * g[i] * g[i];
      w[i] = s.keep * w[i] - s.rate * mean[i] / (sqrtf(square[i]) * s.root + s.eps);
    }
    store(m + at, mean), store(v + at, square), store(master + at, w);
    if (static_cast<void*>(param) != master) store(param + at, w);
    if (!ema) return;
    load(g, ema + at);
#pragma unroll
    for (int i = 0; i < V; i++) g[i] = s.decay * g[i] + s.rest_decay * w[i];
    store(ema + at, g);
  }
};

__global__ void __launch_bounds__(kThreads) adamw_kernel(__grid_constant__ const Batch batch, Step step, const float* sum_squares) {
  int i = batch.parameter(blockIdx.x);
  const fx_adamw_param& p = batch.params[i];
  int64_t start = int64_t(blockIdx.x - batch.first[i]) * kElements;
  float clip = step.scale(sum_squares);
  bool wide = aligned(p.param) && aligned(p.master) && aligned(p.m) && aligned(p.v) && aligned(p.grad) && aligned(p.ema);
  if (p.dtype == FX_DTYPE_F32)
    for_chunk(start, p.n, wide, Update<float>{step, clip, static_cast<float*>(p.param), p.master, p.m, p.v, p.ema, p.grad});
  else for_chunk(start, p.n, wide, Update<bf16>{step, clip, static_cast<bf16*>(p.param), p.master, p.m, p.v, p.ema, p.grad});
}

fx_status adamw_step(fx_ctx* ctx, const fx_adamw_param* params, int64_t count, const fx_tensor* sum_squares, const fx_adamw_args* args) {
  Step step(*args);
  for_batches(params, count, [&](const Batch& batch, int64_t) {
    adamw_kernel<<<batch.first[batch.count], kThreads, 0, stream(ctx)>>>(batch, step, data<float>(sum_squares));
  });
  return FX_STATUS_OK;
}

}  // namespace

void add_adamw(fx_ops* ops) {
  ops->grad_sum_squares = grad_sum_squares;
  ops->adamw_step = adamw_step;
}

}  // namespace fx::cuda
