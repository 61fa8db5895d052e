// gate.cu: gated residual y = x + alpha · gate_b ⊙ r, which is also the SE broadcast of spec 3.5. Bound by memory: one pass forward, one
// pass backward that makes dr and the sums of dgate together.
#include "core/columns.cuh"
#include "core/rows.cuh"

namespace fx::cuda {
namespace {

template <class T, class G>
struct Forward {
  static constexpr int kWidth = vector_width<T, G>;
  T* y;
  const T *x, *r;
  const G* gate;
  float alpha;

  template <int V>
  __device__ void run(const At<4>& at) const {
    float a[V], g[V], b[V];
    load(a, x + at.at[1]), load(g, gate + at.at[2]), load(b, r + at.at[3]);
#pragma unroll
    for (int i = 0; i < V; i++) a[i] += alpha * g[i] * b[i];
    store(y + at.at[0], a);
  }
};

// gate [B,C] seen as [B,L,C].
fx_tensor over_tokens(const fx_tensor* gate, const fx_tensor* x) {
  fx_tensor g = *gate;
  g.rank = 3;
  for (int d = 0; d < 3; d++) g.shape[d] = x->shape[d];
  g.strides[0] = gate->strides[0], g.strides[1] = 0, g.strides[2] = 1;
  return g;
}

fx_status gate_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  fx_tensor wide = over_tokens(gate, x);
  RowsPlan<4> plan({y, x, &wide, r});
  return dispatch(x->dtype, [&](auto t) {
    return dispatch(gate->dtype, [&](auto g) {
      using T = decltype(t);
      using G = decltype(g);
      return for_rows(ctx, plan, Forward<T, G>{data<T>(y), data<T>(x), data<T>(r), data<G>(gate), alpha});
    });
  });
}

// dr = alpha · gate ⊙ dy, or += that, where wanted; sums += dy ⊙ r where there is r.
template <class T, class G>
struct Backward {
  T* dr;
  const T *dy, *r;
  const G* gate;
  int64_t dr_strides[2], dy_strides[2], r_strides[2], gate_stride;
  float alpha;
  bool accumulate;

  template <int V>
  __device__ void add(float (&sums)[1][V], int64_t b, int64_t l, int64_t c) const {
    float g[V], v[V];
    load(g, dy + b * dy_strides[0] + l * dy_strides[1] + c);
    if (r) {
      load(v, r + b * r_strides[0] + l * r_strides[1] + c);
#pragma unroll
      for (int i = 0; i < V; i++) sums[0][i] += g[i] * v[i];
    }
    if (!dr) return;
    load(v, gate + b * gate_stride + c);
#pragma unroll
    for (int i = 0; i < V; i++) g[i] *= alpha * v[i];
    if (accumulate) {
      load(v, dr + b * dr_strides[0] + l * dr_strides[1] + c);
#pragma unroll
      for (int i = 0; i < V; i++) g[i] += v[i];
    }
    store(dr + b * dr_strides[0] + l * dr_strides[1] + c, g);
  }
};

template <class T, class G>
fx_status backward(fx_ctx* ctx, const fx_tensor* dr, const fx_tensor* dgate, const fx_tensor* dy, const fx_tensor* gate, const fx_tensor* r,
                   float alpha, bool accumulate) {
  int64_t B = dy->shape[0], L = dy->shape[1], C = dy->shape[2];
  float* partial = static_cast<float*>(workspace(ctx, B * chunks_of(L) * C * 4));
  Backward<T, G> f{data<T>(dr), data<T>(dy), dgate ? data<T>(r) : nullptr, data<G>(gate), {}, {}, {}, gate->strides[0], alpha, accumulate};
  for (int d = 0; d < 2; d++) {
    f.dy_strides[d] = dy->strides[d];
    if (dr) f.dr_strides[d] = dr->strides[d];
    if (dgate) f.r_strides[d] = r->strides[d];
  }
  constexpr int V = vector_width<T, G>;
  bool wide = vectors(dy, V * sizeof(T)) && vectors(dr, V * sizeof(T)) && vectors(dgate ? r : nullptr, V * sizeof(T)) &&
              vectors(gate, V * sizeof(G));
  if (wide) sum_columns<V, 1>(ctx, partial, B, L, C, f);
  else sum_columns<1, 1>(ctx, partial, B, L, C, f);
  if (dgate) finish_columns(ctx, data<G>(dgate), dgate->strides[0], partial, B, chunks_of(L), C, C, alpha);
  return FX_STATUS_OK;
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

}  // namespace fx::cuda
