// gate.cpp: gated residual y = x + alpha · gate_b ⊙ r, which is also the SE broadcast of spec 3.5. Bound by memory: one pass forward, one
// pass backward that makes dr and dgate together.
#include "core/op.h"

namespace fx::FX_TIER {
namespace {

constexpr int64_t kRows = 32;  // rows per chunk of the reduction over tokens: fixed, so that sums do not depend on the threads

template <class T, class G>
void gate_row(T* y, const T* x, const G* gate, const T* r, int64_t C, float alpha, bool stream) {
  for_mixed<T, G>(C, [&](int64_t i, auto lanes) {
    write_some(y + i, read_some(x + i, lanes) + alpha * load_some(gate + i, lanes) * read_some(r + i, lanes), lanes, stream);
  });
}

template <class T, class G>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  int64_t B = x->shape[0], L = x->shape[1], C = x->shape[2];
  bool stream = streamed(y);
  parallel_for(ctx, B * L, [&](int64_t row) {
    int64_t b = row / L, l = row % L;
    gate_row(data<T>(y) + b * y->strides[0] + l * y->strides[1], data<T>(x) + b * x->strides[0] + l * x->strides[1],
             data<G>(gate) + b * gate->strides[0], data<T>(r) + b * r->strides[0] + l * r->strides[1], C, alpha, stream);
  });
  return FX_STATUS_OK;
}

// One row: dr = alpha·gate·dy, or += that; sums += dy·r.
template <class T, class G>
void gate_backward_row(T* dr, float* sums, const T* dy, const G* gate, const T* r, int64_t C, float alpha, bool accumulate, bool stream) {
  for_mixed<T, G>(C, [&](int64_t i, auto lanes) {
    auto g = read_some(dy + i, lanes);
    if (dr) {
      auto d = alpha * load_some(gate + i, lanes) * g;
      write_some(dr + i, accumulate ? load_some(dr + i, lanes) + d : d, lanes, stream);
    }
    if (sums) store_some(sums + i, load_some(sums + i, lanes) + g * read_some(r + i, lanes), lanes);
  });
}

template <class T, class G>
fx_status backward(fx_ctx* ctx, const fx_tensor* dr, const fx_tensor* dgate, const fx_tensor* dy, const fx_tensor* gate, const fx_tensor* r,
                   float alpha, bool accumulate) {
  int64_t B = dy->shape[0], L = dy->shape[1], C = dy->shape[2];
  int64_t chunks = (L + kRows - 1) / kRows;
  bool stream = dr && !accumulate && streamed(dr);
  float* partial = dgate ? static_cast<float*>(workspace(ctx, B * chunks * C * 4)) : nullptr;
  parallel_for(ctx, B * chunks, [&](int64_t job) {
    int64_t b = job / chunks, first = job % chunks * kRows, last = first + kRows < L ? first + kRows : L;
    float* sums = partial ? partial + job * C : nullptr;
    if (sums) memset(sums, 0, size_t(C) * 4);
    for (int64_t l = first; l < last; l++)
      gate_backward_row(dr ? data<T>(dr) + b * dr->strides[0] + l * dr->strides[1] : nullptr, sums,
                        data<T>(dy) + b * dy->strides[0] + l * dy->strides[1], data<G>(gate) + b * gate->strides[0],
                        r ? data<T>(r) + b * r->strides[0] + l * r->strides[1] : nullptr, C, alpha, accumulate, stream);
  });
  if (!dgate) return FX_STATUS_OK;
  parallel_for(ctx, B, [&](int64_t b) {
    for_mixed<T, G>(C, [&](int64_t i, auto lanes) {
      auto total = load_some(partial + b * chunks * C + i, lanes);
      for (int64_t j = 1; j < chunks; j++) total = total + load_some(partial + (b * chunks + j) * C + i, lanes);
      store_some(data<G>(dgate) + b * dgate->strides[0] + i, alpha * total, lanes);
    });
  });
  return FX_STATUS_OK;
}

fx_status gate_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  return dispatch(x->dtype, [&](auto t) {
    return dispatch(gate->dtype, [&](auto g) { return forward<decltype(t), decltype(g)>(ctx, y, x, gate, r, alpha); });
  });
}

fx_status gate_backward(fx_ctx* ctx, const fx_tensor* dr, const fx_tensor* dgate, const fx_tensor* dy, const fx_tensor* gate,
                        const fx_tensor* r, float alpha, int32_t accumulate) {
  return dispatch(dy->dtype, [&](auto t) {
    return dispatch(gate->dtype,
                    [&](auto g) { return backward<decltype(t), decltype(g)>(ctx, dr, dgate, dy, gate, r, alpha, accumulate != 0); });
  });
}

}  // namespace

void add_gate(fx_ops* ops) {
  ops->gate_forward = gate_forward;
  ops->gate_backward = gate_backward;
}

}  // namespace fx::FX_TIER
