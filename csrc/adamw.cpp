// adamw.cpp: AdamW over many parameters at once, with their moving averages in the same pass, and the squared gradient norm it clips by.
// Bound by memory. Work is cut in chunks over all parameters together, so small tensors cost no parallel region of their own.
#include <math.h>

#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kChunk = 16384;  // elements

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// The chunks of all parameters, numbered through.
struct Chunks {
  int64_t* first;  // [count + 1]: number of each parameter's first chunk
  int64_t count;

  static int64_t bytes(int64_t count) { return round_up((count + 1) * 8, 64); }

  Chunks(void* memory, const fx_adamw_param* params, int64_t n) : first(static_cast<int64_t*>(memory)), count(n) {
    first[0] = 0;
    for (int64_t i = 0; i < n; i++) first[i + 1] = first[i] + chunks_of(params[i].n);
  }

  int64_t total() const { return first[count]; }

  // The parameter that chunk belongs to: the last one with first <= chunk that is not empty.
  int64_t parameter(int64_t chunk) const {
    int64_t low = 0, high = count;
    while (high - low > 1) {
      int64_t middle = (low + high) / 2;
      (first[middle] <= chunk ? low : high) = middle;
    }
    return low;
  }
};

int64_t chunk_total(const fx_adamw_param* params, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; i++) n += chunks_of(params[i].n);
  return n;
}

// Elements [start, start + n) of a parameter for a chunk.
struct Span {
  int64_t start, n;
  Span(int64_t index, int64_t size) : start(index * kChunk), n(start + kChunk < size ? kChunk : size - start) {}
};

fx_status grad_sum_squares(fx_ctx* ctx, const fx_tensor* out, const fx_adamw_param* params, int64_t count) {
  char* memory = static_cast<char*>(workspace(ctx, Chunks::bytes(count) + chunk_total(params, count) * 8));
  Chunks chunks(memory, params, count);
  double* partial = reinterpret_cast<double*>(memory + Chunks::bytes(count));
  parallel_for(ctx, chunks.total(), [&](int64_t chunk) {
    int64_t i = chunks.parameter(chunk);
    Span span(chunk - chunks.first[i], params[i].n);
    const float* grad = params[i].grad + span.start;
    vd total{};
    for_lanes(span.n, [&](int64_t j, int64_t lanes) {
      vd g = widen(load_some(grad + j, lanes));
      total += g * g;
    });
    partial[chunk] = sum(total);
  });
  double total = 0;
  for (int64_t j = 0; j < chunks.total(); j++) total += partial[j];
  *data<float>(out) = float(total);
  return FX_STATUS_OK;
}

// The constants of one step, made in f64.
struct Step {
  float clip, keep, beta1, rest1, beta2, rest2, rate, root, eps, decay, rest;

  Step(const fx_adamw_args& a, const fx_tensor* sum_squares) {
    double b1 = a.beta1, b2 = a.beta2, t = double(a.step), scale = 1;
    if (a.clip > 0) {
      scale = double(a.clip) / (::sqrt(double(*data<float>(sum_squares))) + 1e-6);
      if (scale > 1) scale = 1;  // a NaN norm stays NaN, and shows
    }
    clip = float(scale);
    keep = float(1 - double(a.lr) * double(a.weight_decay));
    beta1 = a.beta1, rest1 = float(1 - b1);
    beta2 = a.beta2, rest2 = float(1 - b2);
    rate = float(double(a.lr) / (1 - pow(b1, t)));
    root = float(1 / ::sqrt(1 - pow(b2, t)));
    eps = a.eps;
    decay = a.ema_decay, rest = float(1 - double(a.ema_decay));
  }
};

template <class P>
void update(const Step& s, const fx_adamw_param& p, Span span) {
  P* param = static_cast<P*>(p.param) + span.start;
  float *master = p.master + span.start, *mp = p.m + span.start, *vp = p.v + span.start;
  float* ema = p.ema ? p.ema + span.start : nullptr;
  const float* grad = p.grad + span.start;
  for_lanes(span.n, [&](int64_t i, int64_t lanes) {
    vf g = s.clip * load_some(grad + i, lanes);
    vf m = s.beta1 * load_some(mp + i, lanes) + s.rest1 * g;
    vf v = s.beta2 * load_some(vp + i, lanes) + s.rest2 * g * g;
    vf w = s.keep * load_some(master + i, lanes) - s.rate * m / (sqrt(v) * s.root + s.eps);
    store_some(mp + i, m, lanes);
    store_some(vp + i, v, lanes);
    store_some(master + i, w, lanes);
    if (static_cast<void*>(param) != master) store_some(param + i, w, lanes);
    if (ema) store_some(ema + i, s.decay * load_some(ema + i, lanes) + s.rest * w, lanes);
  });
}

fx_status adamw_step(fx_ctx* ctx, const fx_adamw_param* params, int64_t count, const fx_tensor* sum_squares, const fx_adamw_args* args) {
  Chunks chunks(workspace(ctx, Chunks::bytes(count)), params, count);
  Step step(*args, sum_squares);
  parallel_for(ctx, chunks.total(), [&](int64_t chunk) {
    const fx_adamw_param& p = params[chunks.parameter(chunk)];
    Span span(chunk - chunks.first[&p - params], p.n);
    if (p.dtype == FX_DTYPE_F32) update<float>(step, p, span);
    else update<bf16>(step, p, span);
  });
  return FX_STATUS_OK;
}

}  // namespace

void add_adamw(fx_ops* ops) {
  ops->grad_sum_squares = grad_sum_squares;
  ops->adamw_step = adamw_step;
}

}  // namespace fx::FX_TIER
