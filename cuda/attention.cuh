// attention.cuh: what the attention kernels share: arguments, rows of one head, launches. Which kernel runs:
//   D <= 128  attention.cu, attention_backward.cu: tiles in shared memory, products of mma.cuh; D is padded to 32, 64 or 128
//   D > 128   attention_wide.cu: rows in the registers of a warp, f32 FMA (only autoencoders have such heads, and only one)
#pragma once
#include "mma.cuh"

namespace fx::cuda {

struct AttentionShape {
  int B, H, Lq, Lk, D;
};

// A tensor [B,L,H,D]; strides in elements.
template <class T>
struct Heads {
  T* data;
  int64_t batch, row, head;
  bool vec;  // every row starts at a multiple of 16 bytes
};

// The rows of one head.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  int length, dims;
  bool vec;

  // NULL beyond the last.
  __device__ T* row(int i) const { return i < length ? data + i * stride : nullptr; }

  // Rows [first, first + R) to a tile of R rows x D columns, zeros where there are none, by all threads of a block.
  template <int R, int D, int Threads>
  __device__ void load(Tile<T, D> tile, int first) const {
    constexpr int units = Tile<T, D>::kUnits, step = Threads / units;
    static_assert(R % step == 0);
    int r = int(threadIdx.x) / units, unit = int(threadIdx.x) % units, exist = unit * kUnit<T> < dims ? length - first : 0;
    const T* src = data + (first + r) * stride + unit * kUnit<T>;
    if (vec) {
#pragma unroll
      for (int i = 0; i < R; i += step, src += step * stride) cp_async16(tile.at(r + i, unit), r + i < exist ? src : data, r + i < exist);
    } else {
#pragma unroll 1
      for (int i = 0; i < R; i += step, src += step * stride) load_unit(tile.at(r + i, unit), src, r + i < exist ? kUnit<T> : 0);
    }
  }
};

template <class T>
__device__ inline HeadRows<T> head_rows(const Heads<T>& t, int b, int h, int length, int dims) {
  return {t.data + b * t.batch + h * t.head, t.row, length, dims, t.vec};
}

template <class T>
Heads<T> heads(const fx_tensor* t) {
  return {static_cast<T*>(t->data), t->strides[0], t->strides[1], t->strides[2], vectors(t, 16)};
}

inline AttentionShape attention_shape(const fx_tensor* q, const fx_tensor* k) {
  return {int(q->shape[0]), int(q->shape[2]), int(q->shape[1]), int(k->shape[1]), int(q->shape[3])};
}

// Queries and keys normed and rotated, in the workspace; for norm_heads_backward, what it needs of the norm; memory for the caller.
struct NormedHeads {
  fx_tensor q, k;         // contiguous, but for a q that is left as it is
  float *rstd, *partial;  // of q, then of k; sums of the gradients of weights
  void* more;
};
// Takes the workspace, `more` bytes of it for the caller. queries: q too; unnorm: norm_heads_backward follows.
NormedHeads norm_heads(fx_ctx* ctx, const fx_tensor* q, const fx_tensor* k, const fx_qk_norm& norm, bool queries, bool unnorm,
                       int64_t more);
// dq and dk of the normed rows become those of q and k; adds to the gradients of the weights.
void norm_heads_backward(fx_ctx* ctx, const NormedHeads& n, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* q,
                         const fx_tensor* k, const fx_qk_norm& norm);

// Norm and rotation of rows of q or k by lanes that share a row, four neighbouring elements from column c on each.
template <class T>
struct RowNorm {
  const T* weight[2];  // of rows before split, of the others; both NULL: no norm
  const float* pe;     // [L, D]: cos and sin of each pair; NULL: no rotation
  int split, D;
  float eps;
  bool vec;  // four weights, and four numbers of pe, may be read at once

  __device__ bool normed() const { return weight[0] || weight[1]; }
  __device__ bool any() const { return pe || normed(); }

  // Rows beyond the last are zeros, and stay so.
  template <int Lanes>
  __device__ void forward(float (&x)[4], int l, int c, bool exists) const {
    if (normed()) {
      float r = rstd<Lanes>(x), w[4];
      fetch(w, l >= split ? weight[1] : weight[0], c, exists);
#pragma unroll
      for (int i = 0; i < 4; i++) x[i] = x[i] * r * w[i];
    }
    rotate(x, l, c, exists, 1);
  }

  // g, a gradient of what forward makes of x, becomes that of x. sums += that of the row's weight.
  template <int Lanes>
  __device__ void backward(float (&g)[4], float (&sums)[2][4], const float (&x)[4], int l, int c, bool exists) const {
    rotate(g, l, c, exists, -1);
    if (!normed()) return;
    float r = rstd<Lanes>(x), w[4], n[4], dot = 0;
    bool late = l >= split;
    fetch(w, late ? weight[1] : weight[0], c, exists);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      n[i] = x[i] * r;
      dot += g[i] * n[i] * w[i];
      sums[0][i] += late ? 0 : g[i] * n[i];
      sums[1][i] += late ? g[i] * n[i] : 0;
    }
    float mean = lanes_sum(dot, Lanes) / float(D);
#pragma unroll
    for (int i = 0; i < 4; i++) g[i] = r * (g[i] * w[i] - n[i] * mean);
  }

 private:
  template <int Lanes>
  __device__ float rstd(const float (&x)[4]) const {
    return 1 / sqrtf(lanes_sum(x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3], Lanes) / float(D) + eps);
  }

  template <class E>
  __device__ void fetch(float (&out)[4], const E* p, int64_t at, bool exists) const {
    if (exists && vec) load(out, p + at);
    else
      for (int i = 0; i < 4; i++) out[i] = exists ? to_float(p[at + i]) : 0;
  }

  __device__ void rotate(float (&x)[4], int l, int c, bool exists, float way) const {
    if (!pe) return;
    float turn[4];
    fetch(turn, pe, int64_t(l) * D + c, exists);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      float even = x[i], odd = x[i + 1];
      x[i] = turn[i] * even - way * turn[i + 1] * odd;
      x[i + 1] = way * turn[i + 1] * even + turn[i] * odd;
    }
  }
};

// That of queries (side 0) or keys (1); without a norm it does nothing.
template <class T>
RowNorm<T> row_norm(const fx_qk_norm* norm, int side, int64_t D) {
  if (!norm) return {};
  const fx_tensor* weight = side ? norm->key : norm->query;
  auto at = [](const fx_tensor& t) { return t.rank > 0 ? t.data : nullptr; };
  RowNorm<T> n{{static_cast<const T*>(at(weight[0])), static_cast<const T*>(at(weight[1]))},
               static_cast<const float*>(at(norm->pe)),
               int(norm->split),
               int(D),
               norm->eps,
               true};
  for (const T* w : n.weight) n.vec = n.vec && reinterpret_cast<uintptr_t>(w) % (4 * sizeof(T)) == 0;
  n.vec = n.vec && reinterpret_cast<uintptr_t>(n.pe) % 16 == 0;
  return n;
}

// Gradients: q and k are normed and rotated, delta [B,H,Lq] is rowsum(do · o).
struct BackwardTensors {
  const fx_tensor *dq, *dk, *dv, *d_o, *q, *k, *v;
  const float *lse, *delta;
};

fx_status attention_backward(fx_ctx* ctx, const fx_tensor* dq, const fx_tensor* dk, const fx_tensor* dv, const fx_tensor* d_o,
                             const fx_tensor* q, const fx_tensor* k, const fx_tensor* v, const fx_tensor* o, const fx_tensor* lse,
                             const fx_qk_norm* norm, float scale);
void attention_wide_forward(fx_ctx* ctx, const fx_tensor* o, float* lse, const fx_tensor* q, const fx_tensor* k, const fx_tensor* v,
                            float scale);
void attention_wide_backward(fx_ctx* ctx, const BackwardTensors& t, float scale);

// Calls f with the padded head dimension as a compile-time constant.
template <int V>
struct Count {
  static constexpr int value = V;
};
template <class F>
void with_head_dim(int64_t D, F&& f) {
  if (D <= 32) f(Count<32>{});
  else if (D <= 64) f(Count<64>{});
  else f(Count<128>{});
}

}  // namespace fx::cuda
