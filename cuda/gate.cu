// gate.cu: gated residual y = x + alpha · gate_b ⊙ r, which is also the SE broadcast of spec 3.5. Bound by memory: one pass forward, one
// pass backward that makes dr and the sums of dgate together.
#include "core/columns.cuh"

namespace fx::cuda {
namespace {

// alpha · gate of an item, which a thread keeps for all its rows.
template <class G>
struct Gain {
  const G* gate;
  int64_t stride;
  float alpha;

  template <int V>
  __device__ Floats<V> start(int64_t b, int64_t, int64_t c) const {
    Floats<V> g;
    load(g.v, gate + b * stride + c);
#pragma unroll
    for (int i = 0; i < V; i++) g.v[i] *= alpha;
    return g;
  }
};

template <class T, class G>
struct Forward : Gain<G> {
  T* y;
  const T *x, *r;
  int64_t y_strides[2], x_strides[2], r_strides[2];

  template <int V>
  __device__ void add(float (&)[1][V], const Floats<V>& g, int64_t b, int64_t l, int64_t c) const {
    float a[V], v[V];
    load(a, x + b * x_strides[0] + l * x_strides[1] + c), load(v, r + b * r_strides[0] + l * r_strides[1] + c);
#pragma unroll
    for (int i = 0; i < V; i++) a[i] += g.v[i] * v[i];
    store(y + b * y_strides[0] + l * y_strides[1] + c, a);
  }
};

template <class T, class G>
fx_status forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  Forward<T, G> f{{data<G>(gate), gate->strides[0], alpha}, data<T>(y), data<T>(x), data<T>(r), {}, {}, {}};
  for (int d = 0; d < 2; d++) f.y_strides[d] = y->strides[d], f.x_strides[d] = x->strides[d], f.r_strides[d] = r->strides[d];
  constexpr int V = vector_width<T, G>;
  bool wide = vectors(y, V * sizeof(T)) && vectors(x, V * sizeof(T)) && vectors(r, V * sizeof(T)) && vectors(gate, V * sizeof(G));
  if (wide) for_columns<V, 0>(ctx, nullptr, x->shape[0], x->shape[1], x->shape[2], f);
  else for_columns<1, 0>(ctx, nullptr, x->shape[0], x->shape[1], x->shape[2], f);
  return FX_STATUS_OK;
}

fx_status gate_forward(fx_ctx* ctx, const fx_tensor* y, const fx_tensor* x, const fx_tensor* gate, const fx_tensor* r, float alpha) {
  return dispatch(x->dtype, [&](auto t) {
    return dispatch(gate->dtype, [&](auto g) { return forward<decltype(t), decltype(g)>(ctx, y, x, gate, r, alpha); });
  });
}

// dr = alpha · gate ⊙ dy, or += that, where wanted; sums += dy ⊙ r where there is r.
template <class T, class G>
struct Backward : Gain<G> {
  T* dr;
  const T *dy, *r;
  int64_t dr_strides[2], dy_strides[2], r_strides[2];
  bool accumulate;

  template <int V>
  __device__ void add(float (&sums)[1][V], const Floats<V>& scale, int64_t b, int64_t l, int64_t c) const {
    float g[V], v[V];
    load(g, dy + b * dy_strides[0] + l * dy_strides[1] + c);
    if (r) {
      load(v, r + b * r_strides[0] + l * r_strides[1] + c);
#pragma unroll
      for (int i = 0; i < V; i++) sums[0][i] += g[i] * v[i];
    }
    if (!dr) return;
#pragma unroll
    for (int i = 0; i < V; i++) g[i] *= scale.v[i];
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
  float* partial = dgate ? static_cast<float*>(workspace(ctx, B * chunks_of(L) * C * 4)) : nullptr;
  Backward<T, G> f{
      {data<G>(gate), gate->strides[0], alpha}, data<T>(dr), data<T>(dy), dgate ? data<T>(r) : nullptr, {}, {}, {}, accumulate};
  for (int d = 0; d < 2; d++) {
    f.dy_strides[d] = dy->strides[d];
    if (dr) f.dr_strides[d] = dr->strides[d];
    if (dgate) f.r_strides[d] = r->strides[d];
  }
  constexpr int V = vector_width<T, G>;
  bool wide = vectors(dy, V * sizeof(T)) && vectors(dr, V * sizeof(T)) && vectors(dgate ? r : nullptr, V * sizeof(T)) &&
              vectors(gate, V * sizeof(G));
  if (wide) for_columns<V, 1>(ctx, partial, B, L, C, f);
  else for_columns<1, 1>(ctx, partial, B, L, C, f);
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
